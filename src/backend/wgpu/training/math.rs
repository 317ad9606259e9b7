//! From nodes to kernels: the forward ops of training.

use super::{lower::Lower, text};
use crate::{
    error::Result,
    ir::{Axis, Capacity, Keep, Math, RopePairs, Rotation, Rows},
    ops::capacity,
};

/// Statements that make `most`, the largest of the `n` numbers of a from `at` on, and `sum`, of their exponentials less it.
fn exponentials(n: &str) -> String {
    format!(
        "var most = a[at];
    for (var j = 1u; j < {n}; j++) {{ most = max(most, a[at + j]); }}
    var sum = 0.0;
    for (var j = 0u; j < {n}; j++) {{ sum += exp(a[at + j] - most); }}"
    )
}

impl Lower<'_> {
    pub(super) fn math(&mut self, m: &Math) -> Result<()> {
        let inputs = self.inputs();
        match m {
            // Written by the host.
            Math::Numbers { .. } | Math::Ids { .. } => {}
            Math::Constant { value, .. } => {
                let value = self.factor(*value);
                self.each(0, vec![], &value);
            }
            Math::Rotate(r) => self.rotate(r),
            Math::SelfAttend(a) => self.self_attend(a),
            Math::CrossEntropy => {
                let v = self.size(self.cols(0));
                let sums = exponentials(&v);
                let body = format!(
                    "let at = i * {v}; {sums}
    let total = ln(sum);
    y[i] = (most - a[at + b[i]]) + total; z[i] = most + total;"
                );
                self.by_row(1, inputs, body);
            }
            Math::Affine { factor, shift } => {
                let (factor, shift) = (self.factor(*factor), self.factor(*shift));
                self.each(0, inputs, &format!("{factor} * a[i] + {shift}"));
            }
            Math::Unary(f) => self.each(0, inputs, &text::function(*f, "a[i]")),
            Math::Binary(op) => {
                let [a, b] = [0, 1].map(|i| self.repeated(i, ["a", "b"][i]));
                self.each(0, inputs, &text::arithmetic(*op, &a, &b));
            }
            Math::Reduce { axis, mean } => self.reduce(*axis, *mean),
            Math::Expand { mean } => {
                let x = self.repeated(0, "a");
                let all = (self.out_rows(0) * self.out_cols(0)) as f64;
                let by = (all / (self.in_rows(0) * self.cols(0)) as f64).max(1.0);
                let factor = self.factor(if *mean { 1.0 / by } else { 1.0 });
                self.each(0, vec![inputs[0]], &format!("{factor} * {x}"));
            }
            Math::Softmax { groups } => {
                let n = self.size(self.cols(0) / groups);
                let sums = exponentials(&n);
                let body = format!(
                    "let at = i * {n}; {sums}
    for (var j = 0u; j < {n}; j++) {{ y[at + j] = exp(a[at + j] - most) / sum; }}"
                );
                self.by_row(*groups, inputs, body);
            }
            Math::LogSumExp => {
                let n = self.size(self.cols(0));
                let sums = exponentials(&n);
                self.by_row(1, inputs, format!("let at = i * {n}; {sums}\n    y[i] = most + ln(sum);"));
            }
            Math::TopK { used, groups } => self.top_k(*used, *groups),
            Math::IdColumns { first, .. } | Math::Columns { first, .. } => {
                let [n, first] = self.sizes([self.cols(0), *first]);
                self.each(0, inputs, &format!("a[r * {n} + {first} + col]"));
            }
            Math::PadColumns { before, .. } => {
                let n = self.cols(0);
                let [n, before, end] = self.sizes([n, *before, before + n]);
                let at = format!("min(max(col, {before}) - {before}, {n} - 1u)");
                let inside = format!("col >= {before} && col < {end}");
                self.each(0, inputs, &format!("select(0.0, a[r * {n} + {at}], {inside})"));
            }
            Math::Capacity(c) => self.capacity(c),
            Math::Dropout { p, stream } => {
                let own = self.size(text::stream(*stream) as usize);
                let least = self.size(text::least_bits(*p) as usize);
                let scale = self.factor(1.0 / (1.0 - p));
                self.each(0, inputs, &format!("select(0.0, a[i] * {scale}, {}.x >= {least})", text::bits(&own)));
            }
            Math::Noise { distribution, stream, .. } => {
                let own = self.size(text::stream(*stream) as usize);
                self.each(0, vec![], &text::noise(*distribution, &text::bits(&own)));
            }
            Math::ExpertSum { .. } => return Err(self.refused()),
            Math::GatherSlots
            | Math::ScatterSlots { .. }
            | Math::MultiHot { .. }
            | Math::RepeatSlots { .. }
            | Math::SumSlots { .. }
            | Math::ScaleSlots { .. }
            | Math::SlotDots { .. } => return self.slots(m),
        }
        Ok(())
    }

    /// The ops of a token's slots (`ops/slots.rs`).
    fn slots(&mut self, m: &Math) -> Result<()> {
        let inputs = self.inputs();
        match m {
            Math::GatherSlots => {
                let n = self.size(self.cols(0));
                self.each(0, inputs, &format!("a[r * {n} + b[i]]"));
            }
            Math::ScatterSlots { experts } => self.scatter(*experts, "b", |at| format!("a[{at}]")),
            Math::MultiHot { experts } => self.scatter(*experts, "a", |_| "1.0".into()),
            Math::RepeatSlots { .. } => {
                let n = self.size(self.cols(0));
                self.each(0, inputs, &format!("a[r * {n} + col % {n}]"));
            }
            Math::SumSlots { slots } => {
                let cols = self.out_cols(0);
                let [n, k] = self.sizes([cols, *slots]);
                let body = format!(
                    "let r = i / {n}; var sum = 0.0;
    for (var j = 0u; j < {k}; j++) {{ sum += a[(r * {k} + j) * {n} + i % {n}]; }}
    y[i] = sum;"
                );
                self.by_row(cols, inputs, body);
            }
            Math::ScaleSlots { shared } => {
                let k = self.cols(1);
                let [k, n] = self.sizes([k, self.out_cols(0) / k]);
                let x = if *shared { format!("a[r * {n} + col % {n}]") } else { "a[i]".into() };
                self.each(0, inputs, &format!("b[r * {k} + col / {n}] * {x}"));
            }
            Math::SlotDots { slots } => {
                let shared = self.cols(0) != self.cols(1);
                let [n, k] = self.sizes([self.cols(0) / slots, *slots]);
                let from = if shared { format!("i / {k} * {n}") } else { format!("i * {n}") };
                let sum = text::long_sum(&n, "", &format!("a[i * {n} + o] * b[{from} + o]"));
                self.by_row(*slots, inputs, format!("{sum}\n    y[i] = sum;"));
            }
            // `math` calls this for slots alone.
            _ => return Err(self.refused()),
        }
        Ok(())
    }

    /// Each number of a slot, given its place, in the column of its id: y[r, e] is the sum over the slots j of e.
    fn scatter(&mut self, experts: usize, ids: &str, number: impl Fn(&str) -> String) {
        let [k, e] = self.sizes([self.cols(0), experts]);
        let one = number(&format!("r * {k} + j"));
        let body = format!(
            "let r = i / {e}; var sum = 0.0;
    for (var j = 0u; j < {k}; j++) {{ if ({ids}[r * {k} + j] == i % {e}) {{ sum += {one}; }} }}
    y[i] = sum;"
        );
        self.by_row(experts, self.inputs(), body);
    }

    fn top_k(&mut self, used: usize, groups: usize) {
        let cols = self.cols(0);
        let [n, g, all, k] = self.sizes([cols / groups, groups, cols, used]);
        let body = format!(
            "let start = i % {g} * {n}; let at = i / {g} * {all} + start; let to = i * {k};
    for (var j = 0u; j < {k}; j++) {{
        var best = {n};
        for (var e = 0u; e < {n}; e++) {{
            var gone = false;
            for (var o = 0u; o < j; o++) {{ gone = gone || y[to + o] == start + e; }}
            if (!gone && (best == {n} || a[at + e] > a[at + min(best, {n} - 1u)])) {{ best = e; }}
        }}
        y[to + j] = start + best;
    }}"
        );
        self.by_row(groups, self.inputs(), body);
    }

    fn capacity(&mut self, c: &Capacity) {
        let k = self.cols(0);
        let room = capacity::slots(c, self.rows, k);
        let [k_text, room, rows] = self.sizes([k, room, self.rows]);
        let earlier = format!("(j < s % {k_text} || (j == s % {k_text} && t < s / {k_text}))");
        let before = match c.keep {
            Keep::Position => earlier,
            Keep::Largest => format!("(b[o] > b[s] || (b[o] == b[s] && {earlier}))"),
        };
        let body = format!(
            "let s = i; y[s] = 0.0; z[s] = -1.0;
    if (b[s] == 0.0) {{ return; }}
    var place = 0u;
    for (var t = 0u; t < {rows}; t++) {{
        for (var j = 0u; j < {k_text}; j++) {{
            let o = t * {k_text} + j;
            if (b[o] != 0.0 && a[o] == a[s] && {before}) {{ place++; }}
        }}
    }}
    if (place < {room}) {{ y[s] = 1.0; z[s] = f32(place); }}"
        );
        self.does((self.rows * k).pow(2));
        self.by_row(k, self.inputs(), body);
    }

    /// Element (r, col) of operand i, which may have one row or column.
    fn repeated(&mut self, i: usize, name: &str) -> String {
        let v = self.node.inputs[i];
        let one_row = matches!(self.g.ty(v).dims(), Some((Rows::Fixed(1), _)));
        let cols = self.g.cols(v);
        let row = if one_row { "0u".to_string() } else { format!("r * {}", self.size(cols)) };
        let col = if cols == 1 { "0u" } else { "col" };
        format!("{name}[{row} + {col}]")
    }

    fn reduce(&mut self, axis: Axis, mean: bool) {
        let (inputs, cols, rows) = (self.inputs(), self.cols(0), self.in_rows(0));
        let by = if mean { 1.0 / (if axis == Axis::Rows { rows } else { cols }) as f64 } else { 1.0 };
        let (by, [n, count]) = (self.factor(by), self.sizes([cols, rows]));
        match axis {
            Axis::Rows => {
                let sum = text::long_sum(&count, "", &format!("a[o * {n} + i]"));
                let write = self.output(0);
                self.push(inputs, vec![write], cols, format!("{sum}\n    y[i] = {by} * sum;"));
            }
            Axis::Cols => {
                let sum = text::long_sum(&n, "", &format!("a[i * {n} + o]"));
                self.by_row(1, inputs, format!("{sum}\n    y[i] = {by} * sum;"));
            }
        }
    }

    fn rotate(&mut self, r: &Rotation) {
        let pairs = r.freq.len();
        let mut numbers = vec![];
        for t in 0..self.rows {
            let scale = r.scale * r.temperature.map_or(1.0, |x| x.at(t));
            for f in r.freq.iter() {
                let (sin, cos) = (t as f64 * f).sin_cos();
                let sin = if r.inverse { -sin } else { sin };
                numbers.extend([(scale * cos) as f32, (scale * sin) as f32]);
            }
        }
        // Without pairs only the scale is left.
        let table = self.table(if numbers.is_empty() { vec![0.0; 2] } else { numbers });
        let cols = self.out_cols(0);
        let [d, dims, n, all] = self.sizes([r.head_dim, r.dims, pairs, cols]);
        let [pair, other, first] = match r.pairs {
            RopePairs::Interleaved => ["o / 2u", "o ^ 1u", "o % 2u == 0u"].map(String::from),
            RopePairs::Halves => [format!("o % {n}"), format!("(o + {n}) % {dims}"), format!("o < {n}")],
        };
        let body = format!(
            "let r = i / {all}; let o = i % {d};
    if (o >= {dims}) {{
        y[i] = a[i];
    }} else {{
        let at = 2u * ((r - b[r]) * {n} + {pair});
        let other = a[i - o + ({other})];
        y[i] = select(other * c[at + 1u] + a[i] * c[at], a[i] * c[at] - other * c[at + 1u], {first});
    }}"
        );
        let reads = [self.inputs(), vec![table]].concat();
        self.by_row(cols, reads, body);
    }
}
