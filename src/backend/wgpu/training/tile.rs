//! The text of a matrix product by tiles: `C[row, col] = Σ_k a(row, k) · b(k, col)`, where a and b are any expressions.
//!
//! A workgroup of 8 by 8 invocations makes 64 by 64 results, an invocation 8 by 8 of them in registers. Both operands come through
//! workgroup memory (8 KiB), 16 summands at a time: each summand is read 8 times from there for 64 products. f32 throughout; the
//! order of the sum is that of k.

use std::fmt::Write as _;

/// The parts of a product that differ.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tile {
    /// Statements before it, such as the slots of an expert.
    pub before: String,
    /// Rows, columns and summands.
    pub sizes: [String; 3],
    /// `a(row, k)`.
    pub a: String,
    /// Whether a's neighbours in memory are neighbours in k (else in rows): neighbouring invocations read those.
    pub a_along_k: bool,
    /// `b(k, col)`.
    pub b: String,
    /// Whether b's neighbours in memory are neighbours in k (else in columns).
    pub b_along_k: bool,
    /// Where the result of row, col stands in y.
    pub at: String,
    /// The result, of `sum`.
    pub value: String,
    /// Whether it is added to what stands there.
    pub adds: bool,
}

impl Tile {
    /// Rows and columns of a tile.
    pub const SIDE: usize = 64;

    /// The text of the kernel behind its bindings.
    pub fn text(&self) -> String {
        let Tile { before, sizes: [rows, cols, summed], at, value, .. } = self;
        let assigns = if self.adds { "+=" } else { "=" };
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
    let first_col = w.x * 64u;
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
        if (row < count_rows && col < count_cols) {{
            let sum = made[o / 4u][o % 4u];
            let at = {at};
            y[at] {assigns} {value};
        }}
    }}
}}
",
            load("left", "row", "first_row", "count_rows", &self.a, self.a_along_k),
            load("right", "col", "first_col", "count_cols", &self.b, self.b_along_k),
            of("left", "x", 0),
            of("left", "x", 4),
            of("right", "z0", 0),
            of("right", "z0", 4),
            sums.join(", "),
        )
    }
}

/// Statements that load element o of a tile of an operand into `memory`, `[16, 64]`.
fn load(memory: &str, side: &str, first: &str, count: &str, value: &str, along_k: bool) -> String {
    let (at_side, at_k) = if along_k { ("o / 16u", "o % 16u") } else { ("o % 64u", "o / 64u") };
    format!(
        "            let {side} = {first} + {at_side};
            let k = k0 + {at_k};
            var v = 0.0;
            if ({side} < {count} && k < count_k) {{ v = {value}; }}
            {memory}[({at_k}) * 64u + {at_side}] = v;"
    )
}
