//! The linker: from a [`Variant`] to one WGSL text.
//!
//! In order: the numbers as `const`s, the KV fragment, one format fragment a slot with its prefix replaced, the products
//! of the slots, the fragment of the tiles, the kernel's parts. Then loops that say `// unroll` are written out: no shading
//! language of today lets WGSL ask for it, and a loop that stays a loop turns the arrays it indexes into memory. Last,
//! branches that say `// static` are decided: what the variant does not use is not even declared as used, which matters for
//! workgroup memory and barriers.

use super::{Tiles, Variant, kv_fragment};
use crate::{
    error::{Error, Result},
    quant::gpu,
};

/// Who an invocation is, and how its sums meet those of its neighbours; for kernels with `SUBGROUPS`.
const IDS: &str = include_str!("../../shaders/common/ids.wgsl");
const IDS_SUBGROUPS: &str = include_str!("../../shaders/common/ids_subgroups.wgsl");

/// Makes the text of a variant.
///
/// # Errors
/// [`Error::Unsupported`] where the variant gives too few or too many formats, no KV storage where the kernel needs one,
/// or a number that the kernel does not have: a fault of the planner, named.
pub fn link(variant: &Variant) -> Result<String> {
    let kernel = variant.kernel;
    let wrong = |what: String| Err(Error::Unsupported(format!("kernel {}: {what}", kernel.name)));
    if variant.formats.len() != kernel.slots.len() {
        return wrong(format!("{} formats for the slots {:?}", variant.formats.len(), kernel.slots));
    }
    if variant.kv.is_some() != kernel.kv {
        return wrong("KV storage given without a cache, or missing".into());
    }
    if let Some((name, _)) = variant.consts.iter().find(|c| kernel.consts.iter().all(|k| k.0 != c.0)) {
        return wrong(format!("no number {name}"));
    }
    if variant.tiles.is_some() != kernel.tiles {
        return wrong("tiles given that it does not have, or missing".into());
    }
    let row = variant.tiles.map(Tiles::row);
    let mut text = format!("// {}\n", variant.label());
    for extension in row.iter().flat_map(|r| r.enable) {
        text.push_str(&format!("enable {extension};\n"));
    }
    for (name, _) in kernel.consts {
        text.push_str(&format!("const {name}: u32 = {}u;\n", variant.get(name)));
    }
    if let Some(kv) = variant.kv {
        text.push_str(&format!("const KV_SCALES: u32 = {}u;\n", variant.get("KV_SCALES")));
        text.push_str(kv_fragment(kv).1);
    }
    let ints = variant.tiles == Some(Tiles::Int8);
    for (slot, dtype) in kernel.slots.iter().zip(&variant.formats) {
        text.push_str(&replace_prefix(gpu::fragment(*dtype), "W_", &format!("{slot}_")));
        if ints {
            let Some(fragment) = gpu::ints_fragment(*dtype) else {
                return wrong(format!("{dtype} has no integers"));
            };
            text.push_str(&replace_prefix(fragment, "W_", &format!("{slot}_")));
        }
    }
    for (part, slots) in kernel.products {
        match variant.tiles {
            None => text.push_str(&products(part, slots, variant.get("COLS"))),
            Some(_) => {
                let part = part.replace("UNPACK", if ints { "ints" } else { "dequant" });
                let slot = slots.first().copied().unwrap_or_default();
                text.push_str(&replace_prefix(&part, "A_", &format!("{slot}_")));
            }
        }
    }
    if kernel.consts.iter().any(|c| c.0 == "SUBGROUPS") {
        text.push_str(if variant.get("SUBGROUPS") == 1 { IDS_SUBGROUPS } else { IDS });
    }
    for part in row.iter().flat_map(|r| r.parts) {
        text.push_str(part);
    }
    for part in kernel.parts {
        text.push_str(part);
    }
    let text = text.replace("_to_COLS", &format!("_to_{}", variant.get("COLS")));
    Ok(resolve(&unroll(&text, variant), variant))
}

/// A part of [`super::Kernel::products`] for these slots, and for 1, 2, 4 .. `columns` (a power of two) rows of x.
fn products(part: &str, slots: &[&str], columns: u32) -> String {
    let mut text = String::new();
    for count in (0..).map(|i| 1u32 << i).take_while(|c| *c <= columns) {
        let sized = part.replace("COUNT", &count.to_string()).replace("HALF", &(count / 2).to_string());
        text.push_str(
            &["A_", "B_"]
                .iter()
                .zip(slots)
                .fold(sized, |t, (from, slot)| replace_prefix(&t, from, &format!("{slot}_"))),
        );
    }
    text
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Replaces `from` where an identifier starts with it.
fn replace_prefix(text: &str, from: &str, to: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        out.push_str(&rest[..at]);
        let starts = !out.ends_with(is_word);
        out.push_str(if starts { to } else { from });
        rest = &rest[at + from.len()..];
    }
    out.push_str(rest);
    out
}

