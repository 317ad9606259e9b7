//! Mixes: which format each tensor of a model gets under a name such as `Q4_K_M`.
//!
//! The rules are llama.cpp's (`llama_tensor_get_type_impl`, `tensor_allows_quantization` and `tensor_type_fallback` in
//! `src/llama-quant.cpp`), so that files are as large and as good as people expect under a name. In short:
//!
//! - Kept as they are (F32 from a checkpoint that is no GGUF): everything of one dimension, norms, routers
//!   (`ffn_gate_inp`), convolutions of state-space layers, and what does not end in `weight`.
//! - The output head, and token embeddings that serve as one: Q6_K; Q8_0 in a Q8_0 or MXFP4 mix, and where a row is no
//!   whole number of the mix's blocks.
//! - `attn_v` (also merged `attn_qkv` and `attn_kv_b`), `attn_output` and `ffn_down` get more bits in the `_M` and `_L`
//!   mixes and in some layers of the `_S` mixes; "more bits" layers are the first and the last eighth and every third
//!   between.
//! - Models of exactly eight experts: `attn_k` and `attn_v` Q8_0, `attn_output` Q5_K below Q5.
//! - MXFP4: tensors of experts alone; all else Q8_0.
//! - TQ1_0 and TQ2_0: token embeddings Q4_K.
//! - Where a row is no whole number of 256-weight blocks: Q2_K, Q3_K, TQ1_0 and TQ2_0 become Q4_0, Q4_K Q5_0, Q5_K Q5_1, Q6_K Q8_0,
//!   IQ4_XS IQ4_NL; and F16 where it is no multiple of 32 either.
//!
//! Not followed: rules for importance matrices, for the Falcon architecture, and for Llama-2-70B by name. Where a model has
//! attention in some layers only, llama.cpp counts those layers; here the number of the layer itself decides.

use super::DType;

/// A named mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, non_camel_case_types)]
pub enum Mix {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    MXFP4_MOE,
    TQ1_0,
    TQ2_0,
}

/// What the rules need to know of a model.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Layers (`block_count`).
    pub layers: usize,
    /// Experts of a layer; zero for a dense model.
    pub experts: usize,
    /// Query heads for one key-value head.
    pub heads_per_kv: usize,
    /// There is no `output.weight`: the token embeddings are the output head too.
    pub tied: bool,
}

impl Mix {
    /// Every mix.
    pub const ALL: [Mix; 22] = [
        Mix::F32,
        Mix::F16,
        Mix::BF16,
        Mix::Q4_0,
        Mix::Q4_1,
        Mix::Q5_0,
        Mix::Q5_1,
        Mix::Q8_0,
        Mix::Q2_K,
        Mix::Q3_K_S,
        Mix::Q3_K_M,
        Mix::Q3_K_L,
        Mix::Q4_K_S,
        Mix::Q4_K_M,
        Mix::Q5_K_S,
        Mix::Q5_K_M,
        Mix::Q6_K,
        Mix::IQ4_NL,
        Mix::IQ4_XS,
        Mix::MXFP4_MOE,
        Mix::TQ1_0,
        Mix::TQ2_0,
    ];

    /// The name, the format that most tensors get, and the number in a GGUF's `general.file_type` (`enum llama_ftype` in
    /// `llama.h`).
    const fn row(self) -> (&'static str, DType, u32) {
        match self {
            Mix::F32 => ("F32", DType::F32, 0),
            Mix::F16 => ("F16", DType::F16, 1),
            Mix::BF16 => ("BF16", DType::BF16, 32),
            Mix::Q4_0 => ("Q4_0", DType::Q4_0, 2),
            Mix::Q4_1 => ("Q4_1", DType::Q4_1, 3),
            Mix::Q5_0 => ("Q5_0", DType::Q5_0, 8),
            Mix::Q5_1 => ("Q5_1", DType::Q5_1, 9),
            Mix::Q8_0 => ("Q8_0", DType::Q8_0, 7),
            Mix::Q2_K => ("Q2_K", DType::Q2K, 10),
            Mix::Q3_K_S => ("Q3_K_S", DType::Q3K, 11),
            Mix::Q3_K_M => ("Q3_K_M", DType::Q3K, 12),
            Mix::Q3_K_L => ("Q3_K_L", DType::Q3K, 13),
            Mix::Q4_K_S => ("Q4_K_S", DType::Q4K, 14),
            Mix::Q4_K_M => ("Q4_K_M", DType::Q4K, 15),
            Mix::Q5_K_S => ("Q5_K_S", DType::Q5K, 16),
            Mix::Q5_K_M => ("Q5_K_M", DType::Q5K, 17),
            Mix::Q6_K => ("Q6_K", DType::Q6K, 18),
            Mix::IQ4_NL => ("IQ4_NL", DType::IQ4NL, 25),
            Mix::IQ4_XS => ("IQ4_XS", DType::IQ4XS, 30),
            Mix::MXFP4_MOE => ("MXFP4_MOE", DType::MXFP4, 38),
            Mix::TQ1_0 => ("TQ1_0", DType::TQ1_0, 36),
            Mix::TQ2_0 => ("TQ2_0", DType::TQ2_0, 37),
        }
    }

