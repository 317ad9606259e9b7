//! What the crate promises: the items of its documentation against `tests/data/public_api.txt`; `MOERAY_BLESS=1` writes it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The items that rustdoc lists, as `session::Session (struct)`.
fn documented(html: &str) -> BTreeSet<String> {
    let links = html.split("<li><a href=\"").skip(1).filter_map(|l| l.split('"').next());
    let item = |link: &str| {
        let path = link.strip_suffix(".html")?;
        let (module, name) = path.rsplit_once('/').unwrap_or(("", path));
        let (kind, name) = name.split_once('.')?;
        let module = if module.is_empty() { String::new() } else { module.replace('/', "::") + "::" };
        Some(format!("{module}{name} ({kind})"))
    };
    links.filter_map(item).collect()
}

#[test]
fn the_public_items_are_those_of_the_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // `tests/run` has checked the dependencies already, in a folder of its own.
    let target = ["MOERAY_LINTS_TARGET", "CARGO_TARGET_DIR"].into_iter().find_map(std::env::var_os);
    let target = target.map_or_else(|| root.join("target"), PathBuf::from);
    let run = Command::new(env!("CARGO"))
        // With an example, whose dependencies have the features of the lints: they are not checked once more.
        .args(["doc", "--no-deps", "--lib", "--example", "cancel", "--locked", "--quiet"])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTDOCFLAGS", "-D warnings")
        .current_dir(root)
        .output()
        .unwrap();
    assert!(run.status.success(), "cargo doc: {}", String::from_utf8_lossy(&run.stderr));
    let found = documented(&fs::read_to_string(target.join("doc/moeray/all.html")).unwrap());
    let list = root.join("tests/data/public_api.txt");
    let text = found.iter().fold(String::new(), |t, item| t + item + "\n");
    if std::env::var_os("MOERAY_BLESS").is_some() {
        fs::write(&list, &text).unwrap();
    }
    let wanted: BTreeSet<String> = fs::read_to_string(&list).unwrap().lines().map(str::to_owned).collect();
    let gone: Vec<_> = wanted.difference(&found).collect();
    let new: Vec<_> = found.difference(&wanted).collect();
    assert!(gone.is_empty() && new.is_empty(), "no longer public: {gone:?}; newly public: {new:?}");
}

#[test]
fn items_are_read_from_the_page() {
    let page = r#"<a href="index.html">x</a><li><a href="session/struct.Session.html">s</a></li><li><a href="enum.Error.html">e</a></li>"#;
    let want = ["Error (enum)", "session::Session (struct)"].map(str::to_owned);
    assert_eq!(documented(page), BTreeSet::from(want));
}