/// Replaces the whole word `from`.
fn replace_word(text: &str, from: &str, to: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(from) {
        let end = at + from.len();
        out.push_str(&rest[..at]);
        let whole = !out.ends_with(is_word) && !rest[end..].starts_with(is_word);
        out.push_str(if whole { to } else { from });
        rest = &rest[end..];
    }
    out.push_str(rest);
    out
}

/// Writes out every loop whose head is a line of the form `for (var i = 0u; i < COUNT; i++) { // unroll`, COUNT being a
/// number of the variant or a literal such as `8u`. The loop ends at the `}` line of the same indentation.
fn unroll(text: &str, variant: &Variant) -> String {
    let lines: Vec<&str> = text.lines().collect();
    unroll_lines(&lines, variant)
}

/// Variable and count of a head line.
fn loop_head(line: &str, variant: &Variant) -> Option<(String, u32)> {
    let head = line.trim().strip_suffix("{ // unroll")?.trim().strip_prefix("for (var ")?;
    let (var, rest) = head.split_once(" = 0u;")?;
    let bound = rest.trim().strip_prefix(var)?.trim().strip_prefix('<')?.split(';').next()?.trim();
    let count = match bound.strip_suffix('u').and_then(|n| n.parse().ok()) {
        Some(n) => n,
        None => variant.get(bound),
    };
    Some((var.to_string(), count))
}

/// The `}` or `} else {` line that closes the block whose head is line `head`.
fn block_end(lines: &[&str], head: usize) -> Option<usize> {
    let indent = |l: &str| l.len() - l.trim_start().len();
    (head + 1..lines.len())
        .find(|j| matches!(lines[*j].trim(), "}" | "} else {") && indent(lines[*j]) == indent(lines[head]))
}

fn unroll_lines(lines: &[&str], variant: &Variant) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < lines.len() {
        if let (Some((var, count)), Some(end)) = (loop_head(lines[at], variant), block_end(lines, at)) {
            let body = unroll_lines(&lines[at + 1..end], variant);
            for i in 0..count {
                out.push_str("{\n");
                out.push_str(&replace_word(&body, &var, &format!("{i}u")));
                out.push_str("}\n");
            }
            at = end + 1;
        } else {
            out.push_str(lines[at]);
            out.push('\n');
            at += 1;
        }
    }
    out
}

/// The truth of a head line `if (A == B) { // static`, A and B being numbers of the variant or literals such as `8u`.
fn static_head(line: &str, variant: &Variant) -> Option<bool> {
    let condition = line.trim().strip_suffix("{ // static")?.trim().strip_prefix("if (")?.strip_suffix(')')?;
    let (a, b) = condition.split_once(" == ")?;
    let value = |s: &str| s.strip_suffix('u').and_then(|n| n.parse().ok()).unwrap_or_else(|| variant.get(s));
    Some(value(a) == value(b))
}

/// Decides every `if (A == B) { // static` with or without an `} else {`: the branch that is not taken disappears.
fn resolve(text: &str, variant: &Variant) -> String {
    let lines: Vec<&str> = text.lines().collect();
    resolve_lines(&lines, variant)
}

fn resolve_lines(lines: &[&str], variant: &Variant) -> String {
    let mut out = String::new();
    let mut at = 0;
    while at < lines.len() {
        let (Some(truth), Some(middle)) = (static_head(lines[at], variant), block_end(lines, at)) else {
            out.push_str(lines[at]);
            out.push('\n');
            at += 1;
            continue;
        };
        let has_else = lines[middle].trim() == "} else {";
        let end = if has_else { block_end(lines, middle).unwrap_or(lines.len() - 1) } else { middle };
        let taken = match (truth, has_else) {
            (true, _) => &lines[at + 1..middle],
            (false, true) => &lines[middle + 1..end],
            (false, false) => &[][..],
        };
        out.push_str("{\n");
        out.push_str(&resolve_lines(taken, variant));
        out.push_str("}\n");
        at = end + 1;
    }
    out
}