    /// The name, as in `--type`.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// The format that most tensors get.
    pub const fn main(self) -> DType {
        self.row().1
    }

    /// The number in a GGUF's `general.file_type`.
    pub const fn file_type(self) -> u32 {
        self.row().2
    }

    /// The mix called `name`, upper or lower case. A K-quant without a letter means its `_M` mix, as in llama.cpp.
    pub fn from_name(name: &str) -> Option<Mix> {
        let full = match name.to_ascii_uppercase().as_str() {
            "Q3_K" => "Q3_K_M",
            "Q4_K" => "Q4_K_M",
            "Q5_K" => "Q5_K_M",
            "MXFP4" => "MXFP4_MOE",
            _ => name,
        };
        Mix::ALL.into_iter().find(|m| m.name().eq_ignore_ascii_case(full))
    }

    /// The format of the tensor called `name` (as GGUF names it) of row-major `shape` (`[out, in]`,
    /// `[experts, out, in]`, `[n]`). `None`: keep its type; from a checkpoint that is no GGUF, write F32.
    pub fn choose(self, model: &Model, name: &str, shape: &[usize]) -> Option<DType> {
        if !is_quantised(name, shape) {
            return None;
        }
        let cols = *shape.last()?;
        if self.main().is_float() {
            return Some(self.main());
        }
        Some(fallback(self.by_role(model, name, shape, cols), cols))
    }

    /// The format that [`Mix::choose`] would give the tensor if its rows were long enough: where the two differ, the rows are no whole
    /// number of that format's blocks.
    pub fn wanted(self, model: &Model, name: &str, shape: &[usize]) -> Option<DType> {
        if !is_quantised(name, shape) || self.main().is_float() {
            return self.choose(model, name, shape);
        }
        Some(self.by_role(model, name, shape, *shape.last()?))
    }

    /// The format before the row length is looked at (but for the output head, where llama.cpp looks first).
    fn by_role(self, model: &Model, name: &str, shape: &[usize], cols: usize) -> DType {
        let main = self.main();
        let role = Role::of(name);
        if role == Role::Output || (role == Role::Embeddings && model.tied) {
            let eight = matches!(self, Mix::Q8_0 | Mix::MXFP4_MOE) || !cols.is_multiple_of(main.layout().block);
            return if eight { DType::Q8_0 } else { DType::Q6K };
        }
        if self == Mix::MXFP4_MOE {
            let experts = shape.len() > 2 && shape[shape.len() - 3] > 1;
            return if experts { DType::MXFP4 } else { DType::Q8_0 };
        }
        if role == Role::Embeddings && matches!(self, Mix::TQ1_0 | Mix::TQ2_0) {
            return DType::Q4K;
        }
        let layer = layer_of(name).unwrap_or(0);
        match role {
            Role::Values if model.experts == 8 => DType::Q8_0,
            Role::Keys if model.experts == 8 => DType::Q8_0,
            Role::Values => self.values(model, layer).unwrap_or(main),
            Role::AttentionOutput => self.attention_output(model).unwrap_or(main),
            Role::Down => self.down(model, layer).unwrap_or(main),
            Role::Keys | Role::Output | Role::Embeddings | Role::Other => main,
        }
    }

    /// `attn_v`, where it differs from the mix's main format.
    fn values(self, model: &Model, layer: usize) -> Option<DType> {
        let grouped = model.heads_per_kv >= 4;
        match self {
            Mix::Q2_K if grouped => Some(DType::Q4K),
            Mix::Q2_K => Some(DType::Q3K),
            Mix::Q3_K_M if layer < 2 => Some(DType::Q5K),
            Mix::Q3_K_M => Some(DType::Q4K),
            Mix::Q3_K_L => Some(DType::Q5K),
            Mix::IQ4_NL | Mix::IQ4_XS if grouped => Some(DType::Q5K),
            Mix::Q4_K_M | Mix::Q5_K_M if more_bits(layer, model.layers) => Some(DType::Q6K),
            Mix::Q4_K_S if layer < 4 => Some(DType::Q5K),
            _ => None,
        }
    }

