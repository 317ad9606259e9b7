//! Qwen3-Next and Qwen3.5-MoE: three layers of gated DeltaNet to one of attention, whose output a sigmoid gate scales; norms
//! of every head of queries and keys, rotation of a quarter of their columns, norms' weights stored as differences from 1,
//! a shared expert behind a gate. The two differ in how the projections of the linear attention are stored.
//!
//! Sources: Hugging Face `modeling_qwen3_next` and `modeling_qwen3_5_moe`; llama.cpp's `qwen3next` and `qwen35moe`, whose
//! converter adds the 1 to the norms and (for Qwen3.5) reorders the value heads. Positions of text are the same in all three
//! sections of Qwen3.5's rotation, which makes it the plain one.

use super::qwen2_moe;
use crate::{
    error::{Error, Result},
    file::{Array, Value},
    ir::{Activation, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, by_sum, experts, router},
        decoder::{Decoder, DeltaSpec, LayerNorms, LayerSpec, Mixer, Moe, NormOver, QkNorm, Shared},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, Rows, SharedForm, keys, refused},
        names::Names,
        params::Params,
    },
};

const STEMS: &[(&str, &str)] = &[
    ("ssm_in", "linear_attn.in_proj_qkvz"),
    ("ssm_ba", "linear_attn.in_proj_ba"),
    ("attn_qkv", "linear_attn.in_proj_qkv"),
    ("attn_gate", "linear_attn.in_proj_z"),
    ("ssm_beta", "linear_attn.in_proj_b"),
    ("ssm_alpha", "linear_attn.in_proj_a"),
    ("ssm_conv1d", "linear_attn.conv1d"),
    ("ssm_a", "linear_attn.A_log"),
    ("ssm_dt.bias", "linear_attn.dt_bias"),
    ("ssm_norm", "linear_attn.norm"),
    ("ssm_out", "linear_attn.out_proj"),
];

static QWEN3_NEXT_FORM: GgufForm = GgufForm {
    arch: "qwen3next",
    keys: &[keys::SIZES, qwen2_moe::KEYS, keys::DELTA, keys::ROTATION],
    absent: &[("rope.freq_base", Absent::Number(10_000.0)), ("full_attention_interval", Absent::Count(4))],
    graph: Graph { shared: SharedForm::Gated, ..Graph::NONE },
    rows: Rows { joined_beta_alpha: true, ..Rows::NONE },
    check: |d| square(d, "qwen3next"),
    ..GgufForm::NONE
};

static QWEN3_5_FORM: GgufForm = GgufForm {
    arch: "qwen35moe",
    keys: &[keys::SIZES, qwen2_moe::KEYS, keys::DELTA, &[SECTIONS], keys::ROTATION],
    rows: Rows { tiled_values: true, ..Rows::NONE },
    check: |d| square(d, "qwen35moe"),
    ..QWEN3_NEXT_FORM
};

/// llama.cpp has one key for the columns of keys and those of values.
fn square(d: &Decoder, arch: &str) -> Result<()> {
    for layer in &d.layers {
        if let Mixer::Delta(DeltaSpec { k_dim, v_dim, .. }) = layer.mixer
            && k_dim != v_dim
        {
            let what = format!("linear attention with keys of {k_dim} and values of {v_dim} columns");
            return Err(refused(arch, what));
        }
    }
    qwen2_moe::warn_of_dense_layers(d)
}

/// The pairs of columns belong to time, height and width in turn; llama.cpp does not rotate those beyond the sections.
/// Positions of text are the same in all three.
const SECTIONS: keys::Key = keys::Key {
    name: "rope.dimension_sections",
    value: |d, _| {
        let half = d.rope().map_or(0, |r| r.dims / 2);
        let turn = |i: usize| half.saturating_sub(i).div_ceil(3) as u32;
        Ok(Some(Value::Array(Array::from_u32(&[turn(0), turn(1), turn(2), 0]))))
    },
};

/// Qwen3-Next.
pub static QWEN3_NEXT: Architecture = Architecture {
    title: "Qwen3-Next",
    gguf: &QWEN3_NEXT_FORM,
    hf: "qwen3_next",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(2)),
            ("head_dim", Absent::Count(256)),
            ("partial_rotary_factor", Absent::Number(0.25)),
            ("linear_conv_kernel_dim", Absent::Count(4)),
            ("linear_key_head_dim", Absent::Count(128)),
            ("linear_value_head_dim", Absent::Count(128)),
            ("linear_num_key_heads", Absent::Count(16)),
            ("linear_num_value_heads", Absent::Count(32)),
            ("layer_types", Absent::Nothing),
            ("full_attention_interval", Absent::Count(4)),
            ("num_experts", Absent::Count(512)),
            ("num_experts_per_tok", Absent::Count(10)),
            ("moe_intermediate_size", Absent::Count(512)),
            ("shared_expert_intermediate_size", Absent::Count(512)),
            ("norm_topk_prob", Absent::Flag(true)),
            ("decoder_sparse_step", Absent::Count(1)),
            ("mlp_only_layers", Absent::Nothing),
        ],
        also: &[],
    },
    names: Names::with(STEMS),
    decoder,
    routing: Some(Routing {
        divided_by: "sum as `norm_topk_prob` (yes)",
        source: "`modeling_qwen3_next`",
        ..Routing::SOFTMAX
    }),
};

