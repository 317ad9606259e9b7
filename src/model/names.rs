//! Tensor names outside GGUF.

/// Names that Llama's checkpoints brought and most others keep.
const COMMON: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    // The same norm, as llama.cpp calls it in some families.
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
    ("ffn_up_exps", "mlp.experts.{}.up_proj"),
    ("ffn_down_exps", "mlp.experts.{}.down_proj"),
    // Qwen2-MoE's: one, behind a gate.
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
];

/// Before a layer's number in most Hugging Face checkpoints.
pub(super) const LAYERS: &str = "model.layers.";

/// How a Hugging Face file stores experts' matrices that lie in one tensor. GGUF has one way only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpertLayout {
    /// `[E, out, in]`; merged, the rows of the gate come before those of up.
    #[default]
    Rows,
    /// `[E, in, out]`; merged, the columns of the gate come before those of up.
    Columns,
    /// `[E, in, out]`; merged, columns of gate and up alternate. As MXFP4 (`_blocks` and `_scales`) these are rows.
    InterleavedColumns,
}

/// How Hugging Face (or PyTorch code) calls what GGUF calls by the canonical names.
pub struct Names {
    /// What stands before a layer's number.
    pub layers: &'static str,
    /// Where a family differs from the names that most share: from canonical stem (`attn_q`, `ffn_gate_exps`) to the file's,
    /// `{}` standing for the expert. A stem with an ending (`attn_sinks.weight`) stands for the whole name.
    pub stems: &'static [(&'static str, &'static str)],
    /// How experts that lie in one tensor are stored.
    pub experts: ExpertLayout,
}

impl Names {
    /// The names that most families have, but for these.
    pub const fn with(stems: &'static [(&'static str, &'static str)]) -> Names {
        Names { layers: LAYERS, stems, experts: ExpertLayout::Rows }
    }

    /// The file's stem of a canonical one: the family's own, or else the common one.
    pub fn find(&self, stem: &str) -> Option<&'static str> {
        self.stems.iter().chain(COMMON).find(|(c, _)| *c == stem).map(|(_, n)| *n)
    }
}
