//! DeepSeek-V2, V2-Lite, V3 and R1, and Kimi-K2, which has V3's shape: latent attention, shared experts, the first layers
//! dense. V2 scores by softmax and limits the choice to groups by their best expert; V3 by sigmoid with a selection bias, and by
//! a group's two best. Sources: DeepSeek-AI 2024 (*DeepSeek-V2*, *DeepSeek-V3*), Hugging Face `modeling_deepseek_v2` and
//! `modeling_deepseek_v3`; keys and names of llama.cpp's `deepseek2`, which is all of them.

use super::deepseek_moe::{self, STEMS, moe};
use crate::{
    error::{Error, Result},
    ir::{GroupScore, Renormalise, RopePairs, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, scoring},
        decoder::{Decoder, LatentSpec, LayerSpec, Mixer},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, keys},
        names::Names,
        params::Params,
        rope::Scaling,
        rope_params,
    },
};

static FORM: GgufForm = GgufForm {
    arch: "deepseek2",
    keys: &[
        keys::SIZES,
        &[
            keys::KV_LORA_RANK,
            keys::Q_LORA_RANK,
            keys::KEY_LENGTH_MLA,
            keys::VALUE_LENGTH_MLA,
            keys::YARN_LOG_MULTIPLIER,
        ],
        deepseek_moe::KEYS,
        keys::ROTATION,
    ],
    graph: Graph { selection_bias: None, ..deepseek_moe::FORM.graph },
    check: |d| {
        if d.moe().and_then(|m| m.router.groups).is_some_and(|g| g.score == GroupScore::Max) {
            tracing::warn!(
                "llama.cpp scores the groups of every model by their two best experts, this one's are by their best: its \
                 choice of experts will differ, this engine's will not"
            );
        }
        (deepseek_moe::FORM.check)(d)
    },
    ..deepseek_moe::FORM
};

/// Keys that a published config may have, and that the classes of transformers do not know: what differs from what the
/// architecture does is refused.
const SAID: [(&str, Absent); 2] = [("scoring_func", Absent::Nothing), ("moe_layer_freq", Absent::Nothing)];

/// DeepSeek-V2 and V2-Lite.
pub static DEEPSEEK_V2: Architecture = Architecture {
    title: "DeepSeek-V2",
    gguf: &FORM,
    hf: "deepseek_v2",
    config: Config {
        keys: &[
            SAID[0],
            SAID[1],
            ("n_routed_experts", Absent::Count(64)),
            ("num_experts_per_tok", Absent::Nothing),
            ("moe_intermediate_size", Absent::Count(1407)),
            ("n_shared_experts", Absent::Count(2)),
            ("first_k_dense_replace", Absent::Count(0)),
            ("n_group", Absent::Nothing),
            ("topk_group", Absent::Nothing),
            ("topk_method", Absent::Text("greedy")),
            ("norm_topk_prob", Absent::Flag(false)),
            ("routed_scaling_factor", Absent::Number(1.0)),
            ("kv_lora_rank", Absent::Count(512)),
            ("q_lora_rank", Absent::Count(1536)),
            ("qk_nope_head_dim", Absent::Count(128)),
            ("qk_rope_head_dim", Absent::Count(64)),
            ("v_head_dim", Absent::Count(128)),
        ],
        also: &[("num_experts", "n_routed_experts")],
    },
    names: Names::with(STEMS),
    decoder: v2,
    routing: Some(Routing {
        groups: "best expert (`group_limited_greedy`), or none",
        divided_by: "no",
        scale: "`routed_scaling_factor`",
        source: "DeepSeek-AI 2024, `modeling_deepseek_v2`",
        ..Routing::SOFTMAX
    }),
};

const V3: Config = Config {
    keys: &[
        SAID[0],
        SAID[1],
        ("n_routed_experts", Absent::Count(256)),
        ("num_experts_per_tok", Absent::Count(8)),
        ("moe_intermediate_size", Absent::Count(2048)),
        ("n_shared_experts", Absent::Count(1)),
        ("first_k_dense_replace", Absent::Count(3)),
        ("n_group", Absent::Count(8)),
        ("topk_group", Absent::Count(4)),
        ("norm_topk_prob", Absent::Flag(true)),
        ("routed_scaling_factor", Absent::Number(2.5)),
        ("kv_lora_rank", Absent::Count(512)),
        ("q_lora_rank", Absent::Count(1536)),
        ("qk_nope_head_dim", Absent::Count(128)),
        ("qk_rope_head_dim", Absent::Count(64)),
        ("v_head_dim", Absent::Count(128)),
        ("rope_interleave", Absent::Flag(true)),
    ],
    also: &[("num_local_experts", "n_routed_experts")],
};

/// The router of V3, which other families took over.
pub(super) const V3_ROUTING: Routing = Routing {
    score: "sigmoid",
    selection_bias: "yes",
    groups: "sum of top two",
    divided_by: "sum + 1e-20, as `norm_topk_prob`",
    scale: "`routed_scaling_factor`",
    source: "DeepSeek-AI 2024, `modeling_deepseek_v3`",
};

