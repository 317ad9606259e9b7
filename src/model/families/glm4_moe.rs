//! GLM-4.5 and 4.6: grouped-query attention with a norm on every head (where the config has it), rotation of half of each head,
//! DeepSeek-V3's router and shared expert, first layers dense. Source: Hugging Face `modeling_glm4_moe`; keys and names of
//! llama.cpp's `glm4moe`, whose count of layers includes those that predict further tokens.

use super::{deepseek::V3_ROUTING, deepseek_moe};
use crate::{
    error::Result,
    ir::{GroupScore, Score},
    model::{
        architecture::{Architecture, Routing},
        common::Common,
        decoder::{Decoder, LayerNorms, LayerSpec, NormOver, QkNorm},
        facts::{Absent, Config},
        gguf::GgufForm,
        names::Names,
        params::Params,
    },
};

static FORM: GgufForm = GgufForm { arch: "glm4moe", ..deepseek_moe::FORM };

/// GLM-4.5 MoE.
pub static GLM4_MOE: Architecture = Architecture {
    title: "GLM-4.5 MoE",
    gguf: &FORM,
    hf: "glm4_moe",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(8)),
            ("head_dim", Absent::Nothing),
            ("n_routed_experts", Absent::Count(128)),
            ("num_experts_per_tok", Absent::Count(8)),
            ("moe_intermediate_size", Absent::Count(1408)),
            ("n_shared_experts", Absent::Count(1)),
            ("first_k_dense_replace", Absent::Count(1)),
            ("n_group", Absent::Count(1)),
            ("topk_group", Absent::Count(1)),
            ("norm_topk_prob", Absent::Flag(true)),
            ("routed_scaling_factor", Absent::Number(1.0)),
            ("use_qk_norm", Absent::Flag(false)),
            ("partial_rotary_factor", Absent::Number(0.5)),
            ("rms_norm_eps", Absent::Number(1e-5)),
            ("scoring_func", Absent::Nothing),
            ("moe_layer_freq", Absent::Nothing),
        ],
        also: &[("num_local_experts", "n_routed_experts")],
    },
    names: Names::with(deepseek_moe::STEMS),
    decoder,
    routing: Some(Routing { source: "`modeling_glm4_moe`", ..V3_ROUTING }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let mut a = c.attention(p, Common::pairs(p))?;
    let normed = match p.opt_bool("", "use_qk_norm")? {
        Some(yes) => yes,
        None => p.any_tensor(|n| n.ends_with(".attn_q_norm.weight")),
    };
    a.qk_norm = normed.then_some(QkNorm { over: NormOver::PerHead, after_rope: false });
    let (moe, dense) = deepseek_moe::moe(p, &c, Score::Sigmoid, Some(GroupScore::TopTwo), true)?;
    let norms = LayerNorms { ffn: "post_attention_norm", post: false };
    let spans = c.spans(p, |_| true)?;
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, i < dense, &moe));
    Ok(c.decoder(layers.into_iter().map(|l| LayerSpec { norms, ..l }).collect()))
}
