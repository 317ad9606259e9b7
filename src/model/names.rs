//! Tensor names: what a family's weights are called in the files that people have.
//!
//! A weight has one canonical name here, GGUF's (`blk.3.ffn_down_exps.weight`). Outside GGUF it has the name of the published
//! checkpoint, and often that of the module that transformers 5 has in memory, which `save_pretrained` may write
//! (`save_original_format=False`); GGUF files that Ollama made spell some names otherwise than llama.cpp. All of them are data:
//! lists of pairs, the usual name first. Which of them a file has decides.

/// Names that Llama's checkpoints brought and most others keep.
const COMMON: &[(&str, &str)] = &[
    ("token_embd", "model.embed_tokens"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    // The same norm, as llama.cpp calls it in some families.
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_gate_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
    ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
    ("ffn_up_exps", "mlp.experts.{}.up_proj"),
    ("ffn_down_exps", "mlp.experts.{}.down_proj"),
    ("ffn_gate_up_exps.weight", "mlp.experts.gate_up_proj"),
    ("ffn_down_exps.weight", "mlp.experts.down_proj"),
    // Qwen2-MoE's: one, behind a gate.
    ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
    ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
    ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
    ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
];

/// What a GGUF may call a weight beside llama.cpp's name: Ollama's spellings (the `alt` names of its models), and what its first
/// converters wrote. A stem or a whole name, as in [`Names::stems`].
const GGUF: &[(&str, &str)] = &[
    ("ssm_dt.bias", "ssm_dt"),
    ("ssm_dt.bias", "ssm_dt.weight"),
    ("ssm_a", "ssm_a.weight"),
    ("ssm_ba", "ssm_beta_alpha"),
    ("exp_probs_b.bias", "exp_probs_b"),
    ("exp_probs_b.bias", "exp_probs_b.weight"),
    ("attn_sinks.weight", "attn_sinks"),
    ("attn_output", "attn_out"),
    ("ffn_gate_inp", "gate_inp"),
    ("ffn_down_exps.scale", "ffn_gate_inp.per_expert_scale"),
    ("layer_output_scale.weight", "layer_output_scale"),
    ("token_embd_norm", "output_norm"),
    // Files of early 2024: a tensor an expert.
    ("ffn_gate_exps", "ffn_gate.{}"),
    ("ffn_up_exps", "ffn_up.{}"),
    ("ffn_down_exps", "ffn_down.{}"),
];

/// Before a layer's number in most Hugging Face checkpoints.
pub(super) const LAYERS: &str = "model.layers.";

/// Before a layer's number in GGUF.
const GGUF_LAYERS: &str = "blk.";

/// Where a Hugging Face file may have the text model: what stands in the place of `model.` before its body, and before what lies
/// beside the body (`lm_head`). Models that also see put it one level down; the body alone, saved without its head, has nothing.
const ROOTS: &[[&str; 2]] = &[
    ["model.", ""],
    ["model.language_model.", ""],
    ["language_model.model.", "language_model."],
    ["model.language_model.model.", "model.language_model."],
    ["model.text_model.", ""],
    ["language_model.", ""],
    ["thinker.model.", "thinker."],
    ["", ""],
];

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
    /// `{}` standing for the expert. A stem with an ending (`attn_sinks.weight`) stands for the whole name. Several names of
    /// one stem follow each other, that of the published checkpoints first.
    pub stems: &'static [(&'static str, &'static str)],
    /// How experts that lie in one tensor are stored, where their shapes do not tell.
    pub experts: ExpertLayout,
}

impl Names {
    /// The names that most families have, but for these.
    pub const fn with(stems: &'static [(&'static str, &'static str)]) -> Names {
        Names { layers: LAYERS, stems, experts: ExpertLayout::Rows }
    }

    /// The names that a canonical name may have in a Hugging Face file, the usual one first: `blk.3.attn_q.weight` →
    /// `model.layers.3.self_attn.q_proj.weight`. `{}` stands for the number of an expert.
    pub fn candidates(&self, canonical: &str) -> Vec<String> {
        let (layer, rest) = split(canonical);
        let own: Vec<String> = self.stems.iter().filter_map(|pair| named(pair, rest)).collect();
        let all = if own.is_empty() { COMMON.iter().filter_map(|pair| named(pair, rest)).collect() } else { own };
        let all = if all.is_empty() { vec![rest.to_string()] } else { all };
        match layer {
            Some(n) => all.into_iter().map(|name| format!("{}{n}.{name}", self.layers)).collect(),
            None => all,
        }
    }

    /// How many names of tensors are known for this family outside GGUF.
    pub fn known(&self) -> usize {
        let stem = |c: &'static str| c.split('.').next().unwrap_or(c);
        let own = |c: &str| self.stems.iter().any(|(s, _)| *s == c);
        self.stems.len() + COMMON.iter().filter(|(c, _)| !own(c) && !own(stem(c))).count()
    }
}