/// DeepSeek-V3 and R1.
pub static DEEPSEEK_V3: Architecture = Architecture {
    title: "DeepSeek-V3",
    gguf: &FORM,
    hf: "deepseek_v3",
    config: V3,
    names: Names::with(STEMS),
    decoder: v3,
    routing: Some(V3_ROUTING),
};

/// Kimi-K2: DeepSeek-V3 by another name.
pub static KIMI_K2: Architecture = Architecture {
    title: "Kimi-K2",
    gguf: &FORM,
    hf: "kimi_k2",
    config: V3,
    names: Names::with(STEMS),
    decoder: v3,
    routing: Some(V3_ROUTING),
};

/// V2; in GGUF, where both have one name, also V3: what the file says of its router tells them apart.
fn v2(p: &Params<'_>) -> Result<Decoder> {
    let biased = p.is_gguf() && p.any_tensor(|n| n.contains(".exp_probs_b"));
    let score = match scoring(p)? {
        Some(score) => score,
        // Files of V2 are older than the key. A selection bias came with V3: then softmax would be a guess.
        None if !biased => Score::Softmax,
        None => {
            return Err(Error::Model(format!("{}.expert_gating_func is missing beside a selection bias", p.arch)));
        }
    };
    let v3_like = score != Score::Softmax || biased;
    decoder(p, score, if v3_like { GroupScore::TopTwo } else { GroupScore::Max }, biased)
}

fn v3(p: &Params<'_>) -> Result<Decoder> {
    decoder(p, Score::Sigmoid, GroupScore::TopTwo, true)
}

fn decoder(p: &Params<'_>, score: Score, group: GroupScore, biased: bool) -> Result<Decoder> {
    let rope = p.usize("rope.dimension_count", "qk_rope_head_dim")?;
    let c = Common::with_head_dim(p, rope)?;
    let latent = latent(p, &c, rope)?;
    // V2's `greedy` ignores the groups that its config has.
    let greedy = p.opt_str("", "topk_method")?.as_deref() == Some("greedy");
    let (mut moe, dense) = moe(p, &c, score, (!greedy).then_some(group), biased)?;
    if !biased && group == GroupScore::Max && !p.is_gguf() {
        // `modeling_deepseek_v2` does not renormalise, whatever the config says.
        moe.router.renormalise = Renormalise::No;
    }
    let layer = |i| LayerSpec {
        mixer: Mixer::Latent(latent.clone()),
        ffn: c.ffn(p, i, i < dense, &moe),
        norms: Default::default(),
    };
    let layers = (0..c.layers).map(layer).collect();
    Ok(c.decoder(layers))
}

/// Latent attention, from Hugging Face's config or llama.cpp's keys, of which older files lack the `_mla` ones.
fn latent(p: &Params<'_>, c: &Common, rope: usize) -> Result<LatentSpec> {
    let kv_rank = p.usize("attention.kv_lora_rank", "kv_lora_rank")?;
    let q_rank = p.opt_usize("attention.q_lora_rank", "q_lora_rank")?.filter(|n| *n > 0);
    let (nope, value) = if p.is_gguf() {
        let size = |key: &str| match p.opt_usize(&format!("{key}_mla"), "")? {
            Some(n) => Ok(n),
            None => p.usize(key, ""),
        };
        let key = size("attention.key_length")?;
        let nope = key.checked_sub(rope).filter(|n| *n > 0);
        let nope = nope.ok_or_else(|| Error::Model(format!("keys of {key} columns, of which {rope} rotate")))?;
        (nope, size("attention.value_length")?)
    } else {
        (p.usize("", "qk_nope_head_dim")?, p.usize("", "v_head_dim")?)
    };
    let interleaved = p.opt_bool("", "rope_interleave")?.unwrap_or(true);
    let pairs = if interleaved { RopePairs::Interleaved } else { RopePairs::Halves };
    let mut rotation = rope_params::rope(p, rope, pairs)?;
    // A factor that a GGUF may have besides, and that llama.cpp's graph applies to the rotation and to all dot products.
    let own = p.opt_f32("rope.scaling.attn_factor", "")?.unwrap_or(1.0);
    if own <= 0.0 {
        return Err(Error::Model(format!("{own} as a factor of the rotation")));
    }
    if p.is_gguf() {
        // DeepSeek's two factors, which cancel, are kept to themselves by llama.cpp's files.
        rotation.scale = own;
    }
    // A longer context sharpens the softmax (YaRN's temperature), by DeepSeek's own factor.
    let sharpened = match &rotation.scaling {
        Scaling::Yarn(y) if y.mscale_all != 0.0 && y.factor > 1.0 => 0.1 * y.mscale_all * y.factor.ln() + 1.0,
        _ => 1.0,
    };
    let mscale = sharpened * own;
    let scale = mscale * mscale / ((nope + rope) as f32).sqrt();
    Ok(LatentSpec { heads: c.heads, kv_rank, q_rank, nope, rope, value, scale, rotation })
}