/// Qwen3.5-MoE, its text model.
pub static QWEN3_5_MOE: Architecture = Architecture {
    title: "Qwen3.5-MoE",
    gguf: &QWEN3_5_FORM,
    hf: "qwen3_5_moe_text",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(2)),
            ("head_dim", Absent::Count(256)),
            // All layers have experts.
            ("intermediate_size", Absent::Nothing),
            ("partial_rotary_factor", Absent::Number(0.25)),
            ("linear_conv_kernel_dim", Absent::Count(4)),
            ("linear_key_head_dim", Absent::Count(128)),
            ("linear_value_head_dim", Absent::Count(128)),
            ("linear_num_key_heads", Absent::Count(16)),
            ("linear_num_value_heads", Absent::Count(32)),
            ("layer_types", Absent::Nothing),
            ("full_attention_interval", Absent::Count(4)),
            ("num_experts", Absent::Count(256)),
            ("num_experts_per_tok", Absent::Count(8)),
            ("moe_intermediate_size", Absent::Count(512)),
            ("shared_expert_intermediate_size", Absent::Count(512)),
        ],
        also: &[],
    },
    names: Names::with(STEMS),
    decoder,
    routing: Some(Routing { divided_by: "sum", source: "`modeling_qwen3_5_moe`", ..Routing::SOFTMAX }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut c = Common::read(p)?;
    c.norm.offset = if p.is_gguf() { 0.0 } else { 1.0 };
    if c.act != Activation::Silu {
        // The convolutions of these layers have it too.
        return Err(Error::Unsupported(format!("the activation {:?} in {}", c.act, p.arch)));
    }
    let mut a = c.attention(p, Common::pairs(p))?;
    a.qk_norm = Some(QkNorm { over: NormOver::PerHead, after_rope: false });
    a.gated = true;
    let delta = Mixer::Delta(delta(p)?);
    let every = p.opt_usize("full_attention_interval", "full_attention_interval")?.unwrap_or(4).max(1);
    let types = p.config("layer_types").and_then(|v| v.as_array());
    // A GGUF may say it layer by layer.
    let recurrent = p.list("attention.recurrent_layers");
    if let Some(n) = recurrent.as_ref().map(Vec::len).filter(|n| *n < c.layers) {
        return Err(Error::Model(format!("attention.recurrent_layers has {n} of {} layers", c.layers)));
    }
    let is_attention = |i: usize| match (&recurrent, types) {
        (Some(list), _) => list[i] == 0,
        (None, Some(t)) => t.get(i).and_then(|t| t.as_str()) == Some("full_attention"),
        (None, None) => (i + 1) % every == 0,
    };
    let (moe, dense) = (moe(p, &c)?, qwen2_moe::dense_layers(p)?);
    let layer = |i: usize| LayerSpec {
        mixer: if is_attention(i) { Mixer::Attention(a.clone()) } else { delta.clone() },
        ffn: c.ffn(p, i, dense(i), &moe),
        norms: LayerNorms { ffn: "post_attention_norm", post: false },
    };
    let layers = (0..c.layers).map(layer).collect();
    Ok(c.decoder(layers))
}

fn delta(p: &Params<'_>) -> Result<DeltaSpec> {
    let k_heads = p.usize("ssm.group_count", "linear_num_key_heads")?;
    let v_heads = p.usize("ssm.time_step_rank", "linear_num_value_heads")?;
    let k_dim = p.usize("ssm.state_size", "linear_key_head_dim")?;
    let v_dim = match p.is_gguf() {
        true => p.usize("ssm.inner_size", "")? / v_heads,
        false => p.usize("", "linear_value_head_dim")?,
    };
    let taps = p.usize("ssm.conv_kernel", "linear_conv_kernel_dim")?;
    Ok(DeltaSpec { k_heads, v_heads, k_dim, v_dim, taps, tiled: p.is_gguf() && p.form().rows.tiled_values })
}

fn moe(p: &Params<'_>, c: &Common) -> Result<Moe> {
    let [experts, used] = experts(p, ["num_experts", "num_experts_per_tok"])?;
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    let shared = p.usize("expert_shared_feed_forward_length", "shared_expert_intermediate_size")?;
    // Qwen3.5 always renormalises, as llama.cpp's graphs of both do.
    let renormalise = by_sum(p.opt_bool("", "norm_topk_prob")?.unwrap_or(true));
    let router = router(p, Router { renormalise, ..Router::new(experts, used, Score::Softmax) })?;
    let mut moe = Moe::new(router, c.glu(width));
    moe.shared = Shared::one(shared, moe.experts).map(|s| Shared { gated: true, ..s });
    Ok(moe)
}
