//! The rooms import one way: every `crate::` path in the sources against the table below.

use std::{collections::BTreeMap, fs, path::Path};

/// Room → the rooms that it may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("quant", &["error"]),
    ("file", &["error", "quant"]),
    ("tokenizer", &["error", "file"]),
    ("ir", &[]),
    ("ops", &["ir", "file", "quant"]),
    ("graph", &["error", "ir", "ops", "file"]),
    ("model", &["error", "ir", "ops", "graph", "file", "quant", "tokenizer"]),
    ("kernels", &["error", "ir", "quant"]),
    ("plan", &["error", "ir", "ops", "graph", "kernels", "file", "quant", "backend::KvType"]),
    // The oracle and the CPU path do not go through the plan: a bug of the memory planner must not hide on both sides.
    ("backend/reference", &["error", "ir", "ops", "graph"]),
    ("backend/cpu", &["error", "ir", "ops", "graph", "file", "quant"]),
    ("backend/wgpu", &["error", "ir", "ops", "graph", "kernels", "plan", "file", "quant"]),
    ("backend/mod", &["error", "graph", "ir"]),
    ("routing", &["error", "ir", "backend::Output"]),
    ("session", &["error", "backend", "model", "file", "tokenizer", "routing"]),
    ("batch", &["error", "backend", "session"]),
    ("sampler", &["error"]),
    ("generate", &["error", "session", "sampler", "tokenizer"]),
];

/// The rooms that `text` names: what follows `crate::`, also inside braces, outside comments.
fn named(text: &str) -> Vec<String> {
    let code: String = text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join(" ");
    let path = |s: &str| -> String {
        s.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect()
    };
    let mut found = vec![];
    for after in code.split("crate::").skip(1) {
        if !after.trim_start().starts_with('{') {
            found.push(path(after));
            continue;
        }
        let (mut depth, mut start, body) = (0, 1, after.trim_start());
        for (i, c) in body.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if (depth == 1 && c == ',') || depth == 0 {
                found.push(path(&body[start..i]));
                start = i + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    found.retain(|f| f.starts_with(|c: char| c.is_lowercase()));
    found
}

fn check(file: &str, text: &str) -> Vec<String> {
    let room = ARROWS.iter().find(|(r, _)| file.starts_with(&format!("{r}/")) || file.starts_with(&format!("{r}.")));
    let Some((room, allowed)) = room else { return vec![] };
    let own = room.split('/').next().unwrap_or(room);
    named(text)
        .into_iter()
        .filter(|n| {
            let first = n.split("::").next().unwrap_or(n);
            // Within its own folder a backend names the shared traits of `backend`, not its neighbours.
            let neighbour = ["backend::cpu", "backend::reference", "backend::wgpu"].iter().any(|b| n.starts_with(b));
            let at_home =
                first == own && (own != "backend" || !neighbour || n.contains(room.rsplit('/').next().unwrap()));
            !at_home && !allowed.iter().any(|a| *a == first || n.starts_with(a))
        })
        .map(|n| format!("{file} names {n}"))
        .collect()
}

fn sources() -> BTreeMap<String, String> {
    fn walk(dir: &Path, root: &Path, all: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, root, all);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
                all.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let (root, mut all) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), BTreeMap::new());
    walk(&root, &root, &mut all);
    all
}

#[test]
fn rooms_import_one_way() {
    let wrong: Vec<String> = sources().iter().flat_map(|(file, text)| check(file, text)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_a_wrong_arrow() {
    assert_eq!(check("ops/x.rs", "use crate::backend::Program;").len(), 1);
    assert_eq!(check("quant/x.rs", "use crate::{\n    error::{Error, Result},\n    file::Tensor,\n};").len(), 1);
    assert_eq!(check("backend/cpu/x.rs", "use crate::plan::Plan;").len(), 1);
    assert_eq!(check("backend/cpu/x.rs", "use crate::backend::wgpu::Gpu;").len(), 1);
    assert!(check("quant/x.rs", "use crate::error::Result; // not crate::file").is_empty());
}
