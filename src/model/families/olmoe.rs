//! OLMoE (Muennighoff et al. 2024): norms over the whole projections of queries and keys, weights of the chosen experts
//! not renormalised.

use crate::{
    error::{Error, Result},
    ir::{Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, by_sum, experts, router},
        decoder::{Decoder, Moe, NormOver, QkNorm},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, Renormalises, keys},
        names::Names,
        params::Params,
    },
};

static FORM: GgufForm = GgufForm {
    arch: "olmoe",
    keys: &[keys::SIZES, &[keys::EXPERT_COUNT, keys::EXPERT_USED_COUNT], keys::ROTATION],
    absent: &[("rope.freq_base", Absent::Number(10_000.0)), ("expert_weights_norm", Absent::Flag(false))],
    graph: Graph { renormalises: Renormalises::Never, ..Graph::NONE },
    ..GgufForm::NONE
};

/// OLMoE.
pub static OLMOE: Architecture = Architecture {
    title: "OLMoE",
    gguf: &FORM,
    hf: "olmoe",
    config: Config {
        keys: &[
            ("num_experts", Absent::Count(64)),
            ("num_experts_per_tok", Absent::Count(8)),
            ("norm_topk_prob", Absent::Flag(false)),
            ("clip_qkv", Absent::Nothing),
            ("rms_norm_eps", Absent::Number(1e-5)),
        ],
        also: &[("num_local_experts", "num_experts")],
    },
    names: Names::with(&[]),
    decoder,
    routing: Some(Routing {
        divided_by: "sum as `norm_topk_prob` (no)",
        source: "Muennighoff et al. 2024, `modeling_olmoe`",
        ..Routing::SOFTMAX
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let c = Common::read(p)?;
    let mut a = c.attention(p, Common::pairs(p))?;
    a.qk_norm = Some(QkNorm { over: NormOver::WholeRow, after_rope: false });
    if p.opt_f32("attention.clamp_kqv", "clip_qkv")?.is_some_and(|c| c > 0.0) {
        return Err(Error::Unsupported("clipping of queries, keys and values (clip_qkv) in OLMoE".into()));
    }
    let [experts, used] = experts(p, ["num_experts", "num_experts_per_tok"])?;
    let renormalise = by_sum(p.bool("expert_weights_norm", "norm_topk_prob")?);
    let width = p.opt_usize("expert_feed_forward_length", "")?.unwrap_or(c.ffn);
    let router = router(p, Router { renormalise, ..Router::new(experts, used, Score::Softmax) })?;
    let (moe, spans) = (Moe::new(router, c.glu(width)), c.spans(p, |_| true)?);
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, false, &moe));
    Ok(c.decoder(layers))
}
