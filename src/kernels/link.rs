//! The linker: from a [`Variant`] to one WGSL text.
//!
//! In order: the numbers as `const`s, those of [`super::numbers`] that the text uses, the structs and variables of the
//! uniforms, the KV fragment, one format fragment a slot with its prefix replaced (and that of its dot product), the products of the slots, the fragment
//! of the tiles, the kernel's parts. Then loops that say `// unroll` are written out: no shading language of today lets
//! WGSL ask for it, and a loop that stays a loop turns the arrays it indexes into memory. Last, branches that say
//! `// static` are decided: what the variant does not use is not even declared as used, which matters for workgroup memory
//! and barriers.
//!
//! Names are strict. A name in capitals that a fragment uses, also in a branch that is not taken, must be a number of the
//! kernel, a constant of a fragment, or one of [`super::numbers`]; every other is an error with the fragment's file and line.
//! Each line of the result knows the line of the file that it is from, and errors of the compiler name that.

use super::{
    Fragment, Tiles, Variant,
    fragment::wgsl,
    kv_fragment,
    lines::{Heads, Line, Lines, constants, declared, replace_prefix},
    numbers,
    params::{Frame, declaration},
};
use crate::{
    error::{Error, Result},
    quant::{DType, gpu},
};
use std::collections::BTreeSet;

/// Who an invocation is, and how its sums meet those of its neighbours; for kernels with `SUBGROUPS`.
const IDS: Fragment = wgsl!("common/ids.wgsl");
const IDS_SUBGROUPS: Fragment = wgsl!("common/ids_subgroups.wgsl");

/// The conversion of halves for devices whose own drops subnormal ones.
const HALVES: Fragment = wgsl!("common/halves.wgsl");

/// Formats whose dot products with one row take scales and offsets out of the sum, each with its fragment.
static DOTS: [(DType, Fragment); 6] = [
    (DType::Q4_0, wgsl!("quant/dots/q4_0.wgsl")),
    (DType::Q8_0, wgsl!("quant/dots/q8_0.wgsl")),
    (DType::Q4K, wgsl!("quant/dots/q4_k.wgsl")),
    (DType::Q5K, wgsl!("quant/dots/q5_k.wgsl")),
    (DType::Q6K, wgsl!("quant/dots/q6_k.wgsl")),
    (DType::MXFP4, wgsl!("quant/dots/mxfp4.wgsl")),
];

/// The fragment of a format's dot product with one row: its own, or that of the weights themselves.
fn dot_fragment(dtype: DType) -> &'static Fragment {
    const PLAIN: &Fragment = &wgsl!("quant/dots/plain.wgsl");
    DOTS.iter().find(|d| d.0 == dtype).map_or(PLAIN, |d| &d.1)
}

/// Where lines are from that the linker itself writes.
const GENERATED: &str = "generated";

/// The text of a variant.
#[derive(Clone, Debug)]
pub struct Linked {
    /// [`Variant::label`].
    pub label: String,
    /// The WGSL.
    pub text: String,
    lines: Lines,
}

impl Linked {
    /// File and line that a line of the text, counted from 1, is from: `shaders/attend.wgsl:17`.
    pub fn origin(&self, line: usize) -> Option<String> {
        let line = self.lines.lines.get(line.checked_sub(1)?)?;
        Some(self.lines.origin(line))
    }

    /// The text with the place that each line is from, for people.
    pub fn with_origins(&self) -> String {
        let mut out = String::with_capacity(2 * self.text.len());
        let mut last = usize::MAX;
        for line in &self.lines.lines {
            if line.file != last {
                out.push_str(&format!("// {}\n", self.lines.files[line.file]));
                last = line.file;
            }
            out.push_str(&format!("{:>5}  {}\n", line.number, line.text));
        }
        out
    }

    /// What a compiler says of a line of the text (from 1), with the place that the line is from.
    pub(super) fn complaint(&self, line: Option<usize>, what: &str) -> Error {
        let origin = line.and_then(|l| self.origin(l)).unwrap_or_else(|| "shader".into());
        Error::Unsupported(format!("{origin}: {what} (kernel {})", self.label))
    }
}

