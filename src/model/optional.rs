//! Parts of checkpoints that the text model does without: heads that predict several tokens, towers for pictures and sound.
//! They are left out by name, and said to be; anything else that a file holds beyond its architecture is an error.

/// Beginnings of names, and what is behind them.
const PARTS: &[(&str, &str)] = &[
    ("mtp.", "multi-token prediction"),
    ("model.mtp.", "multi-token prediction"),
    // ERNIE-4.5: `model.mtp_block.0…`, `model.mtp_linear_proj.0…`.
    ("model.mtp_", "multi-token prediction"),
    // GGUF files of Ollama have all of a model's parts.
    ("v.", "vision tower"),
    ("mm.", "projector of pictures"),
    ("a.", "audio tower"),
    ("visual.", "vision tower"),
    ("model.visual.", "vision tower"),
    ("vision_tower.", "vision tower"),
    ("model.vision_tower.", "vision tower"),
    ("vision_model.", "vision tower"),
    ("model.vision_model.", "vision tower"),
    ("model.vision_embedder.", "vision tower"),
    ("mm_projector.", "projector of pictures"),
    ("multi_modal_projector.", "projector of pictures"),
    ("model.multi_modal_projector.", "projector of pictures"),
    ("model.embed_vision.", "projector of pictures"),
    ("audio_tower.", "audio tower"),
    ("model.audio_tower.", "audio tower"),
    ("model.embed_audio.", "projector of sound"),
];

/// What a tensor belongs to that is left out; `None` where it must be used. It has its name in the file, and the name without what
/// stands before the text model's. `layers` stands before a layer's number, of which there are `count`: one more is a
/// multi-token prediction layer, as DeepSeek-V3 and GLM-4.5 put them behind the others (`nextn` in GGUF), where the file `has`
/// a projection or norm that only such layers have.
pub(super) fn part(names: [&str; 2], layers: &str, count: usize, has: impl Fn(&str) -> bool) -> Option<&'static str> {
    let begins = |prefix: &str| names.iter().any(|n| n.starts_with(prefix));
    if let Some((_, what)) = PARTS.iter().find(|(prefix, _)| begins(prefix)) {
        return Some(what);
    }
    let [name, _] = names;
    let number = name.strip_prefix(layers)?.split('.').next()?.parse::<usize>().ok()?;
    let marks = [".eh_proj.weight", ".nextn.eh_proj.weight", ".enorm.weight", ".nextn.enorm.weight"];
    let marked = marks.iter().any(|mark| has(&format!("{layers}{number}{mark}")));
    (number >= count && marked).then_some("multi-token prediction")
}

/// What was left out, in words: `vision tower (312 tensors)`.
pub(super) fn words(parts: &[&'static str]) -> Vec<String> {
    let mut names: Vec<&str> = parts.to_vec();
    names.sort_unstable();
    names.dedup();
    let count = |n: &str| parts.iter().filter(|p| **p == n).count();
    names.iter().map(|n| format!("{n} ({} tensors)", count(n))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_known_by_their_names() {
        let of = |name: &str, layers: &str, count: usize| {
            part([name; 2], layers, count, |n| {
                ["model.layers.4.eh_proj.weight", "blk.4.nextn.eh_proj.weight"].contains(&n)
            })
        };
        assert_eq!(of("model.visual.blocks.0.attn.qkv.weight", "model.layers.", 4), Some("vision tower"));
        assert_eq!(of("mtp.fc.weight", "model.layers.", 4), Some("multi-token prediction"));
        assert_eq!(of("model.layers.4.mlp.gate.weight", "model.layers.", 4), Some("multi-token prediction"));
        assert_eq!(of("model.layers.5.mlp.gate.weight", "model.layers.", 4), None, "more layers than the config says");
        assert_eq!(of("model.layers.3.eh_proj.weight", "model.layers.", 4), None);
        assert_eq!(of("blk.4.attn_q.weight", "blk.", 4), Some("multi-token prediction"));
        assert_eq!(of("model.strange.weight", "model.layers.", 4), None);
        assert_eq!(of("v.blk.0.attn_q.weight", "blk.", 4), Some("vision tower"));
        let nested = ["model.language_model.mtp.fc.weight", "mtp.fc.weight"];
        assert_eq!(part(nested, "model.language_model.layers.", 4, |_| false), Some("multi-token prediction"));
        assert_eq!(words(&["b", "a", "b"]), ["a (1 tensors)", "b (2 tensors)"]);
    }
}