/// The names that a canonical name may have in a GGUF, llama.cpp's first.
pub(super) fn gguf_candidates(canonical: &str) -> Vec<String> {
    let (layer, rest) = split(canonical);
    let further = GGUF.iter().filter_map(|pair| named(pair, rest)).map(|name| match layer {
        Some(n) => format!("{GGUF_LAYERS}{n}.{name}"),
        None => name,
    });
    std::iter::once(canonical.to_string()).chain(further).collect()
}

/// `blk.3.attn_q.weight` → `3` and `attn_q.weight`.
fn split(canonical: &str) -> (Option<&str>, &str) {
    match canonical.strip_prefix(GGUF_LAYERS).and_then(|r| r.split_once('.')) {
        Some((n, rest)) => (Some(n), rest),
        None => (None, canonical),
    }
}

/// The name that a pair gives to `rest` (`attn_q.weight`): the pair's own for a whole name, with the ending for a stem, and with
/// the number in the place of the braces where `rest` is one of several (`ffn_gate_shexp.0.weight`).
fn named((canonical, name): &(&str, &str), rest: &str) -> Option<String> {
    if *canonical == rest {
        return Some(name.to_string());
    }
    let (stem, ending) = rest.rsplit_once('.')?;
    if *canonical == stem {
        return Some(format!("{name}.{ending}"));
    }
    let (base, n) = stem.rsplit_once('.')?;
    (*canonical == base).then(|| format!("{}.{ending}", name.replace("{}", n)))
}

/// Where a file has the text model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Root([&'static str; 2]);

impl Root {
    /// The root of a file in which `table` is what the embedding is called at the usual place; `has` says whether a tensor is
    /// there, `begins` whether the name of one begins so.
    pub fn of(table: &str, has: impl Fn(&str) -> bool, begins: impl Fn(&str) -> bool) -> Root {
        let roots = || ROOTS.iter().copied().map(Root);
        let found = roots().find(|r| has(&r.place(table.to_string())));
        // Without an embedding the message about it should name the right place.
        let nested = || roots().rev().find(|r| r.0[0].contains("language") && begins(r.0[0]));
        found.or_else(nested).unwrap_or(Root(ROOTS[0]))
    }

    /// A name at the usual place as it is at this one.
    pub fn place(self, name: String) -> String {
        let [body, beside] = self.0;
        match name.strip_prefix(ROOTS[0][0]) {
            Some(rest) => format!("{body}{rest}"),
            None => format!("{beside}{name}"),
        }
    }

    /// The name without what this root puts before it.
    pub fn strip(self, name: &str) -> &str {
        self.0.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_endings_and_numbers() {
        let names = Names::with(&[
            ("ffn_gate_inp", "moe.router"),
            ("ffn_gate_inp", "mlp.gate"),
            ("attn_sinks.weight", "self_attn.sinks"),
            ("ffn_gate_shexp", "shared.{}.w1"),
        ]);
        let of = |canonical: &str| names.candidates(canonical);
        assert_eq!(of("token_embd.weight"), ["model.embed_tokens.weight"]);
        assert_eq!(of("blk.7.ffn_gate_inp.bias"), ["model.layers.7.moe.router.bias", "model.layers.7.mlp.gate.bias"]);
        assert_eq!(of("blk.0.attn_sinks.weight"), ["model.layers.0.self_attn.sinks"]);
        assert_eq!(of("blk.0.ffn_gate_shexp.2.weight"), ["model.layers.0.shared.2.w1.weight"]);
        assert_eq!(
            of("blk.1.ffn_down_exps.weight"),
            ["model.layers.1.mlp.experts.{}.down_proj.weight", "model.layers.1.mlp.experts.down_proj"]
        );
        assert_eq!(gguf_candidates("blk.2.ssm_dt.bias"), ["blk.2.ssm_dt.bias", "blk.2.ssm_dt", "blk.2.ssm_dt.weight"]);
    }

    #[test]
    fn the_text_model_is_found_where_its_embedding_is() {
        let root = |table: &'static str| Root::of("model.embed_tokens.weight", |n| n == table, |_| false);
        let of = |table, name: &str| root(table).place(name.to_string());
        assert_eq!(of("model.embed_tokens.weight", "lm_head.weight"), "lm_head.weight");
        assert_eq!(of("embed_tokens.weight", "model.layers.0.x"), "layers.0.x");
        assert_eq!(of("language_model.model.embed_tokens.weight", "lm_head.weight"), "language_model.lm_head.weight");
        assert_eq!(
            of("model.language_model.embed_tokens.weight", "model.norm.weight"),
            "model.language_model.norm.weight"
        );
        assert_eq!(root("embed_tokens.weight").strip("mtp.fc.weight"), "mtp.fc.weight");
        assert_eq!(root("language_model.model.embed_tokens.weight").strip("language_model.mtp.x"), "mtp.x");
    }
}
