//! The text of a matrix product by tiles: `C[row, col] = Σ_k a(row, k) · b(k, col)`, where a and b are any expressions.
//!
//! Two forms. On GPUs a workgroup of 8 by 8 invocations makes 64 by 64 results, an invocation 8 by 8 of them in registers. Both operands come through
//! workgroup memory (8 KiB), 16 summands at a time: each summand is read 8 times from there for 64 products. Where a processor
//! emulates the device, a workgroup of 8 invocations makes 4 by 32 results without workgroup memory: the rows are the workgroup's,
//! so that what they read is one address for all of its invocations. f32 throughout; the order of the sum is that of k.

use super::text::parameter;
use std::fmt::Write as _;

/// The parts of a product that differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tile {
    /// Statements before it, of the product's number `e`: such as the slots of an expert.
    pub before: String,
    /// Rows, columns and summands.
    pub sizes: [String; 3],
    /// What of a row is computed once, `ra`.
    pub a_row: String,
    /// What of a summand is computed once, `rk`.
    pub summand: String,
    /// `a(row, k)`, of `ra` and `rk`.
    pub a: String,
    /// Whether a's neighbours in memory are neighbours in k (else in rows): neighbouring invocations read those.
    pub a_along_k: bool,
    /// `b(k, col)`, of `rk`.
    pub b: String,
    /// Whether b's neighbours in memory are neighbours in k (else in columns).
    pub b_along_k: bool,
    /// Where the result of row, col stands in y.
    pub at: String,
    /// The result, of `sum`.
    pub value: String,
    /// Whether it is added to what stands there.
    pub adds: bool,
    /// Whether it is of the form without workgroup memory.
    pub direct: bool,
}

impl Tile {
    /// Rows and columns of a workgroup.
    pub fn sides(&self) -> [usize; 2] {
        if self.direct { [4, 32] } else { [64, 64] }
    }

    /// The text of the kernel behind its bindings.
    pub fn text(&self) -> String {
        if self.direct { self.direct_text() } else { self.tiled_text() }
    }

