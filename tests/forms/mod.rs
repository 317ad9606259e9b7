//! The names and shapes under which files have a family's weights: the same weights give the same logits, bit by bit.

mod defaults;
mod experts;
mod gguf;
mod other;

use crate::{
    goldens::{folder, forward, golden},
    support::{Target, load},
    variants::{Data, opened, tensors},
};
use moeray::{
    file::Checkpoint,
    model::{self, Definition},
};

/// Every golden with experts of the usual shape (those of the small models of tutorials may lack a gate): one or more a family of
/// the README's table.
fn goldens() -> Vec<String> {
    let folders = std::fs::read_dir(folder("")).unwrap().map(|e| e.unwrap().path());
    let names = folders.filter(|p| p.join("config.json").is_file()).map(|p| p.file_name().unwrap().to_owned());
    let mut names: Vec<String> = names.map(|n| n.into_string().unwrap()).collect();
    names.retain(|n| n != "llama" && !n.starts_with("mini_moe"));
    names.sort();
    assert!(names.len() >= 23, "{names:?}");
    names
}

/// The logits of a model on the first tokens of a golden.
fn logits_of(d: &Definition, golden_of: &str) -> Vec<f32> {
    let mut ids = golden(golden_of).ids;
    ids.truncate(16);
    forward(&*load(Target::Reference, &d.program).unwrap(), &ids, &[ids.len()]).swap_remove(0).f32
}

fn build(ckpt: &Checkpoint) -> moeray::Result<Definition> {
    model::build(ckpt, &model::Options::default())
}

/// A folder with these tensors and a golden's config must give the golden's own logits.
#[track_caller]
fn same_as_golden(name: &str, what: &str, data: &Data) {
    let (_dir, ckpt) = opened(name, data, |_| {});
    let d = build(&ckpt).unwrap_or_else(|e| panic!("{name}, {what}: {e}"));
    let (_dir, plain) = opened(name, &tensors(name), |_| {});
    assert!(logits_of(&d, name) == logits_of(&build(&plain).unwrap(), name), "{name}, {what}: other logits");
    assert!(d.skipped.is_empty(), "{name}, {what}: {:?}", d.skipped);
}
