//! The mini-Mixtral that Mixture-of-Experts tutorials write, from PyTorch-style names: interleaved rotary pairs, softmax
//! over the chosen logits. Its config has `dim`, `n_layers`, `n_heads`, `n_kv_heads`, `hidden_dim`, `num_experts`, `top_k`,
//! `norm_eps`, `rope_theta`, `vocab_size`, `max_seq_len`, and `"model_type": "mini_mixtral"`.

use super::{
    Architecture, Decoder, Names, Params, QkNorm,
    decoder::{Bias, Moe, router},
};
use crate::{
    error::Result,
    ir::{Activation, RopePairs, Router, Score},
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
            ("ffn_gate_exps", "feed_forward.experts.{}.w1"),
            ("ffn_up_exps", "feed_forward.experts.{}.w3"),
            ("ffn_down_exps", "feed_forward.experts.{}.w2"),
        ],
    },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let (hidden, heads) = (p.usize("", "dim")?, p.usize("", "n_heads")?);
    let ffn = p.usize("", "hidden_dim")?;
    let plain = Router::new(p.usize("", "num_experts")?, p.usize("", "top_k")?, Score::SoftmaxOfSelected);
    let router = router(p, plain)?;
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
        pairs: RopePairs::Interleaved,
        qk_norm: QkNorm::None,
        qkv_bias: Bias::IfPresent,
        act: Activation::Silu,
        windows: vec![],
        moe: Some(Moe { router, selection_bias: false, width: ffn, shared: None, dense_layers: vec![] }),
        tied: false,
    })
}