    fn direct_text(&self) -> String {
        let Tile { before, sizes: [rows, cols, summed], a_row, summand, a, b, .. } = self;
        let each = |one: &dyn Fn(usize) -> String| (0..4).map(one).collect::<Vec<_>>().join("\n        ");
        let first_block = parameter(1);
        // Rows and columns behind the end read the last one, and are not stored.
        let starts = each(&|r| {
            format!(
                "let row{r} = min(first_row + {r}u, count_rows - 1u); var ra{r} = 0u; {{ let row = row{r}; ra{r} = {a_row}; }}"
            )
        });
        let columns = each(&|c| format!("let col{c} = min(first_col + {}u, count_cols - 1u);", 8 * c));
        let lefts = each(&|r| format!("var x{r} = 0.0; {{ let row = row{r}; let ra = ra{r}; x{r} = {a}; }}"));
        let rights = each(&|c| format!("{{ let col = col{c}; v.{} = {b}; }}", ["x", "y", "z", "w"][c]));
        let products = each(&|r| format!("s{r} += x{r} * v;"));
        format!(
            "@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) w: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {{
    let e = w.z;
    {before}
    let count_rows = {rows};
    let count_cols = {cols};
    let count_k = {summed};
    let first_row = w.y * 4u;
    let first_col = (w.x + {first_block}) * 32u + l.x;
    if (first_row >= count_rows) {{ return; }}
        {starts}
        {columns}
    var s0 = vec4<f32>(); var s1 = vec4<f32>(); var s2 = vec4<f32>(); var s3 = vec4<f32>();
    for (var k = 0u; k < count_k; k++) {{
        let rk = {summand};
        {lefts}
        var v = vec4<f32>();
        {rights}
        {products}
    }}
    var made = array<vec4<f32>, 4>(s0, s1, s2, s3);
    for (var o = 0u; o < 16u; o++) {{
        let row = first_row + o / 4u;
        let col = first_col + 8u * (o % 4u);
        {}
    }}
}}
",
            self.store("made[o / 4u][o % 4u]")
        )
    }

    /// Statements that store a result.
    fn store(&self, sum: &str) -> String {
        let Tile { at, value, .. } = self;
        let assigns = if self.adds { "+=" } else { "=" };
        format!(
            "if (row < count_rows && col < count_cols) {{
            let sum = {sum};
            let at = {at};
            y[at] {assigns} {value};
        }}"
        )
    }

    fn tiled_text(&self) -> String {
        let Tile { before, sizes: [rows, cols, summed], a_row, summand, .. } = self;
        let first_block = parameter(1);
        let store = self.store("made[o / 4u][o % 4u]");
        let sums: Vec<String> = (0..8).flat_map(|r| [format!("s{r}l"), format!("s{r}h")]).collect();
        let declared: String = sums.iter().map(|s| format!("var {s} = vec4<f32>();\n    ")).collect();
        let of = |first: &str, at: &str, o: usize| {
            let one = |x: usize| format!("{first}[{at} + {}u]", o + x);
            format!("vec4<f32>({}, {}, {}, {})", one(0), one(1), one(2), one(3))
        };
        let mut products = String::new();
        for r in 0..8 {
            let x = format!("{}.{}", if r < 4 { "al" } else { "ah" }, ["x", "y", "z", "w"][r % 4]);
            // Writing to text cannot fail.
            _ = write!(products, "s{r}l += {x} * bl; s{r}h += {x} * bh;\n            ");
        }
        format!(
            "var<workgroup> left: array<f32, 1024>;
var<workgroup> right: array<f32, 1024>;
@compute @workgroup_size(8, 8)
fn main(@builtin(workgroup_id) w: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {{
    let e = w.z;
    let own = l.y * 8u + l.x;
    {before}
    let count_rows = {rows};
    let count_cols = {cols};
    let count_k = {summed};
    let first_row = w.y * 64u;
    let first_col = (w.x + {first_block}) * 64u;
    if (first_row >= count_rows) {{ return; }}
    {declared}for (var k0 = 0u; k0 < count_k; k0 += 16u) {{
        for (var o = own; o < 1024u; o += 64u) {{
{}
        }}
        for (var o = own; o < 1024u; o += 64u) {{
{}
        }}
        workgroupBarrier();
        for (var j = 0u; j < 16u; j++) {{
            let x = j * 64u + l.y * 8u;
            let z0 = j * 64u + l.x * 8u;
            let al = {}; let ah = {};
            let bl = {}; let bh = {};
            {products}
        }}
        workgroupBarrier();
    }}
    var made = array<vec4<f32>, 16>({});
    for (var o = 0u; o < 64u; o++) {{
        let row = first_row + l.y * 8u + o / 8u;
        let col = first_col + l.x * 8u + o % 8u;
        {store}
    }}
}}
",
            load(
                "left",
                ["row", "first_row", "count_rows"],
                &[("ra", a_row), ("rk", summand)],
                &self.a,
                self.a_along_k
            ),
            load("right", ["col", "first_col", "count_cols"], &[("rk", summand)], &self.b, self.b_along_k),
            of("left", "x", 0),
            of("left", "x", 4),
            of("right", "z0", 0),
            of("right", "z0", 4),
            sums.join(", "),
        )
    }
}

/// Statements that load element o of a tile of an operand into `memory`, `[16, 64]`.
fn load(
    memory: &str,
    [side, first, count]: [&str; 3],
    before: &[(&str, &String)],
    value: &str,
    along_k: bool,
) -> String {
    let before: String = before.iter().map(|(name, what)| format!("let {name} = {what}; ")).collect();
    let (at_side, at_k) = if along_k { ("o / 16u", "o % 16u") } else { ("o % 64u", "o / 64u") };
    format!(
        "            let {side} = {first} + {at_side};
            let k = k0 + {at_k};
            var v = 0.0;
            if ({side} < {count} && k < count_k) {{ {before}v = {value}; }}
            {memory}[({at_k}) * 64u + {at_side}] = v;"
    )
}
