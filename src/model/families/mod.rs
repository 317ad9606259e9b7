//! The architectures: a file each, or one for a few that share most. A file holds what makes the family its own (names, keys,
//! defaults, router, GGUF form) and how its decoder is read.

mod bailing_moe_v2;
mod deepseek;
mod deepseek_moe;
mod dots1;
mod ernie4_5_moe;
mod gemma4;
mod glm4_moe;
mod gpt_oss;
mod granite_moe;
mod hunyuan_moe;
mod lfm2_moe;
mod llama;
mod llama4;
mod mini_mixtral;
mod minimax_m2;
mod olmoe;
mod phi_moe;
mod qwen2_moe;
mod qwen3_moe;
mod qwen3_next;

pub use mini_mixtral::NAME as MINI_MIXTRAL;

use super::architecture::Architecture;

/// Every architecture that can be run, in the order of the README's table.
pub static REGISTRY: &[&Architecture] = &[
    &llama::LLAMA,
    &llama::MISTRAL,
    &llama::MIXTRAL,
    &llama4::LLAMA4,
    &qwen2_moe::QWEN2_MOE,
    &qwen3_moe::QWEN3_MOE,
    &qwen3_next::QWEN3_NEXT,
    &qwen3_next::QWEN3_5_MOE,
    &lfm2_moe::LFM2_MOE,
    &olmoe::OLMOE,
    &gpt_oss::GPT_OSS,
    &phi_moe::PHI_MOE,
    &granite_moe::GRANITE_MOE,
    &granite_moe::GRANITE_MOE_SHARED,
    &deepseek::DEEPSEEK_V2,
    &deepseek::DEEPSEEK_V3,
    &deepseek::KIMI_K2,
    &ernie4_5_moe::ERNIE4_5_MOE,
    &gemma4::GEMMA4,
    &glm4_moe::GLM4_MOE,
    &dots1::DOTS1,
    &minimax_m2::MINIMAX_M2,
    &hunyuan_moe::HUNYUAN_MOE,
    &bailing_moe_v2::BAILING_MOE_V2,
    &mini_mixtral::MINI_MIXTRAL,
];