/// Makes the text of a variant.
///
/// # Errors
/// [`Error::Unsupported`] where the variant gives too few or too many formats, no KV storage where the kernel needs one,
/// or a number that the kernel does not have: a fault of the planner, named. And where a fragment uses a name that nothing
/// declares, or a head that is not understood: with the fragment's file and line.
pub fn link(variant: &Variant) -> Result<Linked> {
    suits(variant)?;
    let body = body(variant)?;
    let mut all = generated(variant, &shared_numbers(variant, &body)?);
    let offset = all.files.len();
    all.files.extend(body.files);
    all.lines.extend(body.lines.into_iter().map(|l| Line { file: l.file + offset, ..l }));

    let heads = Heads { variant, files: &all.files };
    all.lines = heads.decide(&heads.unroll(&all.lines)?)?;
    let text = all.lines.iter().flat_map(|l| [l.text.as_str(), "\n"]).collect();
    Ok(Linked { label: variant.label(), text, lines: all })
}

/// Checks that a variant gives what its kernel asks for.
fn suits(variant: &Variant) -> Result<()> {
    let kernel = variant.kernel;
    let wrong = |what: String| Err(Error::Unsupported(format!("kernel {}: {what}", kernel.name)));
    if variant.formats.len() != kernel.slots.len() {
        return wrong(format!("{} formats for the slots {:?}", variant.formats.len(), kernel.slots));
    }
    if variant.kv.is_some() != kernel.kv {
        return wrong("KV storage given without a cache, or missing".into());
    }
    if let Some((name, _)) = variant.consts.iter().find(|c| !kernel.varies(c.0)) {
        return wrong(format!("no number {name}"));
    }
    if variant.tiles.is_some() != kernel.tiles {
        return wrong("tiles given that it does not have, or missing".into());
    }
    Ok(())
}

/// All that comes from files, in order.
fn body(variant: &Variant) -> Result<Lines> {
    let (kernel, row) = (variant.kernel, variant.tiles.map(Tiles::row));
    let mut lines = Lines::default();
    if let Some(kv) = variant.kv {
        lines.push(&kv_fragment(kv).1);
    }
    if variant.flushes_halves {
        lines.push(&HALVES);
    }
    let ints = variant.tiles == Some(Tiles::Int8);
    for (slot, dtype) in kernel.slots.iter().zip(&variant.formats) {
        let prefixed = |text: &str| {
            let text = replace_prefix(text, "W_", &format!("{slot}_"));
            if variant.flushes_halves { text.replace("unpack2x16float(", "half_pair(") } else { text }
        };
        lines.add(&format_file("", *dtype), gpu::fragment(*dtype), prefixed);
        if variant.tiles.is_none() && !kernel.products.is_empty() {
            let dot = dot_fragment(*dtype);
            lines.add(dot.file, dot.text, prefixed);
        }
        if ints {
            let Some(fragment) = gpu::ints_fragment(*dtype) else {
                return Err(Error::Unsupported(format!("kernel {}: {dtype} has no integers", kernel.name)));
            };
            lines.add(&format_file("ints/", *dtype), fragment, prefixed);
        }
    }
    for (part, slots) in kernel.products {
        match variant.tiles {
            None => products(&mut lines, part, slots, variant.get("COLS")?),
            Some(_) => {
                let unpack = if ints { "ints" } else { "dequant" };
                let slotted = |text: &str| replace_slots(&text.replace("UNPACK", unpack), slots);
                lines.add(part.file, part.text, slotted);
            }
        }
    }
    match variant.number("SUBGROUPS") {
        Some(1) => lines.push(&IDS_SUBGROUPS),
        Some(_) => lines.push(&IDS),
        None => {}
    }
    for part in row.iter().flat_map(|r| r.parts) {
        lines.push(part);
    }
    for part in kernel.parts.into_iter().flatten() {
        lines.push(part);
    }
    if let Some(columns) = variant.number("COLS") {
        let to = format!("_to_{columns}");
        for line in &mut lines.lines {
            line.text = line.text.replace("_to_COLS", &to);
        }
    }
    Ok(lines)
}

