//! The shapes of well-known models: the numbers are those of their `config.json`, the graphs those of their architectures.

use super::shape::Shape;
use crate::error::{Error, Result};

const BASE: Shape = Shape {
    name: "",
    arch: "qwen3moe",
    layers: 24,
    hidden: 1024,
    heads: 16,
    kv_heads: 8,
    head_dim: 64,
    experts: 32,
    used: 8,
    expert_width: 512,
    shared_width: 0,
    vocab: 49152,
    tied: false,
    context: 4096,
    rope_base: 10_000.0,
    eps: 1e-6,
    window: 0,
    yarn: None,
    multipliers: None,
    weights: "Q4_K_M",
};

/// Both sizes of GPT-OSS, but for their layers and experts.
const GPT_OSS: Shape = Shape {
    arch: "gpt-oss",
    hidden: 2880,
    heads: 64,
    used: 4,
    expert_width: 2880,
    vocab: 201_088,
    context: 131_072,
    rope_base: 150_000.0,
    eps: 1e-5,
    window: 128,
    yarn: Some((32.0, 4096)),
    weights: "MXFP4_MOE",
    ..BASE
};

/// The shapes that [`Shape::preset`] knows.
pub const PRESETS: [Shape; 9] = [
    Shape { name: "moe-1b-a400m", ..BASE },
    Shape {
        name: "qwen3-30b-a3b",
        layers: 48,
        hidden: 2048,
        heads: 32,
        kv_heads: 4,
        head_dim: 128,
        experts: 128,
        expert_width: 768,
        vocab: 151_936,
        context: 40_960,
        rope_base: 1e6,
        ..BASE
    },
    Shape {
        name: "olmoe-1b-7b",
        arch: "olmoe",
        layers: 16,
        hidden: 2048,
        kv_heads: 16,
        head_dim: 128,
        experts: 64,
        expert_width: 1024,
        vocab: 50_304,
        eps: 1e-5,
        ..BASE
    },
    Shape {
        name: "granite-3.1-1b-a400m",
        arch: "granitemoe",
        vocab: 49_155,
        tied: true,
        context: 131_072,
        rope_base: 1.5e6,
        multipliers: Some([12.0, 0.22, 0.015625, 6.0]),
        ..BASE
    },
    Shape { name: "gpt-oss-20b", ..GPT_OSS },
    Shape { name: "gpt-oss-120b", layers: 36, experts: 128, ..GPT_OSS },
    Shape {
        name: "mixtral-8x7b",
        arch: "llama",
        layers: 32,
        hidden: 4096,
        heads: 32,
        head_dim: 128,
        experts: 8,
        used: 2,
        expert_width: 14_336,
        vocab: 32_000,
        context: 32_768,
        rope_base: 1e6,
        eps: 1e-5,
        ..BASE
    },
    Shape {
        name: "qwen1.5-moe-a2.7b",
        arch: "qwen2moe",
        hidden: 2048,
        kv_heads: 16,
        head_dim: 128,
        experts: 60,
        used: 4,
        expert_width: 1408,
        shared_width: 5632,
        vocab: 151_936,
        context: 8192,
        rope_base: 1e6,
        ..BASE
    },
    // For tests.
    Shape {
        name: "tiny",
        layers: 2,
        hidden: 256,
        heads: 4,
        kv_heads: 2,
        experts: 4,
        used: 2,
        expert_width: 256,
        vocab: 320,
        context: 512,
        ..BASE
    },
];

impl Shape {
    /// The preset called `name`.
    ///
    /// # Errors
    /// [`Error::Invalid`] that lists the presets.
    pub fn preset(name: &str) -> Result<Shape> {
        PRESETS.iter().find(|s| s.name == name).cloned().ok_or_else(|| {
            let known: Vec<_> = PRESETS.iter().map(|s| s.name).collect();
            Error::Invalid(format!("there is no synthetic model `{name}`; there are {}", known.join(", ")))
        })
    }
}
