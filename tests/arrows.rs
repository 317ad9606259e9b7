//! The rooms import one way, and no files of a room go in a circle: every path in the sources against the table below.

mod paths;

use paths::{Arrow, Crate, module_of};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Room → what it may name: rooms, or single items of rooms. A room is a file or a folder of `src/`; the backends are three
/// rooms beside the one of their common traits. Rooms stand below those that they name.
const ARROWS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("cancel", &["error"]),
    ("memory", &[]),
    ("threads", &["error"]),
    ("sampler", &["error"]),
    ("quant", &["error", "threads"]),
    ("file", &["error", "threads", "quant"]),
    ("tokenizer", &["error", "file"]),
    ("tools", &["error", "tokenizer"]),
    ("grammar", &["error", "tokenizer", "tools"]),
    ("ir", &[]),
    ("ops", &["ir", "file", "quant"]),
    ("graph", &["error", "ir", "ops", "file"]),
    ("model", &["error", "threads", "ir", "ops", "graph", "file", "quant", "tokenizer"]),
    ("kernels", &["error", "ir", "quant"]),
    ("backend", &["error", "sampler", "graph", "ir", "ops", "file", "quant"]),
    ("plan", &["error", "ir", "ops", "graph", "kernels", "file", "quant"]),
    // The oracle and the CPU path do not go through the plan: a bug of the memory planner must not hide on both sides.
    ("backend/reference", &["error", "ir", "ops", "graph", "quant::KvType", "backend"]),
    ("backend/cpu", &["error", "memory", "ir", "ops", "graph", "file", "quant", "backend"]),
    (
        "backend/wgpu",
        &["error", "threads", "sampler::Sampling", "ir", "ops", "graph", "kernels", "plan", "file", "quant", "backend"],
    ),
    ("hub", &["error", "cancel"]),
    ("routing", &["error", "ir", "backend::Output"]),
    (
        "session",
        &[
            "error",
            "cancel",
            "memory",
            "ir",
            "graph",
            "sampler",
            "quant::KvType",
            "backend",
            "backend/reference",
            "backend/cpu",
            "backend/wgpu",
            "model",
            "file",
            "tokenizer",
            "routing",
            "quant::KvType",
        ],
    ),
    ("generate", &["error", "cancel", "session", "sampler", "tokenizer", "grammar"]),
    ("chat", &["error", "generate", "session", "sampler", "tokenizer", "tools"]),
    (
        "train",
        &[
            "error",
            "cancel",
            "memory",
            "threads",
            "sampler",
            "quant",
            "file",
            "tokenizer",
            "ir",
            "ops",
            "graph",
            "model",
            "backend",
            "backend/reference",
            "backend/cpu",
            "backend/wgpu",
            "routing",
        ],
    ),
    (
        "serve",
        &[
            "error",
            "backend",
            "sampler",
            "ir",
            "routing",
            "tokenizer",
            "tools",
            "grammar",
            "session",
            "generate",
            "file::write_whole",
        ],
    ),
];

/// What stands above all rooms: it may name anything.
const ABOVE: &[&str] = &["cli", "main", "lib"];

/// Circles of files that are still there, by room: to be struck as they are mended, and none to be added.
const KNOWN_CIRCLES: &[(&str, &[&str])] = &[];

/// The room of a file below `src/`.
fn room_of(file: &str) -> &str {
    let name = |s: &'_ str| s.len() - s.trim_end_matches(".rs").len();
    let own = ["backend/reference", "backend/cpu", "backend/wgpu"];
    match own.into_iter().find(|r| file.strip_prefix(r).is_some_and(|rest| rest.starts_with(['/', '.']))) {
        Some(room) => room,
        None => file.split('/').next().map_or(file, |first| &first[..first.len() - name(first)]),
    }
}

