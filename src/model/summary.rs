//! What each layer of a model is, read back from its graph: the same for every architecture.

use crate::ir::{Graph, Node, Op, Router};

/// One transformer layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSummary {
    /// Its number.
    pub layer: usize,
    /// What mixes tokens: `attention`, and in brackets what is special about it.
    pub mixer: String,
    /// Width of a dense feed-forward network, or of an expert.
    pub width: usize,
    /// The router, where the layer has experts, without its selection bias.
    pub router: Option<Router>,
    /// What the router does, in words.
    pub variant: Option<String>,
    /// Width of the shared experts, together.
    pub shared_width: Option<usize>,
}

/// Describes the layers of a graph, in order.
pub fn layers(graph: &Graph) -> Vec<LayerSummary> {
    let count = graph.nodes.iter().filter_map(|n| n.layer).max().map_or(0, |l| l as usize + 1);
    (0..count).map(|i| layer(graph, i)).collect()
}

fn layer(graph: &Graph, layer: usize) -> LayerSummary {
    let nodes: Vec<&Node> = graph.nodes.iter().filter(|n| n.layer == Some(layer as u32)).collect();
    let router = nodes.iter().find_map(|n| match &n.op {
        Op::Router(r) | Op::NormRouter { router: r, .. } => Some(*r),
        _ => None,
    });
    // Columns that the matrix of this role reads: the width of what is before it.
    let width = |role: &str| {
        let weights = nodes.iter().flat_map(|n| n.op.weights()).map(|w| graph.weight(w));
        let mut found = weights.filter(|w| w.name.contains(role));
        found.next().and_then(|w| w.shape.last().copied())
    };
    let role = if router.is_some() { ".ffn_down_exps." } else { ".ffn_down." };
    LayerSummary {
        layer,
        mixer: mixer(graph, &nodes),
        width: width(role).unwrap_or(0),
        // Its weight is another in every layer; `variant` says that it is there.
        router: router.map(|r| Router { selection_bias: None, expert_scale: None, ..r }),
        variant: router.as_ref().map(Router::variant),
        shared_width: width(".ffn_down_shexp."),
    }
}

fn mixer(graph: &Graph, nodes: &[&Node]) -> String {
    let mut rotated = false;
    for n in nodes {
        match &n.op {
            Op::Rope(_) | Op::RopeStore { .. } => rotated = true,
            Op::Attend(a) => {
                let d = &graph.caches[a.cache.0 as usize];
                if d.v_in_k {
                    let (latent, rotated) = (d.v_dim, d.k_dim - d.v_dim);
                    return format!("latent attention ({} heads on {latent} + {rotated})", a.heads);
                }
                let mut parts = vec![format!("{} heads on {}", a.heads, d.kv_heads)];
                parts.extend(a.window.map(|w| format!("window {w}")));
                parts.extend(a.sinks.map(|_| "sinks".to_string()));
                parts.extend((!rotated).then(|| "no rotation".to_string()));
                return format!("attention ({})", parts.join(", "));
            }
            Op::DeltaNet(d) => return format!("gated delta net ({} heads on {}, recurrent)", d.v_heads, d.k_heads),
            _ => {}
        }
    }
    if let Some(c) = nodes.iter().find_map(|n| if let Op::ShortConv(c) = &n.op { Some(c) } else { None }) {
        return format!("short convolution ({} taps, recurrent)", c.taps);
    }
    "none".into()
}

impl LayerSummary {
    /// The feed-forward part as a phrase: `8 experts of 48, top 2, softmax, renormalised`.
    pub fn feed_forward(&self) -> String {
        let Some(r) = &self.router else { return format!("dense, width {}", self.width) };
        let mut text = format!("{} experts of {}, top {}", r.experts, self.width, r.used);
        if let Some(v) = &self.variant {
            text += &format!(", {v}");
        }
        if let Some(w) = self.shared_width {
            text += &format!(", shared {w}");
        }
        text
    }
}
