//! The keys of a GGUF's metadata that say what a model is, each with its value in a decoder. Their names are llama.cpp's
//! (`gguf-py/gguf/constants.py`), behind `<arch>.`.

pub(in crate::model) use super::form::Key;
use super::form::divides;
use crate::{
    error::{Error, Result},
    file::{Array, Value},
    ir::{GroupScore, Groups, Score},
    model::{
        decoder::{AttentionSpec, Decoder, DeltaSpec, LatentSpec, LayerSpec, Mixer, Span},
        rope::{Scaling, Yarn},
    },
};

/// A count as a value of 32 bits.
pub(in crate::model) fn count(key: &str, n: usize) -> Result<Option<Value>> {
    u32::try_from(n).map(|n| Some(Value::U32(n))).map_err(|_| Error::Model(format!("{key} is {n}")))
}

/// A key whose value is a count of the decoder.
macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident = $key:literal: $of:expr;)*) => {$(
        $(#[$doc])*
        pub(in crate::model) const $name: Key = Key {
            name: $key,
            value: |d, _| {
                let of: fn(&Decoder) -> Option<usize> = $of;
                of(d).map_or(Ok(None), |n| count($key, n))
            },
        };
    )*};
}

counts! {
    BLOCK_COUNT = "block_count": |d| Some(d.layers.len());
    CONTEXT_LENGTH = "context_length": |d| Some(d.context);
    EMBEDDING_LENGTH = "embedding_length": |d| Some(d.hidden);
    FEED_FORWARD_LENGTH = "feed_forward_length": |d| Some(d.ffn);
    HEAD_COUNT = "attention.head_count": |d| either(d, |a| a.heads, |m| m.heads);
    /// The latent cache is that of one key head.
    HEAD_COUNT_KV = "attention.head_count_kv": |d| either(d, |a| a.kv_heads, |_| 1);
    KEY_LENGTH = "attention.key_length": |d| either(d, |a| a.head_dim, |m| m.kv_rank + m.rope);
    VALUE_LENGTH = "attention.value_length": |d| either(d, |a| a.head_dim, |m| m.kv_rank);
    ROPE_DIMENSION_COUNT = "rope.dimension_count": |d| d.rope().map(|r| r.dims);
    KV_LORA_RANK = "attention.kv_lora_rank": |d| d.latent().map(|m| m.kv_rank);
    Q_LORA_RANK = "attention.q_lora_rank": |d| d.latent().and_then(|m| m.q_rank);
    KEY_LENGTH_MLA = "attention.key_length_mla": |d| d.latent().map(|m| m.nope + m.rope);
    VALUE_LENGTH_MLA = "attention.value_length_mla": |d| d.latent().map(|m| m.value);
    EXPERT_COUNT = "expert_count": |d| d.moe().map(|m| m.router.experts);
    EXPERT_USED_COUNT = "expert_used_count": |d| d.moe().map(|m| m.router.used);
    EXPERT_FEED_FORWARD_LENGTH = "expert_feed_forward_length": |d| d.moe().map(|m| m.experts.width);
    EXPERT_SHARED_FEED_FORWARD_LENGTH = "expert_shared_feed_forward_length": shared_width;
    EXPERT_SHARED_COUNT = "expert_shared_count": |d| Some(shared_width(d)? / d.moe()?.experts.width);
    /// llama.cpp's numbers of softmax and sigmoid.
    EXPERT_GATING_FUNC = "expert_gating_func": |d| Some(if d.moe()?.router.score == Score::Sigmoid { 2 } else { 1 });
    EXPERT_GROUP_COUNT = "expert_group_count": |d| Some(limited(d)?.count);
    EXPERT_GROUP_USED_COUNT = "expert_group_used_count": |d| Some(limited(d)?.used);
    LEADING_DENSE_BLOCK_COUNT = "leading_dense_block_count": |d| d.moe().map(|_| leading_dense(d));
    SSM_CONV_KERNEL = "ssm.conv_kernel": |d| Some(delta(d)?.taps);
    SSM_STATE_SIZE = "ssm.state_size": |d| Some(delta(d)?.k_dim);
    SSM_GROUP_COUNT = "ssm.group_count": |d| Some(delta(d)?.k_heads);
    SSM_TIME_STEP_RANK = "ssm.time_step_rank": |d| Some(delta(d)?.v_heads);
    SSM_INNER_SIZE = "ssm.inner_size": |d| Some(delta(d)?.v_heads * delta(d)?.v_dim);
    ORIGINAL_CONTEXT_LENGTH = "rope.scaling.original_context_length": |d| match &d.rope()?.scaling {
        Scaling::Yarn(y) => Some(y.original as usize),
        Scaling::Long(l) => Some(l.original),
        _ => None,
    };
}

