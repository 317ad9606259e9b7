//! Parts of checkpoints that the text model does without: heads that predict several tokens, towers for pictures and sound.
//! They are left out by name, and said to be; anything else that a file holds beyond its architecture is an error.

/// Beginnings of names, and what is behind them.
const PARTS: &[(&str, &str)] = &[
    ("mtp.", "multi-token prediction"),
    ("model.mtp.", "multi-token prediction"),
    ("visual.", "vision tower"),
    ("model.visual.", "vision tower"),
    ("vision_tower.", "vision tower"),
    ("model.vision_tower.", "vision tower"),
    ("vision_model.", "vision tower"),
    ("model.vision_model.", "vision tower"),
    ("model.vision_embedder.", "vision tower"),
    ("multi_modal_projector.", "projector of pictures"),
    ("model.multi_modal_projector.", "projector of pictures"),
    ("model.embed_vision.", "projector of pictures"),
    ("audio_tower.", "audio tower"),
    ("model.audio_tower.", "audio tower"),
    ("model.embed_audio.", "projector of sound"),
];

/// What a tensor belongs to that is left out; `None` where it must be used. `layers` stands before a layer's number, of
/// which there are `count`: more are the multi-token prediction layers that DeepSeek-V3 and GLM-4.5 put behind the others
/// (`nextn` in GGUF).
pub(super) fn part(name: &str, layers: &str, count: usize) -> Option<&'static str> {
    if let Some((_, what)) = PARTS.iter().find(|(prefix, _)| name.starts_with(prefix)) {
        return Some(what);
    }
    let number = name.strip_prefix(layers)?.split('.').next()?.parse::<usize>().ok()?;
    (number >= count || name.contains(".nextn.")).then_some("multi-token prediction")
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
        assert_eq!(part("model.visual.blocks.0.attn.qkv.weight", "model.layers.", 4), Some("vision tower"));
        assert_eq!(part("mtp.fc.weight", "model.layers.", 4), Some("multi-token prediction"));
        assert_eq!(part("model.layers.4.eh_proj.weight", "model.layers.", 4), Some("multi-token prediction"));
        assert_eq!(part("model.layers.3.eh_proj.weight", "model.layers.", 4), None);
        assert_eq!(part("blk.4.nextn.eh_proj.weight", "blk.", 5), Some("multi-token prediction"));
        assert_eq!(part("model.strange.weight", "model.layers.", 4), None);
        assert_eq!(words(&["b", "a", "b"]), ["a (1 tensors)", "b (2 tensors)"]);
    }
}
