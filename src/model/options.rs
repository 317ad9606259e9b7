//! What is asked of a build.

/// What to build beyond the logits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Make `router_ids_<layer>` and `router_weights_<layer>` outputs of the graph.
    pub trace_router: bool,
}
