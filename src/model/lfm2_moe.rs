//! LFM2-MoE: most layers mix tokens by a short convolution between two gates, some by attention with a norm of every head of
//! queries and keys; the first layers are dense, the others choose experts by sigmoid scores plus a selection bias.
//!
//! Sources: Hugging Face `modeling_lfm2_moe` (1e-6 is added to the sum of the chosen weights); llama.cpp's `lfm2moe`, where
//! a layer without heads of keys is a convolution, and the last norm is called that of the embedding.

use super::{
    Architecture, Decoder, Names, Params, QkNorm,
    decoder::{Moe, router},
    recurrent::Mixer,
};
use crate::{
    error::{Error, Result},
    ir::{Renormalise, Router, Score},
    ops::short_conv::MOST_TAPS,
};

/// LFM2-MoE.
pub static LFM2_MOE: Architecture = Architecture {
    title: "LFM2-MoE",
    gguf: Some("lfm2moe"),
    hf: Some("lfm2_moe"),
    decoder,
    names: Names {
        layers: "model.layers.",
        stems: &[
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
        ],
    },
};

fn decoder(p: &Params<'_>) -> Result<Decoder> {
    let mut d = Decoder::common(p)?;
    d.qk_norm = QkNorm::PerHead;
    d.output_norm = "token_embd_norm";
    if !p.is_gguf() {
        // The config's own name of it goes first; both default to true.
        let tied = p.opt_bool("", "tie_embedding")?.or(p.opt_bool("", "tie_word_embeddings")?);
        d.tied = tied.unwrap_or(true);
    }
    let taps = p.usize("shortconv.l_cache", "conv_L_cache")?;
    if !(2..=MOST_TAPS).contains(&taps) {
        return Err(Error::Model(format!("short convolutions of {taps} taps")));
    }
    let conv = Mixer::Conv { taps };
    d.mixers = match (p.list("attention.head_count_kv"), p.config("layer_types").and_then(|v| v.as_array())) {
        (Some(heads), _) => heads.iter().map(|n| if *n == 0 { conv } else { Mixer::Attention }).collect(),
        (_, Some(types)) => types.iter().map(|t| if t == "full_attention" { Mixer::Attention } else { conv }).collect(),
        _ => return Err(Error::Model("nothing says which layers are convolutions (layer_types)".into())),
    };
    if d.mixers.len() != d.layers {
        return Err(Error::Model(format!("kinds of {} layers for {}", d.mixers.len(), d.layers)));
    }
    let (experts, used) =
        (p.usize("expert_count", "num_experts")?, p.usize("expert_used_count", "num_experts_per_tok")?);
    let width = p.usize("expert_feed_forward_length", "moe_intermediate_size")?;
    let dense = p.opt_usize("leading_dense_block_count", "num_dense_layers")?.unwrap_or(2);
    // No key of GGUF says the next three: llama.cpp's graph renormalises, and takes the factor as 1 where there is none.
    let selection_bias = p.opt_bool("", "use_expert_bias")?.unwrap_or(true);
    let sum = p.opt_bool("", "norm_topk_prob")?.unwrap_or(true);
    let renormalise = if sum { Renormalise::SumPlus(1e-6) } else { Renormalise::No };
    let scale = p.opt_f32("", "routed_scaling_factor")?.unwrap_or(1.0);
    let family = Router { renormalise, scale, ..Router::new(experts, used, Score::Sigmoid) };
    let (router, dense_layers) = (router(p, family)?, (0..dense.min(d.layers)).collect());
    d.moe = Some(Moe { router, selection_bias, width, shared: None, dense_layers });
    Ok(d)
}
