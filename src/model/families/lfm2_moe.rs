//! LFM2-MoE: most layers mix tokens by a short convolution between two gates, some by attention with a norm of every head of
//! queries and keys; the first layers are dense, the others choose experts by sigmoid scores plus a selection bias.
//!
//! Sources: Hugging Face `modeling_lfm2_moe` (1e-6 is added to the sum of the chosen weights); llama.cpp's `lfm2moe`, where
//! a layer without heads of keys is a convolution, and the last norm is called that of the embedding.

use crate::{
    error::{Error, Result},
    ir::{Activation, Renormalise, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, experts, router},
        decoder::{ConvSpec, Decoder, LayerSpec, Mixer, Moe, NormOver, QkNorm},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, keys, refused},
        names::Names,
        params::Params,
    },
};

/// Added to the sum of the chosen weights.
const PLUS: f32 = 1e-6;

static FORM: GgufForm = GgufForm {
    arch: "lfm2moe",
    keys: &[
        &[
            keys::BLOCK_COUNT,
            keys::CONTEXT_LENGTH,
            keys::EMBEDDING_LENGTH,
            keys::FEED_FORWARD_LENGTH,
            keys::HEAD_COUNT,
            HEADS,
            keys::KEY_LENGTH,
            keys::VALUE_LENGTH,
            keys::ROPE_DIMENSION_COUNT,
            keys::SLIDING_WINDOW,
            keys::RMS_EPS,
            keys::EXPERT_COUNT,
            keys::EXPERT_USED_COUNT,
            keys::EXPERT_FEED_FORWARD_LENGTH,
            keys::LEADING_DENSE_BLOCK_COUNT,
            keys::EXPERT_GATING_FUNC,
            TAPS,
        ],
        keys::ROTATION,
    ],
    absent: &[("rope.freq_base", Absent::Number(10_000.0)), ("leading_dense_block_count", Absent::Count(0))],
    graph: Graph { score: Some(Score::Sigmoid), sum_plus: PLUS, selection_bias: Some(true), ..Graph::NONE },
    check: |d| {
        let first = keys::leading_dense(d);
        if d.dense_layers().len() != first {
            return Err(refused("lfm2moe", "dense layers behind layers with experts"));
        }
        Ok(())
    },
    ..GgufForm::NONE
};

/// Heads of keys by layer: layers without attention have none.
const HEADS: keys::Key = keys::Key {
    name: keys::HEAD_COUNT_KV.name,
    value: |d, _| Ok(Some(keys::per_layer(d, |l| l.attention().map_or(0, |a| a.kv_heads)))),
};

const TAPS: keys::Key = keys::Key {
    name: "shortconv.l_cache",
    value: |d, _| {
        let taps = d.layers.iter().find_map(|l| if let Mixer::Conv(c) = &l.mixer { Some(c.taps) } else { None });
        taps.map_or(Ok(None), |n| keys::count("shortconv.l_cache", n))
    },
};