/// The groups to which a choice is limited by what experts score.
fn limited(d: &Decoder) -> Option<Groups> {
    d.moe()?.router.groups.filter(|g| g.score != GroupScore::Own)
}

/// A key whose value is a number of the decoder.
macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident = $key:literal: $of:expr;)*) => {$(
        $(#[$doc])*
        pub(in crate::model) const $name: Key = Key {
            name: $key,
            value: |d, _| {
                let of: fn(&Decoder) -> Option<f32> = $of;
                Ok(of(d).map(Value::F32))
            },
        };
    )*};
}

numbers! {
    RMS_EPS = "attention.layer_norm_rms_epsilon": |d| Some(d.norm.eps);
    EMBEDDING_SCALE = "embedding_scale": |d| Some(d.multipliers.embedding);
    RESIDUAL_SCALE = "residual_scale": |d| Some(d.multipliers.residual);
    ATTENTION_SCALE = "attention.scale": |d| Some(d.attention()?.scale);
    LOGIT_SCALE = "logit_scale": |d| Some(1.0 / d.multipliers.logits);
    /// llama.cpp takes 30 where there is no key, and none where it is 0.
    FINAL_LOGIT_SOFTCAPPING = "final_logit_softcapping": |d| Some(d.softcap.unwrap_or(0.0));
    EXPERT_WEIGHTS_SCALE = "expert_weights_scale": |d| Some(d.moe()?.router.scale);
    ROPE_FREQ_BASE = "rope.freq_base": |d| Some(d.rope()?.base);
    SCALING_FACTOR = "rope.scaling.factor": |d| match &d.rope()?.scaling {
        Scaling::Yarn(y) => Some(y.factor),
        Scaling::Linear(f) => Some(*f),
        _ => None,
    };
    SCALING_ATTN_FACTOR = "rope.scaling.attn_factor": |d| match &d.rope()?.scaling {
        Scaling::Long(l) => Some(l.long_scale),
        _ => None,
    };
    YARN_BETA_FAST = "rope.scaling.yarn_beta_fast": |d| yarn(d).map(|y| y.beta_fast);
    YARN_BETA_SLOW = "rope.scaling.yarn_beta_slow": |d| yarn(d).map(|y| y.beta_slow);
    YARN_LOG_MULTIPLIER = "rope.scaling.yarn_log_multiplier": |d| yarn(d).map(|y| 0.1 * y.mscale_all);
}

/// Which scaling of the frequencies there is.
pub(in crate::model) const SCALING_TYPE: Key = Key {
    name: "rope.scaling.type",
    value: |d, _| {
        Ok(match d.rope().map(|r| &r.scaling) {
            Some(Scaling::Yarn(_)) => Some(Value::string("yarn")),
            Some(Scaling::Linear(_)) => Some(Value::string("linear")),
            _ => None,
        })
    },
};

/// Whether the chosen experts' weights are divided by their sum.
pub(in crate::model) const EXPERT_WEIGHTS_NORM: Key = Key {
    name: "expert_weights_norm",
    value: |d, form| Ok(d.moe().and_then(|m| divides(m, form.graph.sum_plus)).map(Value::Bool)),
};

