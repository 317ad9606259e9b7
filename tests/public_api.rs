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

/// The folder of the documentation: `tests/run` has written it; without that it is written here.
fn documentation(root: &Path) -> PathBuf {
    if let Some(docs) = std::env::var_os("MOERAY_DOCS") {
        return PathBuf::from(docs);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let run = Command::new(env!("CARGO"))
        // With an example, so that the library has the features of the tests.
        .args(["doc", "--no-deps", "--lib", "--example", "cancel", "--locked", "--quiet"])
        .arg("--target-dir")
        .arg(&target)
        .env("RUSTDOCFLAGS", "-D warnings")
        .current_dir(root)
        .output()
        .unwrap();
    assert!(run.status.success(), "cargo doc: {}", String::from_utf8_lossy(&run.stderr));
    target.join("doc")
}

#[test]
fn the_public_items_are_those_of_the_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = documented(&fs::read_to_string(documentation(root).join("moeray/all.html")).unwrap());
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
