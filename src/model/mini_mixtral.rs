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
//!
//! Routers, experts and norms have biases where the file has them.

use super::{
    Architecture, Decoder, ExpertLayout, Multipliers, Names, Params, QkNorm, Shared,
    decoder::{Bias, Moe, router},
};
use crate::{
    error::{Error, Result},
    ir::{Activation, NormKind, Renormalise, RopePairs, Router, Score},
};

/// The tutorials' mini-Mixtral.
pub static MINI_MIXTRAL: Architecture = Architecture {
    title: "mini-Mixtral (PyTorch names)",
    gguf: None,
    hf: Some("mini_mixtral"),
    decoder,
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
    },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let (hidden, heads) = (p.usize("", "dim")?, p.usize("", "n_heads")?);
    let ffn = p.usize("", "hidden_dim")?;
    let (score, renormalise) = match p.opt_str("", "router")?.as_deref() {
        None | Some("top_k" | "noisy_top_k") => (Score::SoftmaxOfSelected, Renormalise::No),
        Some("softmax_top_k") => (Score::Softmax, Renormalise::No),
        Some("softmax_top_k_softmax") => (Score::Softmax, Renormalise::Softmax),
        Some(other) => return Err(Error::Unsupported(format!("a router of the kind `{other}` in {}", p.arch))),
    };
    let plain = Router::new(p.usize("", "num_experts")?, p.usize("", "top_k")?, score);
    let router = router(p, Router { renormalise, ..plain })?;
    let router_hidden = match p.opt_usize("", "router_hidden")? {
        Some(n) => Some((n, activation(p, "router_activation", Activation::Relu)?)),
        None => None,
    };
    let shared_experts = p.opt_usize("", "num_shared_experts")?.unwrap_or(0);
    let shared = (shared_experts > 0).then_some(Shared { width: ffn, gated: false });
    let norm = match p.opt_str("", "norm")?.as_deref() {
        None | Some("rms") => NormKind::Rms,
        Some("layer") => NormKind::Layer,
        Some(other) => return Err(Error::Unsupported(format!("norms of the kind `{other}` in {}", p.arch))),
    };
    Ok(Decoder {
        layers: p.usize("", "n_layers")?,
        hidden,
        heads,
        kv_heads: p.opt_usize("", "n_kv_heads")?.unwrap_or(heads),
        head_dim: p.opt_usize("", "head_dim")?.unwrap_or(hidden / heads),
        ffn,
        vocab: p.usize("", "vocab_size")?,
        context: p.opt_usize("", "max_seq_len")?.unwrap_or(2048),
        eps: p.opt_f32("", "norm_eps")?.unwrap_or(1e-6),
        norm,
        pairs: RopePairs::Interleaved,
        qk_norm_last: false,
        chunked: false,
        unrotated: vec![],
        temperature: None,
        weigh_inputs: false,
        qk_norm: QkNorm::None,
        qkv_bias: Bias::IfPresent,
        act: activation(p, "expert_activation", Activation::Silu)?,
        windows: vec![],
        mixers: vec![],
        gated_attention: false,
        norm_offset: 0.0,
        ffn_norm: "ffn_norm",
        output_norm: "output_norm",
        moe: Some(Moe { router, selection_bias: false, width: ffn, shared, dense_layers: vec![] }),
        tied: false,
        multipliers: Multipliers::default(),
        sinks: false,
        latent: None,
        expert_layout: ExpertLayout::Rows,
        gated: p.opt_bool("", "expert_gated")?.unwrap_or(true),
        shared_experts,
        router_hidden,
        full: None,
        v_norm: false,
        norms_behind: false,
        softcap: None,
    })
}

fn activation(p: &Params<'_>, key: &str, default: Activation) -> Result<Activation> {
    match p.opt_str("", key)?.as_deref() {
        None => Ok(default),
        Some("silu") => Ok(Activation::Silu),
        Some("relu") => Ok(Activation::Relu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_tanh") => Ok(Activation::GeluTanh),
        Some(other) => Err(Error::Unsupported(format!("the activation `{other}` in {}", p.arch))),
    }
}
