//! The Mixture-of-Experts transformers that tutorials and surveys write, from PyTorch-style names: rotary positions on
//! interleaved pairs, top-k routing in its variants, experts with a gate or without.
//!
//! The config has `"model_type": "mini_mixtral"`, `dim`, `n_layers`, `n_heads`, `n_kv_heads`, `hidden_dim`, `num_experts`,
//! `top_k`, `norm_eps`, `rope_theta`, `vocab_size`, `max_seq_len`, which alone make a small Mixtral, and may have:
//!
//! | key | values, the first is the default |
//! |---|---|
//! | `router` | `top_k`: softmax over the k largest logits; `softmax_top_k`: the k largest of a softmax over all, as they are; `softmax_top_k_softmax`: these through a second softmax; `noisy_top_k`: as `top_k`, since its noise belongs to training (`feed_forward.noise` is left aside with a notice) |
//! | `router_hidden`, `router_activation` | width and activation (`relu`) of a hidden layer in the router: `gate(act(gate_hidden(x)))` |
//! | `expert_gated` | `true`: `w2(act(w1 x) · w3 x)`; `false`: `w2(act(w1 x))` |
//! | `expert_activation` | `silu`, `relu`, `gelu`, `gelu_tanh` |
//! | `num_shared_experts` | 0; any number of units `feed_forward.shared_experts.{i}`, summed |
//! | `norm` | `rms`, `layer` |
//! | `group_router_count`, `group_router_used_count` | groups of neighbouring experts with a router over them, whose rows stand behind those of the experts in `feed_forward.gate`, and how many a token uses |
//!
//! Routers, experts and norms have biases where the file has them.

use super::llama;
use crate::{
    error::{Error, Result},
    ir::{Activation, NormKind, Renormalise, RopePairs, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, GROUP_ROUTER_COUNT, GROUP_ROUTER_USED_COUNT, layer_count, router},
        decoder::{Decoder, Ffn, Glu, Moe, NormSpec, Shared, Span},
        facts::{Absent, Config},
        names::{ExpertLayout, Names},
        params::Params,
    },
};

/// Its `model_type`. Its tensors are the weights of the graph as they are, so that a folder can be written back.
pub const NAME: &str = "mini_mixtral";