    /// `attn_output`, where it differs from the mix's main format.
    fn attention_output(self, model: &Model) -> Option<DType> {
        use Mix::{IQ4_NL, IQ4_XS, Q2_K, Q3_K_L, Q3_K_M, Q3_K_S, Q4_K_M, Q4_K_S};
        match self {
            Q2_K | Q3_K_S | Q3_K_M | Q4_K_S | Q4_K_M | IQ4_NL | IQ4_XS if model.experts == 8 => Some(DType::Q5K),
            _ if model.experts == 8 => None,
            Q2_K => Some(DType::Q3K),
            Q3_K_M => Some(DType::Q4K),
            Q3_K_L => Some(DType::Q5K),
            _ => None,
        }
    }

    /// `ffn_down` of any kind, where it differs from the mix's main format.
    fn down(self, model: &Model, layer: usize) -> Option<DType> {
        let first_eighth = layer < model.layers / 8;
        match self {
            Mix::Q2_K => Some(DType::Q3K),
            Mix::Q3_K_M if layer < model.layers / 16 => Some(DType::Q5K),
            Mix::Q3_K_M => Some(DType::Q4K),
            Mix::Q3_K_L => Some(DType::Q5K),
            Mix::Q4_K_M | Mix::Q5_K_M if more_bits(layer, model.layers) => Some(DType::Q6K),
            Mix::IQ4_NL | Mix::IQ4_XS | Mix::Q4_K_S if first_eighth => Some(DType::Q5K),
            _ => None,
        }
    }
}

/// What a tensor is for, as far as the rules differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Output,
    Embeddings,
    Values,
    Keys,
    AttentionOutput,
    Down,
    Other,
}

impl Role {
    fn of(name: &str) -> Role {
        let has = |part: &str| name.contains(part);
        match name {
            "output.weight" => Role::Output,
            "token_embd.weight" | "per_layer_token_embd.weight" => Role::Embeddings,
            _ if has("attn_qkv.weight") || has("attn_kv_b.weight") || has("attn_v.weight") => Role::Values,
            _ if has("attn_k.weight") => Role::Keys,
            _ if has("attn_output.weight") => Role::AttentionOutput,
            _ if has("ffn_down") => Role::Down,
            _ => Role::Other,
        }
    }
}

/// Whether a tensor is quantised at all.
fn is_quantised(name: &str, shape: &[usize]) -> bool {
    // Small, or harmed by rounding.
    const KEPT: [&str; 12] = [
        "_norm.weight",
        "ffn_gate_inp.weight",
        "ssm_conv1d",
        "shortconv.conv.weight",
        "indexer.k_proj.weight",
        "indexer.q_proj.weight",
        "attn_rel_b.weight",
        "per_layer_model_proj",
        "altup",
        "laurel",
        "position_embd",
        "token_types",
    ];
    let dimensions = shape.iter().skip_while(|&&n| n == 1).count();
    dimensions >= 2 && name.ends_with("weight") && !KEPT.iter().any(|k| name.contains(k))
}

/// The layer in `blk.N.`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// The layers that are worth more bits: the first and the last eighth, and every third between.
fn more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// A format of smaller blocks where `cols` is no whole number of `dtype`'s.
fn fallback(dtype: DType, cols: usize) -> DType {
    if cols.is_multiple_of(dtype.layout().block) {
        return dtype;
    }
    // llama.cpp names one for every format of 256; blocks of 32 and 64 are the smallest there are.
    let smaller = match dtype {
        DType::Q2K | DType::Q3K | DType::TQ1_0 | DType::TQ2_0 => DType::Q4_0,
        DType::Q4K => DType::Q5_0,
        DType::Q5K => DType::Q5_1,
        DType::Q6K => DType::Q8_0,
        DType::IQ1S
        | DType::IQ1M
        | DType::IQ2XXS
        | DType::IQ2XS
        | DType::IQ2S
        | DType::IQ3XXS
        | DType::IQ3S
        | DType::IQ4XS => DType::IQ4NL,
        DType::F32
        | DType::F16
        | DType::BF16
        | DType::Q4_0
        | DType::Q4_1
        | DType::Q5_0
        | DType::Q5_1
        | DType::Q8_0
        | DType::IQ4NL
        | DType::MXFP4
        | DType::NVFP4 => DType::F16,
    };
    if cols.is_multiple_of(smaller.layout().block) { smaller } else { DType::F16 }
}