/// The window of all layers.
pub(in crate::model) const SLIDING_WINDOW: Key = Key {
    name: "attention.sliding_window",
    value: |d, form| match windows(d).as_slice() {
        [first, rest @ ..] if rest.iter().all(|w| w == first) => first.map_or(Ok(None), |n| count("sliding_window", n)),
        [] => Ok(None),
        _ => Err(form.refused("sliding windows on some of the layers")),
    },
};

/// Every how many layers one is attention, the last of them.
pub(in crate::model) const FULL_ATTENTION_INTERVAL: Key = Key {
    name: "full_attention_interval",
    value: |d, form| {
        let attention = |l: &LayerSpec| matches!(l.mixer, Mixer::Attention(_));
        let every = d.layers.iter().position(attention).map_or(d.layers.len() + 1, |i| i + 1);
        if !d.layers.iter().enumerate().all(|(i, l)| attention(l) == (i + 1).is_multiple_of(every)) {
            return Err(form.refused("attention in other layers than every n-th"));
        }
        count("full_attention_interval", every)
    },
};

/// The keys that every architecture begins with.
pub(in crate::model) const SIZES: &[Key] = &[
    BLOCK_COUNT,
    CONTEXT_LENGTH,
    EMBEDDING_LENGTH,
    FEED_FORWARD_LENGTH,
    HEAD_COUNT,
    HEAD_COUNT_KV,
    KEY_LENGTH,
    VALUE_LENGTH,
    ROPE_DIMENSION_COUNT,
    SLIDING_WINDOW,
    RMS_EPS,
];

/// The keys of the rotation, which every architecture ends with.
pub(in crate::model) const ROTATION: &[Key] = &[
    ROPE_FREQ_BASE,
    SCALING_TYPE,
    SCALING_FACTOR,
    SCALING_ATTN_FACTOR,
    ORIGINAL_CONTEXT_LENGTH,
    YARN_BETA_FAST,
    YARN_BETA_SLOW,
];

/// The keys of recurrent layers of gated DeltaNet.
pub(in crate::model) const DELTA: &[Key] =
    &[SSM_CONV_KERNEL, SSM_STATE_SIZE, SSM_GROUP_COUNT, SSM_TIME_STEP_RANK, SSM_INNER_SIZE, FULL_ATTENTION_INTERVAL];

fn either(d: &Decoder, of: fn(&AttentionSpec) -> usize, latent: fn(&LatentSpec) -> usize) -> Option<usize> {
    d.attention().map(of).or(d.latent().map(latent))
}

fn yarn(d: &Decoder) -> Option<&Yarn> {
    if let Scaling::Yarn(y) = &d.rope()?.scaling { Some(y) } else { None }
}

fn delta(d: &Decoder) -> Option<&DeltaSpec> {
    d.layers.iter().find_map(|l| if let Mixer::Delta(s) = &l.mixer { Some(s) } else { None })
}

fn shared_width(d: &Decoder) -> Option<usize> {
    Some(d.moe()?.shared?.unit.width)
}

/// How many layers come before the first with experts.
pub(in crate::model) fn leading_dense(d: &Decoder) -> usize {
    d.layers.iter().position(|l| l.moe().is_some()).unwrap_or(d.layers.len())
}

/// The windows of layers with attention; those that no text fills are none.
pub(in crate::model) fn windows(d: &Decoder) -> Vec<Option<usize>> {
    let window = |a: &AttentionSpec| match a.span {
        Span::Window(n) if n < d.context => Some(n),
        Span::Window(_) | Span::Context | Span::AttentionChunk(_) => None,
    };
    d.layers.iter().filter_map(LayerSpec::attention).map(window).collect()
}

/// One count a layer.
pub(in crate::model) fn per_layer(d: &Decoder, of: impl Fn(&LayerSpec) -> usize) -> Value {
    Value::Array(Array::from_u32(&d.layers.iter().map(|l| of(l) as u32).collect::<Vec<u32>>()))
}
