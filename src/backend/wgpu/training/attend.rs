//! From nodes to kernels: attention and its gradients (`ops/self_attend.rs`).
//!
//! An invocation for each row and head (of keys: of each key and head of keys), which walks the rows that it sees, or is seen
//! by, in order. P is made again in the backward pass from the logarithm of its sum.

use super::{lower::Lower, text};
use crate::ir::{SelfAttention, WeightId};

/// Sizes of an attention as expressions.
struct Sizes {
    heads: String,
    kv: String,
    group: String,
    kd: String,
    vd: String,
    scale: String,
    /// Positions of a window or a chunk.
    seen: String,
}

impl Lower<'_> {
    fn attention_sizes(&mut self, a: &SelfAttention) -> Sizes {
        let numbers = [a.heads, a.kv_heads, a.heads / a.kv_heads, a.k_dim, a.v_dim];
        let [heads, kv, group, kd, vd] = self.sizes(numbers);
        let seen = self.size(a.window.or(a.attention_chunk).unwrap_or(0));
        Sizes { heads, kv, group, kd, vd, scale: self.factor(a.scale), seen }
    }

    pub(super) fn self_attend(&mut self, a: &SelfAttention) {
        let Sizes { heads, kv, group, kd, vd, scale, seen } = self.attention_sizes(a);
        let mut reads = self.inputs();
        reads.extend(a.sinks.map(|s| self.weight(s)));
        let (most, sum) = if a.sinks.is_some() { ("f[own]", "exp(f[own] - most)") } else { ("-1e30", "0.0") };
        let first = text::first_seen(a, &seen, "t", "d");
        let dot = format!(
            "var s = 0.0;
        for (var x = 0u; x < {kd}; x++) {{ s += a[q_at + x] * b[(j * {kv} + kv) * {kd} + x]; }}"
        );
        let body = format!(
            "let t = i / {heads}; let own = i % {heads}; let kv = own / {group};
    {first}
    let q_at = i * {kd}; let o_at = i * {vd};
    var most = {most};
    for (var j = first; j <= t; j++) {{
        {dot}
        most = max(most, s * {scale});
    }}
    var sum = {sum};
    for (var x = 0u; x < {vd}; x++) {{ y[o_at + x] = 0.0; }}
    for (var j = first; j <= t; j++) {{
        {dot}
        let e = exp(s * {scale} - most);
        sum += e;
        for (var x = 0u; x < {vd}; x++) {{ y[o_at + x] += e * c[(j * {kv} + kv) * {vd} + x]; }}
    }}
    for (var x = 0u; x < {vd}; x++) {{ y[o_at + x] /= sum; }}
    z[i] = most + ln(sum);"
        );
        self.by_row(a.heads, reads, body);
    }

    pub(super) fn attend_grad(&mut self, a: &SelfAttention) {
        let (all, rows) = (self.inputs(), self.rows);
        // D = Σ do · o, one a row and head.
        let means = self.scratch(rows * a.heads, false);
        let vd = self.size(a.v_dim);
        let sum = format!(
            "var sum = 0.0;
    for (var x = 0u; x < {vd}; x++) {{ sum += a[i * {vd} + x] * b[i * {vd} + x]; }}
    y[i] = sum;"
        );
        self.push(vec![all[4], all[6]], vec![means], rows * a.heads, sum);
        // a q, b k, c v, d starts, f lse, h do, q D.
        let reads = [all[0], all[1], all[2], all[3], all[5], all[6], means];
        self.queries_grad(a, &reads);
        // One kernel each for keys and values, as a stage has eight storage buffers.
        self.keys_grad(a, &reads, 1);
        self.keys_grad(a, &reads, 2);
    }

    fn queries_grad(&mut self, a: &SelfAttention, reads: &[super::kernel::Operand]) {
        let s = self.attention_sizes(a);
        let (Sizes { heads, kv, group, kd, vd, seen, .. }, pair) = (&s, pair(&s));
        let first = text::first_seen(a, seen, "t", "d");
        let body = format!(
            "let t = i / {heads}; let head = i; let own = i % {heads} / {group};
    {first}
    let q_at = i * {kd}; let o_at = i * {vd};
    for (var x = 0u; x < {kd}; x++) {{ y[q_at + x] = 0.0; }}
    for (var j = first; j <= t; j++) {{
        let k_at = (j * {kv} + own) * {kd}; let v_at = (j * {kv} + own) * {vd};
        {pair}
        for (var x = 0u; x < {kd}; x++) {{ y[q_at + x] += ds * b[k_at + x]; }}
    }}"
        );
        self.push(reads.to_vec(), vec![self.output(0)], self.rows * a.heads, body);
    }

    /// Of each key (result 1) or value (2): over the rows of its sequence that see it, heads in order.
    fn keys_grad(&mut self, a: &SelfAttention, reads: &[super::kernel::Operand], which: usize) {
        let s = self.attention_sizes(a);
        let (Sizes { heads, kv, group, kd, vd, seen, .. }, pair) = (&s, pair(&s));
        let (n, adds) = match which {
            1 => (kd, "ds * a[q_at + x]"),
            _ => (vd, "e * h[o_at + x]"),
        };
        let (first, rows) = (text::first_seen(a, seen, "t", "d"), self.size(self.rows));
        let body = format!(
            "let j = i / {kv}; let own = i % {kv}; let to = i * {n};
    let k_at = i * {kd}; let v_at = i * {vd};
    for (var x = 0u; x < {n}; x++) {{ y[to + x] = 0.0; }}
    for (var t = j; t < {rows}; t++) {{
        // Of another sequence.
        if (d[t] > j) {{ continue; }}
        {first}
        if (first > j) {{ continue; }}
        for (var o = 0u; o < {group}; o++) {{
            let head = t * {heads} + own * {group} + o;
            let q_at = head * {kd}; let o_at = head * {vd};
            {pair}
            for (var x = 0u; x < {n}; x++) {{ y[to + x] += {adds}; }}
        }}
    }}"
        );
        self.push(reads.to_vec(), vec![self.output(which)], self.rows * a.kv_heads, body);
    }

    pub(super) fn sinks(&mut self, into: WeightId) {
        let heads = self.cols(1);
        let [n, vd, rows] = self.sizes([heads, self.cols(0) / heads, self.rows]);
        let before = format!(
            "let head = o * {n} + i; var mean = 0.0;
        for (var x = 0u; x < {vd}; x++) {{ mean += c[head * {vd} + x] * a[head * {vd} + x]; }}"
        );
        let sum = text::long_sum(&rows, &before, "exp(d[i] - b[head]) * mean");
        let reads = [self.inputs(), vec![self.weight(into)]].concat();
        self.push(reads, vec![self.gradient(into)], heads, format!("{sum}\n    y[i] -= sum;"));
    }
}

/// Statements that make P and dS of a query and a key: `e` and `ds`.
fn pair(s: &Sizes) -> String {
    let Sizes { kd, vd, scale, .. } = s;
    format!(
        "var s = 0.0; var along = 0.0;
        for (var x = 0u; x < {kd}; x++) {{ s += a[q_at + x] * b[k_at + x]; }}
        for (var x = 0u; x < {vd}; x++) {{ along += h[o_at + x] * c[v_at + x]; }}
        let e = exp(s * {scale} - f[head]);
        let ds = e * (along - q[head]) * {scale};"
    )
}
