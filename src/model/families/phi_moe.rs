//! Phi-3.5-MoE (Abdin et al. 2024; Liu et al. 2024, *GRIN*): sparsemixer routing, layer norms with bias, biases on all
//! projections and on the output, LongRoPE. Source: Hugging Face `modeling_phimoe`. llama.cpp's `phimoe` routes by a plain
//! softmax over the chosen logits instead: its logits differ from the model's, those of this engine do not.

use super::llama::MIXTRAL_STEMS;
use crate::{
    error::{Error, Result},
    ir::{NormKind, Router, Score},
    model::{
        architecture::{Architecture, Routing},
        common::{Common, experts, router},
        decoder::{Decoder, Moe},
        facts::{Absent, Config},
        gguf::{GgufForm, Graph, Renormalises, keys, refused},
        names::Names,
        params::Params,
    },
};

/// Jitter that the released models were trained with; llama.cpp has no key for it.
const JITTER: f32 = 0.01;

static FORM: GgufForm = GgufForm {
    arch: "phimoe",
    keys: &[keys::SIZES, &[keys::EXPERT_COUNT, keys::EXPERT_USED_COUNT], keys::ROTATION],
    graph: Graph {
        any_norm: true,
        score: Some(Score::SparseMixer { threshold: 2.0 * JITTER }),
        renormalises: Renormalises::Never,
        ..Graph::NONE
    },
    check: |d| {
        if !d.dense_layers().is_empty() {
            return Err(refused("phimoe", "layers without experts"));
        }
        tracing::warn!(
            "llama.cpp's graph of `phimoe` routes by a softmax over the chosen logits and divides by the root mean square \
             where the model has sparsemixer routing and layer norms: its results will differ, this engine's will not"
        );
        Ok(())
    },
    ..GgufForm::NONE
};

/// Phi-3.5-MoE.
pub static PHI_MOE: Architecture = Architecture {
    title: "Phi-3.5-MoE",
    gguf: &FORM,
    hf: "phimoe",
    config: Config {
        keys: &[
            ("num_key_value_heads", Absent::Count(8)),
            ("num_local_experts", Absent::Count(16)),
            ("num_experts_per_tok", Absent::Count(2)),
            ("router_jitter_noise", Absent::Number(0.01)),
            ("sliding_window", Absent::Nothing),
            ("rms_norm_eps", Absent::Number(1e-5)),
            ("rope_theta", Absent::Number(1e6)),
        ],
        also: &[],
    },
    names: Names::with(MIXTRAL_STEMS),
    decoder,
    routing: Some(Routing {
        score: "sparsemixer",
        divided_by: "no",
        source: "Liu et al. 2024 (GRIN), `modeling_phimoe`",
        ..Routing::SOFTMAX
    }),
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut c = Common::read(p)?;
    c.norm.kind = NormKind::Layer;
    let a = c.attention(p, Common::pairs(p))?;
    let jitter = p.opt_f32("", "router_jitter_noise")?.unwrap_or(JITTER);
    let [experts, used] = experts(p, ["num_local_experts", "num_experts_per_tok"])?;
    if used != 2 {
        return Err(Error::Unsupported(format!("top {used} in Phi-3.5-MoE: its routing is of two experts")));
    }
    let width = p.opt_usize("expert_feed_forward_length", "")?.unwrap_or(c.ffn);
    let router = router(p, Router::new(experts, used, Score::SparseMixer { threshold: 2.0 * jitter }))?;
    let (moe, spans) = (Moe::new(router, c.glu(width)), c.spans(p, |_| true)?);
    let layers = c.layers(&a, &spans, |i| c.ffn(p, i, false, &moe));
    Ok(c.decoder(layers))
}