/// The tutorials' mini-Mixtral. As GGUF it is a `llama`: its softmax over the chosen logits equals the renormalised softmax over
/// all.
pub static MINI_MIXTRAL: Architecture = Architecture {
    title: "mini-Mixtral (PyTorch names)",
    gguf: &llama::FORM,
    hf: NAME,
    config: Config {
        keys: &[
            ("dim", Absent::Refused),
            ("n_layers", Absent::Refused),
            ("n_heads", Absent::Refused),
            ("n_kv_heads", Absent::Nothing),
            ("head_dim", Absent::Nothing),
            ("hidden_dim", Absent::Refused),
            ("num_experts", Absent::Refused),
            ("top_k", Absent::Refused),
            ("vocab_size", Absent::Refused),
            ("norm_eps", Absent::Number(1e-6)),
            ("max_seq_len", Absent::Count(2048)),
            ("router", Absent::Text("top_k")),
            ("router_hidden", Absent::Nothing),
            ("router_activation", Absent::Text("relu")),
            ("expert_gated", Absent::Flag(true)),
            ("expert_activation", Absent::Text("silu")),
            ("num_shared_experts", Absent::Count(0)),
            ("norm", Absent::Text("rms")),
            (GROUP_ROUTER_COUNT, Absent::Nothing),
            (GROUP_ROUTER_USED_COUNT, Absent::Nothing),
        ],
        also: &[],
    },
    names: Names {
        layers: "layers.",
        stems: &[
            ("token_embd", "tok_embeddings"),
            ("output_norm", "norm"),
            ("output", "output"),
            ("attn_norm", "attention_norm"),
            ("attn_q", "attention.wq"),
            ("attn_k", "attention.wk"),
            ("attn_v", "attention.wv"),
            ("attn_output", "attention.wo"),
            ("ffn_norm", "ffn_norm"),
            ("ffn_gate_inp", "feed_forward.gate"),
            ("ffn_gate_inp_hidden", "feed_forward.gate_hidden"),
            ("ffn_noise_inp", "feed_forward.noise"),
            ("ffn_gate_shexp", "feed_forward.shared_experts.{}.w1"),
            ("ffn_up_shexp", "feed_forward.shared_experts.{}.w3"),
            ("ffn_down_shexp", "feed_forward.shared_experts.{}.w2"),
            ("ffn_gate_exps", "feed_forward.experts.{}.w1"),
            ("ffn_up_exps", "feed_forward.experts.{}.w3"),
            ("ffn_down_exps", "feed_forward.experts.{}.w2"),
        ],
        experts: ExpertLayout::Rows,
    },
    decoder,
    routing: Some(Routing {
        score: "softmax of the selected, or softmax (`router`)",
        divided_by: "nothing, or a second softmax (`router`)",
        source: "Shazeer et al. 2017 without noise, Fedus et al. 2021, Jiang et al. 2024",
        ..Routing::SOFTMAX
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let (hidden, heads) = (p.usize("", "dim")?, p.usize("", "n_heads")?);
    let kind = match p.opt_str("", "norm")?.as_deref() {
        None | Some("rms") => NormKind::Rms,
        Some("layer") => NormKind::Layer,
        Some(other) => return Err(Error::Unsupported(format!("norms of the kind `{other}` in {}", p.arch))),
    };
    let c = Common {
        layers: layer_count(p, "n_layers")?,
        hidden,
        heads,
        kv_heads: p.opt_usize("", "n_kv_heads")?.unwrap_or(heads),
        head_dim: p.opt_usize("", "head_dim")?.unwrap_or(hidden / heads),
        ffn: p.usize("", "hidden_dim")?,
        vocab: p.usize("", "vocab_size")?,
        context: p.opt_length("", "max_seq_len")?.filter(|n| *n > 0).unwrap_or(2048),
        norm: NormSpec { kind, eps: p.f32("", "norm_eps")?, offset: 0.0 },
        act: activation(p, "expert_activation")?,
        tied: false,
    };
    let moe = moe(p, &c)?;
    let a = c.attention(p, RopePairs::Interleaved)?;
    let layers = c.layers(&a, &vec![Span::Context; c.layers], |_| Ffn::Moe(moe.clone()));
    Ok(c.decoder(layers))
}

fn moe(p: &Params<'_>, c: &Common) -> Result<Moe> {
    let (score, renormalise) = match p.opt_str("", "router")?.as_deref() {
        None | Some("top_k" | "noisy_top_k") => (Score::SoftmaxOfSelected, Renormalise::No),
        Some("softmax_top_k") => (Score::Softmax, Renormalise::No),
        Some("softmax_top_k_softmax") => (Score::Softmax, Renormalise::Softmax),
        Some(other) => return Err(Error::Unsupported(format!("a router of the kind `{other}` in {}", p.arch))),
    };
    let plain = Router::new(p.usize("", "num_experts")?, p.usize("", "top_k")?, score);
    let experts = Glu { gated: p.bool("", "expert_gated")?, ..c.glu(c.ffn) };
    let mut moe = Moe::new(router(p, Router { renormalise, ..plain })?, experts);
    if let Some(n) = p.opt_usize("", "router_hidden")? {
        moe.router_hidden = Some((n, activation(p, "router_activation")?));
    }
    let count = p.opt_usize("", "num_shared_experts")?.unwrap_or(0);
    moe.shared = (count > 0).then_some(Shared { unit: experts, count, gated: false });
    Ok(moe)
}

fn activation(p: &Params<'_>, key: &str) -> Result<Activation> {
    match p.opt_str("", key)?.as_deref() {
        None | Some("silu") => Ok(Activation::Silu),
        Some("relu") => Ok(Activation::Relu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_tanh") => Ok(Activation::GeluTanh),
        Some(other) => Err(Error::Unsupported(format!("the activation `{other}` in {}", p.arch))),
    }
}
