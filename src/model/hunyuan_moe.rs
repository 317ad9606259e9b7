//! Hunyuan-MoE (Tencent, Hunyuan-A13B and Large): norms of queries and keys after the rotation, whose base is stretched by
//! `alpha`; a softmax router with renormalised weights, and a shared unit. Source: Hugging Face `modeling_hunyuan_v1_moe`;
//! llama.cpp's `hunyuan-moe`, where the stretched base is the base.

use super::{
    Architecture, Decoder, Names, Params, QkNorm, Shared,
    decoder::{Moe, router},
    llama,
};
use crate::{
    error::{Error, Result},
    ir::{Renormalise, Router, Score},
};

/// Hunyuan-MoE.
pub static HUNYUAN_MOE: Architecture = Architecture {
    title: "Hunyuan-MoE",
    gguf: Some("hunyuan-moe"),
    hf: Some("hunyuan_v1_moe"),
    decoder,
    names: Names {
        layers: llama::LAYERS,
        stems: &[
            ("attn_q_norm", "self_attn.query_layernorm"),
            ("attn_k_norm", "self_attn.key_layernorm"),
            ("ffn_gate_inp", "mlp.gate.wg"),
            ("ffn_gate_shexp", "mlp.shared_mlp.gate_proj"),
            ("ffn_up_shexp", "mlp.shared_mlp.up_proj"),
            ("ffn_down_shexp", "mlp.shared_mlp.down_proj"),
        ],
    },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    (d.qk_norm, d.qk_norm_last) = (QkNorm::PerHead, true);
    if p.opt_bool("", "use_qk_norm")? == Some(false) {
        d.qk_norm = QkNorm::None;
    }
    // Keys and values of a layer that serve the next ones too.
    if p.opt_bool("", "use_cla")? == Some(true) {
        return Err(Error::Unsupported("attention across layers (use_cla) in Hunyuan".into()));
    }
    let experts = count(p, "expert_count", "num_experts", None)?;
    let used = count(p, "expert_used_count", "moe_topk", None)?;
    let width = count(p, "expert_feed_forward_length", "moe_intermediate_size", Some(d.ffn))?;
    let shared = if p.is_gguf() {
        p.usize("expert_shared_feed_forward_length", "")?
    } else {
        d.ffn * count(p, "", "num_shared_expert", Some(1))?
    };
    let family = Router { renormalise: Renormalise::Sum, ..Router::new(experts, used, Score::Softmax) };
    let router = router(p, family)?;
    let shared = Some(Shared { width: shared, gated: false });
    d.moe = Some(Moe { router, selection_bias: false, width, shared, dense_layers: vec![] });
    Ok(d)
}

/// A number that a config may give once for all layers or for each.
fn count(p: &Params<'_>, gguf: &str, hf: &str, default: Option<usize>) -> Result<usize> {
    let list = p.config(hf).and_then(|v| v.as_array());
    let Some(list) = list else {
        return match (p.opt_usize(gguf, hf)?, default) {
            (Some(n), _) | (None, Some(n)) => Ok(n),
            (None, None) => p.usize(gguf, hf),
        };
    };
    match list.first().and_then(|v| v.as_u64()) {
        Some(n) if list.iter().all(|v| v.as_u64() == Some(n)) => Ok(n as usize),
        _ => Err(Error::Unsupported(format!("`{hf}` that differs between layers"))),
    }
}
