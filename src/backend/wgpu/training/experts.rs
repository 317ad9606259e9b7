//! From nodes to kernels: experts. Slots are sorted by expert once for all that reads the same ids, stably: the slots of an expert
//! come in ascending order, so that sums over them do not depend on the schedule.

use super::{
    kernel::{Buffer, Kind, Operand},
    lower::Lower,
    places::Cut,
    text,
    tile::Tile,
};
use crate::{
    error::Result,
    ir::{Linear, ValueId, WeightId},
};

/// Sizes of a product of experts.
struct Sizes {
    experts: usize,
    out: usize,
    inp: usize,
    /// Slots of a token.
    used: usize,
    /// Slots of all tokens.
    slots: usize,
}

/// The slots of an expert, of ranges named so; `from` is the expert of product 0.
fn own(ranges: &str, from: &str) -> String {
    format!("let expert = {from} + e; let first = {ranges}[2u * expert]; let count = {ranges}[2u * expert + 1u];")
}

impl Lower<'_> {
    /// The ranges `[first, count]` of each expert, and slots by expert in ascending order.
    pub fn sorted(&mut self, ids: ValueId, experts: usize) -> [Operand; 2] {
        if let Some(b) = self.sorted.get(&(ids, experts)) {
            return b.map(|buffer| Operand { buffer, kind: Kind::Ids });
        }
        let all = self.g.cols(ids) * self.rows_of(ids);
        let (ranges, order) = (self.scratch(2 * experts, true), self.scratch(all, true));
        self.does(2 * experts * all);
        let all = self.size(all);
        let body = format!(
            "var first = 0u; var count = 0u;
    for (var s = 0u; s < {all}; s++) {{
        first += select(0u, 1u, a[s] < i);
        count += select(0u, 1u, a[s] == i);
    }}
    y[2u * i] = first; y[2u * i + 1u] = count;
    var at = first;
    for (var s = 0u; s < {all}; s++) {{ if (a[s] == i) {{ z[at] = s; at++; }} }}"
        );
        let read = self.value(ids);
        self.push_named("expert_sort", vec![read], vec![ranges, order], experts, body);
        self.sorted.insert((ids, experts), [ranges.buffer, order.buffer]);
        [ranges, order]
    }

    fn expert_sizes(&self, w: WeightId, ids: usize) -> Sizes {
        let (shape, used) = (self.shape(w), self.cols(ids));
        Sizes { experts: shape[0], out: shape[1], inp: shape[2], used, slots: used * self.in_rows(0) }
    }

    /// Products of a part's experts, if each has as many slots as any other.
    fn expert_products(cut: &Cut, s: &Sizes) -> f64 {
        let share = cut.experts.len() as f64 / s.experts as f64;
        share * s.slots as f64 * (cut.rows.len() * s.inp) as f64
    }

    /// The row of a slot in operand i, which has `n` columns for each: where it has one row a token, all slots read that.
    fn row_of(&mut self, i: usize, n: usize, used: usize, slot: &str) -> String {
        if self.cols(i) == n { format!("({slot} / {})", self.size(used)) } else { slot.into() }
    }

    pub(super) fn expert_linear(&mut self, l: &Linear) -> Result<()> {
        let s = self.expert_sizes(l.weight, 1);
        let [ranges, order] = self.sorted(self.node.inputs[1], s.experts);
        for cut in self.cuts(l.weight, s.out)? {
            let part = self.rows_of_matrix(l.weight, cut);
            let (rows, batch) = (part.cut.rows.clone(), part.cut.experts.clone());
            let [n, m, all, from, first] = self.sizes([rows.len(), s.inp, s.out, rows.start, part.first]);
            let begin = self.size(batch.start);
            let a_row = self.row_of(0, s.inp, s.used, "d[first + row]");
            let mut reads = vec![self.input(0), part.operand, ranges, order];
            reads.extend(l.bias.map(|b| self.weight(b)));
            let bias = if l.bias.is_some() { format!(" + f[expert * {all} + {from} + col]") } else { String::new() };
            let tile = Tile {
                before: own("c", &begin),
                sizes: ["count".into(), n.clone(), m.clone()],
                a_row,
                summand: "k".into(),
                a: format!("a[ra * {m} + k]"),
                a_along_k: true,
                b: format!("b[(e * {n} + {first} + col) * {m} + k]"),
                b_along_k: true,
                at: format!("d[first + row] * {all} + {from} + col"),
                value: format!("sum{bias}"),
                adds: false,
                direct: self.direct,
            };
            let products = Self::expert_products(&part.cut, &s);
            self.tiles(reads, self.output(0), [s.slots, rows.len(), batch.len()], products, tile);
        }
        Ok(())
    }

    /// The gradient by what experts' matrices are multiplied with: where one expert's rows are cut, each part but the first adds.
    pub(super) fn expert_input(&mut self, weight: WeightId) -> Result<()> {
        let s = self.expert_sizes(weight, 1);
        let [ranges, order] = self.sorted(self.node.inputs[1], s.experts);
        for cut in self.cuts(weight, s.out)? {
            let part = self.rows_of_matrix(weight, cut);
            let (rows, batch) = (part.cut.rows.clone(), part.cut.experts.clone());
            let [n, m, all, from, first, begin] =
                self.sizes([s.inp, rows.len(), s.out, rows.start, part.first, batch.start]);
            let a_row = self.row_of(0, s.out, s.used, "d[first + row]");
            let tile = Tile {
                before: own("c", &begin),
                sizes: ["count".into(), n.clone(), m.clone()],
                a_row,
                summand: "k".into(),
                a: format!("a[ra * {all} + {from} + k]"),
                a_along_k: true,
                b: format!("b[(e * {m} + {first} + k) * {n} + col]"),
                b_along_k: false,
                at: format!("d[first + row] * {n} + col"),
                value: "sum".into(),
                adds: rows.start > 0,
                direct: self.direct,
            };
            let reads = vec![self.input(0), part.operand, ranges, order];
            let products = Self::expert_products(&part.cut, &s);
            self.tiles(reads, self.output(0), [s.slots, s.inp, batch.len()], products, tile);
        }
        Ok(())
    }

    pub(super) fn expert_outer(&mut self, into: WeightId) -> Result<()> {
        let s = self.expert_sizes(into, 2);
        let [ranges, order] = self.sorted(self.node.inputs[2], s.experts);
        for cut in self.cuts(into, s.out)? {
            let (rows, batch) = (cut.rows.clone(), cut.experts.clone());
            let to = Operand { buffer: Buffer::Gradient(into, cut.segment), kind: Kind::Numbers };
            let [n, m, all, from, first] = self.sizes([rows.len(), s.inp, s.out, rows.start, cut.first]);
            let begin = self.size(batch.start);
            let [x_row, y_row] = [(0, s.inp), (1, s.out)].map(|(i, n)| self.row_of(i, n, s.used, "rk"));
            let tile = Tile {
                before: own("c", &begin),
                sizes: [n.clone(), m.clone(), "count".into()],
                a_row: "row".into(),
                summand: "d[first + k]".into(),
                a: format!("b[{y_row} * {all} + {from} + row]"),
                a_along_k: false,
                b: format!("a[{x_row} * {m} + col]"),
                b_along_k: false,
                at: format!("(e * {n} + {first} + row) * {m} + col"),
                value: "sum".into(),
                adds: true,
                direct: self.direct,
            };
            let reads = vec![self.input(0), self.input(1), ranges, order];
            let products = Self::expert_products(&cut, &s);
            self.tiles(reads, to, [rows.len(), s.inp, batch.len()], products, tile);
        }
        Ok(())
    }

    pub(super) fn expert_sum_rows(&mut self, into: WeightId) {
        let (experts, out) = (self.shape(into)[0], self.shape(into)[1]);
        let [ranges, order] = self.sorted(self.node.inputs[1], experts);
        let n = self.size(out);
        let sum = text::long_sum("count", "", &format!("a[c[first + o] * {n} + i % {n}]"));
        let body =
            format!("let e = i / {n}; let first = b[2u * e]; let count = b[2u * e + 1u]; {sum}\n    y[i] += sum;");
        let reads = vec![self.input(0), ranges, order];
        self.push(reads, vec![self.gradient(into)], experts * out, body);
    }
}