/// Arrows between rooms that the table does not have.
fn wrong_arrows(all: &BTreeSet<Arrow>) -> Vec<String> {
    let allowed = |room: &str, a: &Arrow| {
        let to = room_of(&a.named);
        let Some((_, row)) = ARROWS.iter().find(|(r, _)| *r == room) else { return true };
        room == to || row.iter().any(|r| *r == to || *r == format!("{to}::{}", a.item))
    };
    let between = all.iter().filter(|a| !allowed(room_of(&a.from), a));
    between
        .map(|a| format!("{} names {} of {}", a.from, if a.item.is_empty() { "the module" } else { &a.item }, a.named))
        .collect()
}

/// What is wrong with the table itself: rooms without a row, rows without a room, a room that stands above one that it
/// names (so the rooms go in no circle), and exceptions that nothing needs any more.
fn wrong_table(files: &[&str], all: &BTreeSet<Arrow>) -> Vec<String> {
    let rooms: BTreeSet<&str> = files.iter().map(|f| room_of(f)).collect();
    let table: BTreeSet<&str> = ARROWS.iter().map(|r| r.0).chain(ABOVE.iter().copied()).collect();
    let missing = rooms.difference(&table).map(|r| format!("the room {r} has no row in the table"));
    let empty = table.difference(&rooms).map(|r| format!("the table has a row for {r}, which is no room"));
    let order = |room: &str| ARROWS.iter().position(|r| r.0 == room);
    let named = || ARROWS.iter().flat_map(|(room, row)| row.iter().map(move |to| (*room, *to)));
    let upward = named()
        .filter(|(room, to)| order(to.split("::").next().unwrap_or(to)).is_none_or(|at| Some(at) >= order(room)))
        .map(|(room, to)| format!("{room} may name {to}, which does not stand above it"));
    let used = |room: &str, to: &str, item: &str| {
        all.iter().any(|a| room_of(&a.from) == room && room_of(&a.named) == to && a.item == item)
    };
    let idle = named()
        .filter(|(room, to)| to.split_once("::").is_some_and(|(to, item)| !used(room, to, item)))
        .map(|(room, to)| format!("{room} no longer names {to}"));
    missing.chain(empty).chain(upward).chain(idle).collect()
}

