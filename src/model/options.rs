//! What is asked of a build.

/// What to build beyond the logits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Make `router_ids_<layer>` and `router_weights_<layer>` outputs of the graph.
    pub trace_router: bool,
    /// Round the rotary frequencies to BF16. PyTorch code that casts a whole model with `.to(torch.bfloat16)` casts them
    /// too, and everything computed from such a model afterwards, in float32 as well, has them rounded: for comparing with
    /// logits that were made so. Models loaded by `from_pretrained` keep them in float32, as the default here does.
    pub bf16_rope: bool,
}
