//! The README's tables, generated from the code and compared: `MOERAY_BLESS=1` writes them.

use moeray::{graph::formula::formulas, model::REGISTRY, quant::DType};
use std::{fs, path::Path};

fn models() -> String {
    let mut rows = String::from(
        "| model | `general.architecture` in GGUF | `model_type` in `config.json` | router |\n|---|---|---|---|\n",
    );
    for a in REGISTRY {
        let router = a.routing.map_or("none: dense".to_string(), |r| r.words());
        rows += &format!("| {} | `{}` | `{}` | {router} |\n", a.title, a.gguf.arch, a.hf);
    }
    rows
}

fn formula_rows() -> String {
    let mut rows =
        String::from("| what | source | keys of a run, or the library's call | built by |\n|---|---|---|---|\n");
    for f in formulas() {
        let keys: Vec<String> = f.keys.iter().map(|k| format!("`{k}`")).collect();
        let asked = if keys.is_empty() { f.library.to_owned() } else { keys.join(", ") };
        assert!(keys.is_empty() != f.library.is_empty(), "{} is asked for by keys or by a call", f.what);
        rows += &format!("| {} | {} | {asked} | {} |\n", f.what, f.source, f.call);
    }
    rows
}

fn formats() -> String {
    let names: Vec<String> = DType::ALL.iter().map(|d| d.to_string()).collect();
    format!("{}.\n", names.join(", "))
}

/// `text` with what stands between `<!-- table: name -->` and the next `<!-- end -->` replaced.
fn with_table(text: &str, name: &str, table: &str) -> String {
    let open = format!("<!-- table: {name} -->\n");
    let (before, rest) = text.split_once(&open).unwrap_or_else(|| panic!("the README has no table {name}"));
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    format!("{before}{open}{table}<!-- end -->{after}")
}

#[test]
fn tables_are_those_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let want = with_table(&with_table(&text, "models", &models()), "formats", &formats());
    let want = with_table(&want, "formulas", &formula_rows());
    if std::env::var_os("MOERAY_BLESS").is_some() {
        fs::write(&path, &want).unwrap();
    }
    assert!(text == want, "the README's tables are out of date: run with MOERAY_BLESS=1");
}

#[test]
fn a_stale_table_is_seen() {
    let stale = "<!-- table: models -->\n| Llama |\n<!-- end -->";
    assert_ne!(with_table(stale, "models", &models()), stale);
}