/// Files of one room that name each other's items in a circle, each circle with its room. A module and its parent may.
fn circles(all: &BTreeSet<Arrow>) -> Vec<(String, Vec<String>)> {
    let is_parent = |a: &str, b: &str| module_of(b).split_last().is_some_and(|(_, parent)| parent == module_of(a));
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for a in all.iter().filter(|a| !a.item.is_empty() && room_of(&a.from) == room_of(&a.to)) {
        if !is_parent(&a.from, &a.to) && !is_parent(&a.to, &a.from) {
            next.entry(&a.from).or_default().insert(&a.to);
        }
    }
    let mut from: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for start in next.keys() {
        let (mut seen, mut open) = (BTreeSet::new(), vec![*start]);
        while let Some(at) = open.pop() {
            open.extend(next.get(at).into_iter().flatten().filter(|to| seen.insert(**to)).copied());
        }
        from.insert(start, seen);
    }
    let together = |f: &str| -> Vec<String> {
        let back = from[f].iter().filter(|g| from.get(*g).is_some_and(|r| r.contains(f)));
        back.map(|g| g.to_string()).collect()
    };
    let found: BTreeSet<_> = from.keys().map(|f| (room_of(f).to_string(), together(f))).collect();
    found.into_iter().filter(|c| !c.1.is_empty()).collect()
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

fn arrows(files: &BTreeMap<String, String>) -> BTreeSet<Arrow> {
    let all = Crate::read(files.iter().map(|(f, t)| (f.as_str(), t.as_str())));
    all.arrows(|file| Some(room_of(file)).filter(|r| *r != "lib"))
}

#[test]
fn rooms_import_one_way() {
    let files = sources();
    let all = arrows(&files);
    let mut wrong = wrong_table(&files.keys().map(String::as_str).collect::<Vec<_>>(), &all);
    wrong.extend(wrong_arrows(&all));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_go_in_a_circle() {
    let all = arrows(&sources());
    let found = circles(&all);
    let known = |(room, files): &(&str, &[&str])| {
        (room.to_string(), files.iter().map(|f| format!("{room}/{f}")).collect::<Vec<_>>())
    };
    let known: Vec<_> = KNOWN_CIRCLES.iter().map(known).collect();
    let mended: Vec<_> = known.iter().filter(|c| !found.contains(c)).collect();
    assert!(
        mended.is_empty(),
        "no circles any more, to be struck from KNOWN_CIRCLES (or they have changed): {mended:#?}"
    );
    let new: Vec<_> = found.iter().filter(|c| !known.contains(c)).collect();
    let within = |a: &&Arrow| new.iter().any(|c| c.1.contains(&a.from) && c.1.contains(&a.to) && !a.item.is_empty());
    let why: Vec<String> =
        all.iter().filter(within).map(|a| format!("{} names {} of {}", a.from, a.item, a.to)).collect();
    assert!(new.is_empty(), "files that name each other in a circle: {new:#?}\n{}", why.join("\n"));
}

/// What the check of rooms says of made-up sources.
fn said(files: &[(&str, &str)]) -> Vec<String> {
    wrong_arrows(&arrows(&files.iter().map(|(f, t)| (f.to_string(), t.to_string())).collect()))
}

#[test]
fn the_check_sees_a_wrong_arrow() {
    let rest = [
        ("lib.rs", "pub use error::Error;"),
        ("error.rs", "pub struct Error;"),
        ("plan/mod.rs", "pub struct Plan; pub fn plan() {}"),
        ("file/mod.rs", "pub struct Tensor; pub mod gguf;"),
        ("file/gguf.rs", "pub struct Reader; macro_rules! hidden { () => {} }"),
        ("backend/mod.rs", "pub mod wgpu; pub mod cpu; pub trait Loaded {}"),
        ("backend/wgpu/mod.rs", "pub struct Gpu; pub mod device;"),
        ("backend/wgpu/device.rs", "pub struct Device;"),
        ("backend/cpu/mod.rs", "pub struct Options;"),
        ("session.rs", "pub use crate::backend::wgpu::Gpu; pub struct Session;"),
    ];
    let wrong = |file: &str, text: &str| {
        let all: Vec<_> = rest.iter().copied().chain([(file, text)]).collect();
        said(&all).len()
    };
    assert_eq!(wrong("ops/x.rs", "fn f() {}"), 0);
    for (file, text) in [
        ("ops/x.rs", "use crate::backend::Loaded;"),
        ("ops/x.rs", "pub use crate::backend::Loaded as Other;"),
        ("ops/x.rs", "use crate::backend;"),
        ("ops/x.rs", "use crate::backend::*;"),
        ("ops/x.rs", "fn f() { let p = crate::plan::plan(); }"),
        ("ops/x.rs", "fn f() { matches!(x, crate::plan::Plan { .. }) }"),
        ("ops/x.rs", "fn f(p: &'static crate::plan::Plan) {}"),
        ("ops/x.rs", "mod inner { use super::super::super::plan::Plan; }"),
        ("ops/x.rs", "use super::super::plan::Plan;"),
        ("ops/x.rs", "use super::super::{plan::Plan, file::Tensor};"),
        ("ops/x.rs", "#[cfg(unix)] use crate::{file::{self, Tensor}, plan::{self}};"),
        ("ops/x.rs", "use crate as all; fn f() { all::plan::plan() }"),
        ("quant/x.rs", "use crate::{\n    error::{Error, Result},\n    file::Tensor,\n};"),
        ("backend/cpu/x.rs", "use crate::plan::Plan;"),
        ("backend/cpu/x.rs", "use crate::backend::wgpu::Gpu;"),
        ("backend/cpu/x.rs", "use super::super::wgpu;"),
        ("backend/cpu/x.rs", "use super::super::wgpu::device::Device;"),
        ("backend/cpu/x.rs", "use crate::backend; fn f(g: backend::wgpu::Gpu) {}"),
        ("backend/cpu/x.rs", "use super::super::*; fn f(g: wgpu::Gpu) {}"),
        ("backend/batch.rs", "use super::wgpu::Gpu;"),
        ("routing/x.rs", "use crate::backend::Loaded;"),
        ("generate.rs", "use crate::backend::wgpu::Gpu;"),
    ] {
        assert!(wrong(file, text) > 0, "{file}: {text}");
    }
    for (file, text) in [
        (
            "quant/x.rs",
            "use crate::error::Result; // not crate::file\n/// nor [`crate::file`]\nconst C: &str = \"crate::plan\";",
        ),
        ("quant/x.rs", "use crate::Error; pub(crate) fn f(plan: u32) -> u32 { self.file.plan + file::x() }"),
        ("backend/cpu/x.rs", "use super::{Options, super::Loaded}; use crate::backend::cpu;"),
        ("backend/wgpu/x.rs", "use wgpu::Device; use crate::plan; fn f(p: plan::Plan) {}"),
        ("generate.rs", "use crate::session::{Session, Gpu};"),
        ("cli/mod.rs", "use crate::{backend::wgpu::Gpu, plan::Plan};"),
    ] {
        let all: Vec<_> = rest.iter().copied().chain([(file, text)]).collect();
        assert!(said(&all).is_empty(), "{file}: {text}: {:?}", said(&all));
    }
}

#[test]
fn the_check_sees_a_room_without_a_row() {
    let files = sources();
    let all = arrows(&files);
    let mut names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert!(wrong_table(&names, &all).is_empty());
    names.push("nowhere/mod.rs");
    assert_eq!(wrong_table(&names, &all).len(), 1);
    names.retain(|f| !f.starts_with("nowhere") && !f.starts_with("ops/"));
    assert!(wrong_table(&names, &all).iter().any(|w| w.contains("ops, which is no room")));
    let without: BTreeSet<Arrow> = all.into_iter().filter(|a| room_of(&a.from) != "routing").collect();
    assert!(wrong_table(&names, &without).iter().any(|w| w.contains("routing no longer names")));
}

#[test]
fn the_check_sees_a_circle() {
    let found = |files: &[(&str, &str)]| {
        circles(&arrows(&files.iter().map(|(f, t)| (f.to_string(), t.to_string())).collect()))
            .into_iter()
            .map(|c| c.1)
            .collect::<Vec<_>>()
    };
    let parent = ("plan/mod.rs", "mod a; mod b; mod c; pub use b::B; pub struct Plan;");
    // By `super`, by a re-export of the parent, by a glob and by a bare path.
    for a in ["use super::b::B;", "use super::B;", "use super::*; fn f(b: B) {}", "use super::b; fn f() { b::g() }"] {
        let two = [parent, ("plan/a.rs", a), ("plan/b.rs", "pub struct B; use super::a::A; pub fn g() {}")];
        assert_eq!(found(&two), [["plan/a.rs", "plan/b.rs"]], "{a}");
    }
    let three = [
        parent,
        ("plan/a.rs", "pub const A: u32 = super::b::N;"),
        ("plan/b.rs", "pub const N: u32 = crate::plan::c::N;"),
        ("plan/c.rs", "use super::a::{self, A};"),
    ];
    assert_eq!(found(&three), [["plan/a.rs", "plan/b.rs", "plan/c.rs"]]);
    // A child and its parent may, the names of modules alone say nothing, and one way is no circle.
    assert!(found(&[("plan/mod.rs", "mod a; use a::A;"), ("plan/a.rs", "use super::Plan; pub struct A;")]).is_empty());
    assert!(found(&[parent, ("plan/a.rs", "use super::b;"), ("plan/b.rs", "use super::a::A;")]).is_empty());
    assert!(found(&[parent, ("plan/a.rs", "use super::b::B;"), ("plan/b.rs", "pub struct B;")]).is_empty());
    // A grandchild may not.
    let far = [
        ("plan/mod.rs", "mod a; pub struct Plan; use a::x::X;"),
        ("plan/a/mod.rs", "pub mod x;"),
        ("plan/a/x.rs", "use crate::plan::Plan; pub struct X;"),
    ];
    assert_eq!(found(&far), [["plan/a/x.rs", "plan/mod.rs"]]);
}
