//! From nodes to kernels: experts. Slots are sorted by expert once for all that reads the same ids, stably: the slots of an expert
//! come in ascending order, so that sums over them do not depend on the schedule.

use super::{kernel::Operand, lower::Lower, text, tile::Tile};
use crate::ir::{Linear, ValueId, WeightId};

/// The slots of expert e, of ranges and slots named so.
fn own(ranges: &str) -> String {
    format!("let first = {ranges}[2u * e]; let count = {ranges}[2u * e + 1u];")
}

impl Lower<'_> {
    /// The ranges `[first, count]` of each expert, and slots by expert in ascending order.
    pub fn sorted(&mut self, ids: ValueId, experts: usize) -> [Operand; 2] {
        if let Some(b) = self.sorted.get(&(ids, experts)) {
            return b.map(|buffer| Operand { buffer, ids: true });
        }
        let all = self.g.cols(ids) * self.rows_of(ids);
        let (ranges, order) = (self.scratch(2 * experts, true), self.scratch(all, true));
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
        self.push(vec![read], vec![ranges, order], experts, body);
        self.sorted.insert((ids, experts), [ranges.buffer, order.buffer]);
        [ranges, order]
    }

    /// Experts, rows and columns of their matrices, and slots a token.
    fn expert_sizes(&self, w: WeightId, ids: usize) -> [usize; 4] {
        let shape = self.shape(w);
        [shape[0], shape[1], shape[2], self.cols(ids)]
    }

    pub(super) fn expert_linear(&mut self, l: &Linear) {
        let [experts, out, inp, k] = self.expert_sizes(l.weight, 1);
        let [ranges, order] = self.sorted(self.node.inputs[1], experts);
        let [n, m, slots] = self.sizes([out, inp, k]);
        // Where x has one row a token, all slots read that.
        let from = if self.cols(0) == inp { format!("d[first + row] / {slots}") } else { "d[first + row]".into() };
        let mut reads = vec![self.input(0), self.weight(l.weight), ranges, order];
        reads.extend(l.bias.map(|b| self.weight(b)));
        let bias = if l.bias.is_some() { format!(" + f[e * {n} + col]") } else { String::new() };
        let tile = Tile {
            before: own("c"),
            sizes: ["count".into(), n.clone(), m.clone()],
            a_row: from,
            summand: "k".into(),
            a: format!("a[ra * {m} + k]"),
            a_along_k: true,
            b: format!("b[(e * {n} + col) * {m} + k]"),
            b_along_k: true,
            at: format!("d[first + row] * {n} + col"),
            value: format!("sum{bias}"),
            adds: false,
            direct: self.direct,
        };
        self.tiles(reads, self.output(0), [k * self.in_rows(0), out, experts], tile);
    }

    pub(super) fn expert_input(&mut self, weight: WeightId) {
        let [experts, out, inp, k] = self.expert_sizes(weight, 1);
        let [ranges, order] = self.sorted(self.node.inputs[1], experts);
        let [n, m] = self.sizes([inp, out]);
        let tile = Tile {
            before: own("c"),
            sizes: ["count".into(), n.clone(), m.clone()],
            a_row: "d[first + row]".into(),
            summand: "k".into(),
            a: format!("a[ra * {m} + k]"),
            a_along_k: true,
            b: format!("b[(e * {m} + k) * {n} + col]"),
            b_along_k: false,
            at: format!("d[first + row] * {n} + col"),
            value: "sum".into(),
            adds: false,
            direct: self.direct,
        };
        let reads = vec![self.input(0), self.weight(weight), ranges, order];
        self.tiles(reads, self.output(0), [k * self.in_rows(0), inp, experts], tile);
    }

    pub(super) fn expert_outer(&mut self, into: WeightId) {
        let [experts, out, inp, k] = self.expert_sizes(into, 2);
        let [ranges, order] = self.sorted(self.node.inputs[2], experts);
        let [n, m, slots] = self.sizes([out, inp, k]);
        let from = if self.cols(0) == inp { format!("(rk / {slots})") } else { "rk".into() };
        let tile = Tile {
            before: own("c"),
            sizes: [n.clone(), m.clone(), "count".into()],
            a_row: "row".into(),
            summand: "d[first + k]".into(),
            a: format!("b[rk * {n} + row]"),
            a_along_k: false,
            b: format!("a[{from} * {m} + col]"),
            b_along_k: false,
            at: format!("(e * {n} + row) * {m} + col"),
            value: "sum".into(),
            adds: true,
            direct: self.direct,
        };
        let reads = vec![self.input(0), self.input(1), ranges, order];
        self.tiles(reads, self.gradient(into), [out, inp, experts], tile);
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
