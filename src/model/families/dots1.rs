//! dots.llm1: grouped-query attention with a norm on every head, DeepSeek-V3's router and shared experts, first layers dense.
//! Source: Hugging Face `modeling_dots1`; keys and names of llama.cpp's `dots1`.

use super::{deepseek::V3_ROUTING, deepseek_moe};
use crate::{
    error::Result,
    ir::{GroupScore, Score},
    model::{
        architecture::{Architecture, Routing},
        common::Common,
        decoder::{Decoder, NormOver, QkNorm},
        facts::{Absent, Config},
        gguf::GgufForm,
        names::Names,
        params::Params,
    },
};

static FORM: GgufForm = GgufForm { arch: "dots1", ..deepseek_moe::FORM };

/// dots.llm1.
pub static DOTS1: Architecture = Architecture {
    title: "dots.llm1",
    gguf: &FORM,
    hf: "dots1",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(32)),
            ("head_dim", Absent::Nothing),
            ("n_routed_experts", Absent::Nothing),
            ("num_experts_per_tok", Absent::Nothing),
            ("moe_intermediate_size", Absent::Count(1408)),
            ("n_shared_experts", Absent::Nothing),
            ("first_k_dense_replace", Absent::Count(0)),
            ("n_group", Absent::Count(1)),
            ("topk_group", Absent::Count(1)),
            ("norm_topk_prob", Absent::Flag(false)),
            ("routed_scaling_factor", Absent::Number(1.0)),
            ("sliding_window", Absent::Count(4096)),
            ("max_window_layers", Absent::Count(62)),
            ("layer_types", Absent::Nothing),
            ("scoring_func", Absent::Nothing),
            ("moe_layer_freq", Absent::Nothing),
        ],
        also: &[("num_local_experts", "n_routed_experts")],
    },
    names: Names::with(deepseek_moe::STEMS),
    decoder,
    routing: Some(Routing { source: "`modeling_dots1`", ..V3_ROUTING }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let mut a = c.attention(p, Common::pairs(p))?;
    a.qk_norm = Some(QkNorm { over: NormOver::PerHead, after_rope: false });
    let (moe, dense) = deepseek_moe::moe(p, &c, Score::Sigmoid, Some(GroupScore::TopTwo), true)?;
    // Windows begin at this layer, where no list says it.
    let first = p.opt_length("", "max_window_layers")?.unwrap_or(0);
    let spans = c.spans(p, |i| i >= first)?;
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, i < dense, &moe));
    Ok(c.decoder(layers))
}
