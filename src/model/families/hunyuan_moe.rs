//! Hunyuan-MoE (Tencent, Hunyuan-A13B and Large): norms of queries and keys after the rotation, whose base is stretched by
//! `alpha`; a softmax router with renormalised weights, and a shared unit. Source: Hugging Face `modeling_hunyuan_v1_moe`;
//! llama.cpp's `hunyuan-moe`, where the stretched base is the base.

use crate::{
    error::{Error, Result},
    ir::{Renormalise, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, router},
        decoder::{Decoder, Moe, NormOver, QkNorm, Shared},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, SharedForm, keys},
        names::Names,
        params::Params,
    },
};

static FORM: GgufForm = GgufForm {
    arch: "hunyuan-moe",
    keys: &[keys::SIZES, super::qwen2_moe::KEYS, keys::ROTATION],
    absent: &[("rope.freq_base", Absent::Number(10_000.0)), ("expert_feed_forward_length", Absent::Refused)],
    graph: Graph { shared: SharedForm::Maybe, ..Graph::NONE },
    ..GgufForm::NONE
};

/// Hunyuan-MoE.
pub static HUNYUAN_MOE: Architecture = Architecture {
    title: "Hunyuan-MoE",
    gguf: &FORM,
    hf: "hunyuan_v1_moe",
    config: Config {
        keys: &[
            ("head_dim", Absent::Nothing),
            ("num_experts", Absent::Count(1)),
            ("moe_topk", Absent::Count(1)),
            ("rms_norm_eps", Absent::Number(1e-5)),
            // Keys of the published configs that the class does not know: as wide as the dense unit, one, yes and no there.
            ("moe_intermediate_size", Absent::Nothing),
            ("num_shared_expert", Absent::Count(1)),
            ("use_qk_norm", Absent::Flag(true)),
            ("use_cla", Absent::Flag(false)),
        ],
        also: &[("num_local_experts", "num_experts"), ("num_experts_per_tok", "moe_topk")],
    },
    names: Names::with(&[
        ("attn_q_norm", "self_attn.query_layernorm"),
        ("attn_k_norm", "self_attn.key_layernorm"),
        ("ffn_gate_inp", "mlp.gate.wg"),
        ("ffn_gate_shexp", "mlp.shared_mlp.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_mlp.up_proj"),
        ("ffn_down_shexp", "mlp.shared_mlp.down_proj"),
    ]),
    decoder,
    routing: Some(Routing { divided_by: "sum", source: "`modeling_hunyuan_v1_moe`", ..Routing::SOFTMAX }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let mut a = c.attention(p, Common::pairs(p))?;
    let normed = p.opt_bool("", "use_qk_norm")? != Some(false);
    a.qk_norm = normed.then_some(QkNorm { over: NormOver::PerHead, after_rope: true });
    // Keys and values of a layer that serve the next ones too.
    if p.opt_bool("", "use_cla")? == Some(true) {
        return Err(Error::Unsupported("attention across layers (use_cla) in Hunyuan".into()));
    }
    let experts = count(p, "expert_count", "num_experts", None)?;
    let used = count(p, "expert_used_count", "moe_topk", None)?;
    let width = count(p, "expert_feed_forward_length", "moe_intermediate_size", Some(c.ffn))?;
    let shared = if p.is_gguf() {
        p.usize("expert_shared_feed_forward_length", "")?
    } else {
        let n = count(p, "", "num_shared_expert", None)?;
        n.checked_mul(c.ffn).ok_or_else(|| Error::Model(format!("{n} shared experts")))?
    };
    let family = Router { renormalise: Renormalise::Sum, ..Router::new(experts, used, Score::Softmax) };
    let mut moe = Moe::new(router(p, family)?, c.glu(width));
    moe.shared = Shared::one(shared, moe.experts);
    let spans = c.spans(p, |_| true)?;
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, false, &moe));
    Ok(c.decoder(layers))
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