/// The functions that read a segment of a format, as [`gpu::fragment`] has them, for kernels that are not in the catalogue.
pub fn dequantizer(dtype: DType, flushes_halves: bool) -> String {
    match flushes_halves {
        true => HALVES.text.to_string() + &gpu::fragment(dtype).replace("unpack2x16float(", "half_pair("),
        false => gpu::fragment(dtype).to_string(),
    }
}

/// The file of a format's fragment.
fn format_file(folder: &str, dtype: DType) -> String {
    format!("shaders/quant/{folder}{}.wgsl", dtype.layout().name.to_lowercase())
}

/// A part of [`super::Kernel::products`] for these slots, and for 1, 2, 4 .. `columns` (a power of two) rows of x.
fn products(lines: &mut Lines, part: &Fragment, slots: &[&str], columns: u32) {
    for count in (0..).map(|i| 1u32 << i).take_while(|c| *c <= columns) {
        let (whole, half) = (count.to_string(), (count / 2).to_string());
        let sized = |text: &str| text.replace("COUNT", &whole).replace("HALF", &half);
        lines.add(part.file, part.text, |text| replace_slots(&sized(text), slots));
    }
}

/// The prefixes `A_` and `B_` replaced by the names of slots.
fn replace_slots(text: &str, slots: &[&str]) -> String {
    let replace = |t: String, (from, slot): (&&str, &&str)| replace_prefix(&t, from, &format!("{slot}_"));
    ["A_", "B_"].iter().zip(slots).fold(text.to_string(), replace)
}

/// Those of [`numbers`] that a text uses.
///
/// # Errors
/// [`Error::Unsupported`] with file and line for a name that nothing declares.
fn shared_numbers(variant: &Variant, body: &Lines) -> Result<BTreeSet<&'static str>> {
    let own: BTreeSet<&str> = body.lines.iter().filter_map(|l| declared(&l.text)).collect();
    let mut used = BTreeSet::new();
    for line in &body.lines {
        for name in constants(&line.text).filter(|n| !own.contains(n) && variant.number(n).is_none()) {
            match numbers::ALL.iter().find(|n| n.0 == name) {
                Some((name, _)) => _ = used.insert(*name),
                None => {
                    return Err(Error::Unsupported(format!(
                        "{}: {name} is declared neither by kernel {} nor by a fragment",
                        body.origin(line),
                        variant.kernel.name
                    )));
                }
            }
        }
    }
    Ok(used)
}

/// What the linker writes itself: the extensions, the numbers, the uniforms.
fn generated(variant: &Variant, shared: &BTreeSet<&'static str>) -> Lines {
    let kernel = variant.kernel;
    let mut text = format!("// {}\n", variant.label());
    for extension in variant.tiles.iter().flat_map(|t| t.row().enable) {
        text.push_str(&format!("enable {extension};\n"));
    }
    for (name, value) in variant.numbers() {
        text.push_str(&format!("const {name}: u32 = {value}u;\n"));
    }
    for (name, value) in numbers::ALL.iter().filter(|n| shared.contains(n.0)) {
        text.push_str(&format!("const {name}: u32 = {value}u;\n"));
    }
    text.push_str(&declaration("Frame", Frame::FIELDS, ""));
    text.push_str("@group(0) @binding(0) var<uniform> frame: Frame;\n");
    text.push_str(&declaration("Params", kernel.params, ""));
    text.push_str("@group(0) @binding(1) var<uniform> p: Params;\n");
    for (name, fields, tail) in kernel.structs {
        text.push_str(&declaration(name, fields, tail));
    }
    let mut lines = Lines::default();
    lines.add(GENERATED, &text, str::to_string);
    lines
}
