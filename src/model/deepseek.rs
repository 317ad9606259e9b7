//! DeepSeek-V2, V2-Lite, V3 and R1, and Kimi-K2, which has V3's shape: latent attention ([`super::mla`]), shared experts, the
//! first layers dense. V2 scores by softmax and limits the choice to groups by their best expert; V3 by sigmoid with a
//! selection bias, and by a group's two best. Sources: DeepSeek-AI 2024 (*DeepSeek-V2*, *DeepSeek-V3*), Hugging Face
//! `modeling_deepseek_v2` and `modeling_deepseek_v3`; keys and names of llama.cpp's `deepseek2`, which is all of them.

use super::{
    Architecture, Decoder, Names, Params,
    decoder::scoring,
    deepseek_moe::{STEMS, moe},
    llama,
    mla::Latent,
};
use crate::{
    error::{Error, Result},
    ir::{GroupScore, Renormalise, RopePairs, Score},
};

/// DeepSeek-V2 and V2-Lite.
pub static DEEPSEEK_V2: Architecture = Architecture {
    title: "DeepSeek-V2",
    gguf: Some("deepseek2"),
    hf: Some("deepseek_v2"),
    decoder: v2,
    names: Names { layers: llama::LAYERS, stems: STEMS },
};

/// DeepSeek-V3 and R1.
pub static DEEPSEEK_V3: Architecture = Architecture {
    title: "DeepSeek-V3",
    gguf: Some("deepseek2"),
    hf: Some("deepseek_v3"),
    decoder: v3,
    names: Names { layers: llama::LAYERS, stems: STEMS },
};

/// Kimi-K2: DeepSeek-V3 by another name.
pub static KIMI_K2: Architecture = Architecture {
    title: "Kimi-K2",
    gguf: Some("deepseek2"),
    hf: Some("kimi_k2"),
    decoder: v3,
    names: Names { layers: llama::LAYERS, stems: STEMS },
};

/// V2; in GGUF, where both have one name, also V3: what the file says of its router tells them apart.
fn v2(p: &Params<'_>) -> Result<Decoder> {
    let biased = p.is_gguf() && p.any_tensor(|n| n.ends_with(".exp_probs_b.bias"));
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
    let latent = Latent::read(p)?;
    let mut d = Decoder::with_head_dim(p, latent.rope)?;
    let interleaved = p.opt_bool("", "rope_interleave")?.unwrap_or(true);
    d.pairs = if interleaved { RopePairs::Interleaved } else { RopePairs::Halves };
    d.kv_heads = 1;
    d.latent = Some(latent);
    // V2's `greedy` ignores the groups that its config has.
    let greedy = p.opt_str("", "topk_method")?.as_deref() == Some("greedy");
    let mut m = moe(p, score, (!greedy).then_some(group), biased)?;
    if !biased && group == GroupScore::Max && !p.is_gguf() {
        // `modeling_deepseek_v2` does not renormalise, whatever the config says.
        m.router.renormalise = Renormalise::No;
    }
    d.moe = Some(m);
    d.without_predictors(p)?;
    Ok(d)
}
