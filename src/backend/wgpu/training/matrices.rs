//! From nodes to kernels: matrices, wherever their rows lie.
//!
//! A kernel reads or adds to some rows of one segment at a time. Of a packed matrix some rows become f32 first, in a scratch that all
//! products use in turn: so a product costs one look more at each weight, and there is one text of products for all formats.

use super::{
    kernel::{Buffer, Kind, Operand},
    lower::Lower,
    places::{Cut, cuts},
    tile::Tile,
};
use crate::{
    error::{Error, Result},
    ir::{Linear, WeightId},
    quant::gpu::{GROUP, groups_per_row},
};

/// Most numbers of a packed matrix that are f32 at a time.
const MOST_DEQUANTIZED: usize = 16 << 20;

/// Rows of a matrix in f32.
pub struct Part {
    /// Which rows, of which experts.
    pub cut: Cut,
    /// Where they are.
    pub operand: Operand,
    /// Which row of that is the first.
    pub first: usize,
}

impl Lower<'_> {
    /// Cuts a matrix of so many rows for each expert.
    pub fn cuts(&self, w: WeightId, out: usize) -> Result<Vec<Cut>> {
        let place = self.places[w.0 as usize].as_ref();
        let place = place.ok_or_else(|| Error::Graph(format!("{} has no place", self.g.weight(w).name)))?;
        let most = match place.plain {
            true => usize::MAX,
            false => MOST_DEQUANTIZED.min((self.binding / 4) as usize) / place.matrix.cols.max(1),
        };
        Ok(cuts(&place.matrix.segments, out, most))
    }

    /// These rows in f32; of a packed matrix by a kernel that makes them so.
    pub fn rows_of_matrix(&mut self, w: WeightId, cut: Cut) -> Part {
        let (buffer, first) = (Buffer::Weight(w, cut.segment), cut.first);
        let Some(place) = self.places[w.0 as usize].as_ref().filter(|p| !p.plain) else {
            return Part { cut, operand: Operand { buffer, kind: Kind::Numbers }, first };
        };
        let (dtype, cols, groups) = (place.matrix.dtype, place.matrix.cols, groups_per_row(place.matrix.cols));
        let rows = cut.experts.len() * cut.rows.len();
        let to = self.dequantized(rows * cols);
        let packed = Operand { buffer, kind: Kind::Packed(dtype) };
        let segment = place.matrix.segments[cut.segment].rows;
        let [all, begin, each, width] = self.sizes([segment * groups, first * groups, groups, cols]);
        let body = format!(
            "let at = i / {each} * {width} + i % {each} * {GROUP}u;
    let left = {width} - i % {each} * {GROUP}u;
    let x = W_dequant({begin} + i, {all});
    {}",
            store_group("y", "at", "left", "x", "1.0")
        );
        self.does(rows * cols);
        self.push_named("dequantize", vec![packed], vec![to], rows * groups, body);
        Part { cut, operand: to, first: 0 }
    }

    /// The scratch of packed matrices, for so many numbers at least.
    fn dequantized(&mut self, numbers: usize) -> Operand {
        let at = match self.dequantized {
            Some(at) => at,
            None => {
                self.out.scratch.push(0);
                self.out.scratch.len() - 1
            }
        };
        self.dequantized = Some(at);
        self.out.scratch[at] = self.out.scratch[at].max(numbers);
        Operand { buffer: Buffer::Scratch(at), kind: Kind::Numbers }
    }

    /// Rows of a table by ids: a kernel for each segment, which leaves alone what lies in others.
    pub(super) fn embed(&mut self, table: WeightId, scale: f32) {
        let (rows, cols) = (self.out_rows(0), self.out_cols(0));
        let Some(place) = &self.places[table.0 as usize] else { return };
        for (s, segment) in place.matrix.segments.iter().enumerate() {
            let buffer = Buffer::Weight(table, s);
            let scale = self.factor(f64::from(scale));
            let [n, first, count] = self.sizes([cols, segment.row0, segment.rows]);
            let to = vec![self.output(0)];
            if place.plain {
                let read = Operand { buffer, kind: Kind::Numbers };
                let body = format!(
                    "let row = a[i / {n}] - {first};
    if (row < {count}) {{ y[i] = {scale} * b[row * {n} + i % {n}]; }}"
                );
                self.push(vec![self.input(0), read], to, rows * cols, body);
            } else {
                let read = Operand { buffer, kind: Kind::Packed(place.matrix.dtype) };
                let groups = groups_per_row(cols);
                let [each, all] = self.sizes([groups, segment.rows * groups]);
                let body = format!(
                    "let t = i / {each}; let row = a[t] - {first};
    if (row >= {count}) {{ return; }}
    let at = t * {n} + i % {each} * {GROUP}u;
    let left = {n} - i % {each} * {GROUP}u;
    let x = W_dequant(row * {each} + i % {each}, {all});
    {}",
                    store_group("y", "at", "left", "x", &scale)
                );
                self.push(vec![self.input(0), read], to, rows * groups, body);
            }
        }
    }

    pub(super) fn linear(&mut self, l: &Linear) -> Result<()> {
        let (rows, out, inp) = (self.out_rows(0), self.out_cols(0), self.cols(0));
        for cut in self.cuts(l.weight, out)? {
            let part = self.rows_of_matrix(l.weight, cut);
            let mut reads = vec![self.input(0), part.operand];
            reads.extend(l.bias.map(|b| self.weight(b)));
            let own = part.cut.rows.len();
            let [m, n, k, all, from, first] = self.sizes([rows, own, inp, out, part.cut.rows.start, part.first]);
            let bias = if l.bias.is_some() { format!(" + c[{from} + col]") } else { String::new() };
            let tile = Tile {
                before: String::new(),
                sizes: [m, n, k.clone()],
                a_row: "row".into(),
                summand: "k".into(),
                a: format!("a[ra * {k} + k]"),
                a_along_k: true,
                b: format!("b[({first} + col) * {k} + k]"),
                b_along_k: true,
                at: format!("row * {all} + {from} + col"),
                value: format!("sum{bias}"),
                adds: false,
                direct: self.direct,
            };
            self.tiles(reads, self.output(0), [rows, own, 1], rows as f64 * (own * inp) as f64, tile);
        }
        Ok(())
    }

    /// The gradient by what a matrix is multiplied with: a sum over its rows, so that each part but the first adds.
    pub(super) fn linear_input(&mut self, weight: WeightId) -> Result<()> {
        let (rows, out, inp) = (self.out_rows(0), self.cols(0), self.out_cols(0));
        for (i, cut) in self.cuts(weight, out)?.into_iter().enumerate() {
            let part = self.rows_of_matrix(weight, cut);
            let own = part.cut.rows.len();
            let [m, n, k, all, from, first] = self.sizes([rows, inp, own, out, part.cut.rows.start, part.first]);
            let tile = Tile {
                before: String::new(),
                sizes: [m, n.clone(), k],
                a_row: "row".into(),
                summand: "k".into(),
                a: format!("a[ra * {all} + {from} + k]"),
                a_along_k: true,
                b: format!("b[({first} + k) * {n} + col]"),
                b_along_k: false,
                at: format!("row * {n} + col"),
                value: "sum".into(),
                adds: i > 0,
                direct: self.direct,
            };
            let reads = vec![self.input(0), part.operand];
            self.tiles(reads, self.output(0), [rows, inp, 1], rows as f64 * (own * inp) as f64, tile);
        }
        Ok(())
    }

    pub(super) fn outer(&mut self, into: WeightId) -> Result<()> {
        let (rows, inp, out) = (self.in_rows(0), self.cols(0), self.cols(1));
        for cut in self.cuts(into, out)? {
            let own = cut.rows.len();
            let to = Operand { buffer: Buffer::Gradient(into, cut.segment), kind: Kind::Numbers };
            let [m, n, k, all, from, first] = self.sizes([own, inp, rows, out, cut.rows.start, cut.first]);
            let tile = Tile {
                before: String::new(),
                sizes: [m, n.clone(), k],
                a_row: "row".into(),
                summand: "k".into(),
                a: format!("b[k * {all} + {from} + row]"),
                a_along_k: false,
                b: format!("a[k * {n} + col]"),
                b_along_k: false,
                at: format!("({first} + row) * {n} + col"),
                value: "sum".into(),
                adds: true,
                direct: self.direct,
            };
            self.tiles(self.inputs(), to, [own, inp, 1], rows as f64 * (own * inp) as f64, tile);
        }
        Ok(())
    }

    /// Tokens of one id are a list: the first one walks it. So a large vocabulary costs nothing.
    pub(super) fn embed_grad(&mut self, into: WeightId, scale: f32) {
        let (rows, cols) = (self.in_rows(0), self.shape(into)[1]);
        let Some(place) = &self.places[into.0 as usize] else { return };
        let list = self.scratch(2 * rows, true);
        let count = self.size(rows);
        let body = format!(
            "var head = 1u; var next = {count};
    for (var s = i; s > 0u; s--) {{ if (a[s - 1u] == a[i]) {{ head = 0u; break; }} }}
    for (var s = i + 1u; s < {count}; s++) {{ if (a[s] == a[i]) {{ next = s; break; }} }}
    y[2u * i] = head; y[2u * i + 1u] = next;"
        );
        self.does(rows * rows);
        self.push(vec![self.input(0)], vec![list], rows, body);
        for (s, segment) in place.matrix.segments.iter().enumerate() {
            let to = Operand { buffer: Buffer::Gradient(into, s), kind: Kind::Numbers };
            let sizes = self.sizes([cols, rows, segment.row0, segment.rows]);
            let ([n, count, first, own], scale) = (sizes, self.factor(f64::from(scale)));
            let body = format!(
                "let t = i / {n}; let col = i % {n}; let row = a[t] - {first};
    if (c[2u * t] == 0u || row >= {own}) {{ return; }}
    var sum = 0.0;
    for (var s = t; s < {count}; s = c[2u * s + 1u]) {{ sum += b[s * {n} + col]; }}
    y[row * {n} + col] += {scale} * sum;"
            );
            let reads = vec![self.input(0), self.input(1), list];
            self.push(reads, vec![to], rows * cols, body);
        }
    }
}

/// Statements that store a group, or what is left of a row.
fn store_group(to: &str, at: &str, left: &str, group: &str, factor: &str) -> String {
    let four = |o: usize| {
        let one = |x: usize| {
            let part = ["x", "y", "z", "w"][x];
            format!("{to}[{at} + {}u] = {factor} * {group}[{o}].{part};", 4 * o + x)
        };
        let all = (0..4).map(one).collect::<Vec<_>>().join(" ");
        format!("if ({left} > {}u) {{ {all} }}", 4 * o)
    };
    (0..GROUP / 4).map(four).collect::<Vec<_>>().join("\n    ")
}
