//! What the linker refuses, and where errors say that they are.

use super::any_variant;
use moeray::kernels::{
    Fragment, Variant,
    catalogue::{self, ALL, Kernel},
    diagnose, link, params, reflect,
};

/// A kernel of one fragment, wrong in some way.
fn broken(text: &'static str) -> Variant {
    let kernel = Kernel {
        name: "broken",
        parts: [vec![Fragment { file: "shaders/broken.wgsl", text }].leak(), &[], &[]],
        slots: &[],
        products: &[],
        kv: false,
        tiles: false,
        consts: [&[("WG", 64), ("ROWS", 2)], &[], &[]],
        fixed: [&[("NORM", 0)], &[]],
        params: params::CopyParams::FIELDS,
        structs: &[],
        tile: |v| Ok([v.get("WG")?, v.get("HEIGHT")?]),
    };
    Variant::new(Box::leak(Box::new(kernel)))
}

/// A name that a fragment uses and nothing declares is an error of linking, with the fragment's file and line: in the code,
/// in branches that are not taken, and in the heads that the linker itself reads.
#[test]
fn names_are_strict() {
    let refused = |text: &'static str, wanted: &str| {
        let e = link(&broken(text)).expect_err(text).to_string();
        assert!(e.contains(wanted), "{e}");
    };
    refused("fn f() -> u32 {\n    return ROW;\n}\n", "shaders/broken.wgsl:2: ROW ");
    refused("fn f() {\n\n    for (var i = 0u; i < COLS; i++) { // unroll\n    }\n}\n", "shaders/broken.wgsl:3: COLS ");
    refused("fn f() {\n    if (SHARED == 1u) { // static\n    }\n}\n", "shaders/broken.wgsl:2: SHARED ");
    let dead = "fn f() -> u32 {\n    if (NORM == 1u) { // static\n        return NROM;\n    }\n    return 0u;\n}\n";
    refused(dead, "shaders/broken.wgsl:3: NROM ");
    // Heads that are not of the form that the linker knows.
    refused("fn f() {\n    for (var i = 1u; i < ROWS; i++) { // unroll\n    }\n}\n", "shaders/broken.wgsl:2: ");
    refused("fn f() {\n    for (var i = 0u; i < ROWS; i += 2u) { // unroll\n    }\n}\n", "shaders/broken.wgsl:2: ");
    refused("fn f() {\n    if (NORM != 1u) { // static\n    }\n}\n", "shaders/broken.wgsl:2: ");
    refused("fn f() {\n    if (NORM == 1u) { // static\n  }\n}\n", "shaders/broken.wgsl:2: ");
    assert!(link(&broken("const OWN: u32 = ROWS * BIAS;\n// COLS in a comment\n")).is_ok());
}

#[test]
fn a_number_that_a_kernel_does_not_have_is_an_error() {
    let v = broken("");
    assert_eq!(v.get("ROWS").unwrap(), 2);
    assert_eq!(v.number("HEIGHT"), None);
    let e = v.tile().unwrap_err().to_string();
    assert!(e.contains("broken") && e.contains("HEIGHT"), "{e}");
}

/// What naga refuses is reported at the line of the file that it is from, however the linker moved it.
#[test]
fn errors_name_the_line_of_the_fragment() {
    const UNROLLED: &str = "@compute @workgroup_size(WG)
fn main() {
    if (NORM == 0u) { // static
        for (var i = 0u; i < ROWS; i++) { // unroll
            var x = i;
            x = nothing;
        }
    }
}
";
    let linked = link(&broken(UNROLLED)).unwrap();
    let e = reflect(&linked).unwrap_err().to_string();
    assert!(e.contains("shaders/broken.wgsl:6: ") && e.contains("nothing"), "{e}");
    // What parses and is not valid.
    const INVALID: &str = "
fn f() -> u32 {
    var x = 1u;
}
@compute @workgroup_size(WG)
fn main() {
    _ = f();
}
";
    let linked = link(&broken(INVALID)).unwrap();
    assert!(reflect(&linked).is_ok());
    let e = diagnose(&linked).expect("a function without a result").to_string();
    assert!(e.contains("shaders/broken.wgsl:2: ") || e.contains("shaders/broken.wgsl:3: "), "{e}");
    assert!(ALL.into_iter().all(|k| diagnose(&link(&any_variant(k)).unwrap()).is_none()));
    // Every line of a kernel is from a file that is there.
    let linked = link(&any_variant(&catalogue::LINEAR_KERNEL)).unwrap();
    let lines = linked.text.lines().count();
    let read = |origin: String| {
        let (file, line) = origin.rsplit_once(':').unwrap();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        (file != "generated").then(|| {
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().nth(line.parse::<usize>().unwrap() - 1).unwrap().to_string()
        })
    };
    let same = (1..=lines).filter(|i| {
        read(linked.origin(*i).unwrap()).is_some_and(|l| Some(l.as_str()) == linked.text.lines().nth(*i - 1))
    });
    assert!(same.count() * 2 > lines, "most lines stand as they are in their files");
    assert_eq!(linked.origin(lines + 1), None);
}