/// LFM2-MoE.
pub static LFM2_MOE: Architecture = Architecture {
    title: "LFM2-MoE",
    gguf: &FORM,
    hf: "lfm2_moe",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(8)),
            ("conv_L_cache", Absent::Count(3)),
            ("layer_types", Absent::Refused),
            ("num_dense_layers", Absent::Count(2)),
            ("num_experts", Absent::Count(32)),
            ("num_experts_per_tok", Absent::Count(4)),
            ("moe_intermediate_size", Absent::Count(1792)),
            ("use_expert_bias", Absent::Flag(true)),
            ("norm_topk_prob", Absent::Flag(true)),
            ("routed_scaling_factor", Absent::Number(1.0)),
            ("tie_word_embeddings", Absent::Flag(true)),
            ("tie_embedding", Absent::Nothing),
            ("rms_norm_eps", Absent::Number(1e-5)),
            ("rope_theta", Absent::Number(1e6)),
        ],
        also: &[("norm_eps", "rms_norm_eps")],
    },
    names: Names::with(&[
        ("token_embd_norm", "model.embedding_norm"),
        ("attn_norm", "operator_norm"),
        ("attn_output", "self_attn.out_proj"),
        ("attn_q_norm", "self_attn.q_layernorm"),
        ("attn_k_norm", "self_attn.k_layernorm"),
        ("shortconv.in_proj", "conv.in_proj"),
        ("shortconv.conv", "conv.conv"),
        ("shortconv.out_proj", "conv.out_proj"),
        ("ffn_norm", "ffn_norm"),
        ("ffn_gate", "feed_forward.w1"),
        ("ffn_up", "feed_forward.w3"),
        ("ffn_down", "feed_forward.w2"),
        ("ffn_gate_inp", "feed_forward.gate"),
        ("exp_probs_b.bias", "feed_forward.expert_bias"),
        ("ffn_gate_exps", "feed_forward.experts.{}.w1"),
        ("ffn_up_exps", "feed_forward.experts.{}.w3"),
        ("ffn_down_exps", "feed_forward.experts.{}.w2"),
    ]),
    decoder,
    routing: Some(Routing {
        score: "sigmoid",
        selection_bias: "as `use_expert_bias`",
        groups: "",
        divided_by: "sum + 1e-6, as `norm_topk_prob`",
        scale: "`routed_scaling_factor`",
        source: "`modeling_lfm2_moe`",
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut c = Common::read(p)?;
    // The class has no key for it.
    c.act = Activation::Silu;
    // The config's own name of it goes first.
    c.tied = p.opt_bool("", "tie_embedding")?.unwrap_or(c.tied);
    let mut a = c.attention(p, Common::pairs(p))?;
    a.qk_norm = Some(QkNorm { over: NormOver::PerHead, after_rope: false });
    let conv = Mixer::Conv(ConvSpec { taps: p.usize("shortconv.l_cache", "conv_L_cache")? });
    let attention: Vec<bool> =
        match (p.list("attention.head_count_kv"), p.config("layer_types").and_then(|v| v.as_array())) {
            (Some(heads), _) => heads.iter().map(|n| *n > 0).collect(),
            (_, Some(types)) => types.iter().map(|t| t == "full_attention").collect(),
            _ => return Err(Error::Model("nothing says which layers are convolutions (layer_types)".into())),
        };
    if attention.len() < c.layers {
        return Err(Error::Model(format!("kinds of {} layers for {}", attention.len(), c.layers)));
    }
    let dense = p.opt_usize("leading_dense_block_count", "num_dense_layers")?.unwrap_or(0);
    let moe = moe(p, &c)?;
    let layer = |i: usize| LayerSpec {
        mixer: if attention[i] { Mixer::Attention(a.clone()) } else { conv.clone() },
        ffn: c.ffn(p, i, i < dense, &moe),
        norms: Default::default(),
    };
    let layers = (0..c.layers).map(layer).collect();
    Ok(Decoder { output_norm: "token_embd_norm", ..c.decoder(layers) })
}

fn moe(p: &Params<'_>, c: &Common) -> Result<Moe> {
    let [experts, used] = experts(p, ["num_experts", "num_experts_per_tok"])?;
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    // No key of GGUF says the next three: llama.cpp's graph renormalises, and takes the factor as 1 where there is none.
    let selection_bias = p.opt_bool("", "use_expert_bias")?.unwrap_or(true);
    let sum = p.opt_bool("", "norm_topk_prob")?.unwrap_or(true);
    let renormalise = if sum { Renormalise::SumPlus(PLUS) } else { Renormalise::No };
    let scale = p.opt_f32("", "routed_scaling_factor")?.unwrap_or(1.0);
    let family = Router { renormalise, scale, ..Router::new(experts, used, Score::Sigmoid) };
    Ok(Moe { selection_bias, ..Moe::new(router(p, family)?, c.glu(width)) })
}
