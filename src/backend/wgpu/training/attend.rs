//! From nodes to kernels: attention and its gradients (`ops/self_attend.rs`).
//!
//! A workgroup has some neighbouring rows of one head (of keys: some neighbouring keys), an invocation each, and walks the rows that
//! any of them sees, or is seen by, in order: all invocations read the same key at a time. What belongs to the invocation's own row
//! is in its private memory. P is made again in the backward pass from the logarithm of its sum.

use super::{
    kernel::{Operand, Work},
    lower::Lower,
    text,
};
use crate::ir::{SelfAttention, WeightId};

/// Sizes of an attention as expressions.
struct Sizes {
    rows: String,
    heads: String,
    kv: String,
    group: String,
    scale: String,
    /// Positions of a window or a chunk.
    seen: String,
}

impl Lower<'_> {
    fn attention_sizes(&mut self, a: &SelfAttention) -> Sizes {
        let [rows, heads, kv, group] = self.sizes([self.rows, a.heads, a.kv_heads, a.heads / a.kv_heads]);
        let seen = self.size(a.window.or(a.attention_chunk).unwrap_or(0));
        Sizes { rows, heads, kv, group, scale: self.factor(a.scale), seen }
    }

    /// The work of so many products for each pair of a row and one that it sees: half of a text's pairs, or a window of each row.
    fn attention_work(&self, a: &SelfAttention, products: usize) -> Work {
        let rows = (self.rows * a.heads) as f64 * products as f64;
        match a.window.or(a.attention_chunk) {
            Some(n) => Work::of(rows * n.min(self.rows) as f64),
            None => Work { always: 0.0, text_row: Work::of(rows / 2.0).always },
        }
    }

    /// Statements that begin a kernel of queries: `t` and `own`, its row and head, `first`, the first row that it sees, and the rows
    /// that the workgroup sees, from `start` to below `end`.
    fn begin_queries(&self, a: &SelfAttention, s: &Sizes) -> String {
        let (lanes, rows, group, part) = (self.lanes(), &s.rows, &s.group, text::parameter(1));
        format!(
            "let block = (w.x + {part}) * {lanes}u; let own = w.y; let kv = own / {group};
    let end = min(block + {lanes}u, {rows});
    let t = min(block + l.x, {rows} - 1u);
    {}
    var start = block;
    for (var o = block; o < end; o++) {{ {} start = min(start, first); }}
    let head = t * {} + own;",
            text::first_seen(a, &s.seen, "t", "d"),
            text::first_seen(a, &s.seen, "o", "d"),
            s.heads,
        )
    }

    pub(super) fn self_attend(&mut self, a: &SelfAttention) {
        let s = self.attention_sizes(a);
        let mut reads = self.inputs();
        reads.extend(a.sinks.map(|s| self.weight(s)));
        let (most, sum) = if a.sinks.is_some() { ("f[own]", "exp(f[own] - most)") } else { ("-1e30", "0.0") };
        let (kd, vd, Sizes { kv, scale, rows, .. }) = (a.k_dim, a.v_dim, &s);
        let dot = format!(
            "let k_at = (j * {kv} + kv) * {kd}u; var s = 0.0;
        for (var x = 0u; x < {kd}u; x++) {{ s += own_q[x] * b[k_at + x]; }}"
        );
        let body = format!(
            "{}
    {}
    var most = {most};
    for (var j = start; j < end; j++) {{
        {dot}
        if (j >= first && j <= t) {{ most = max(most, s * {scale}); }}
    }}
    var sum = {sum};
    var made = array<f32, {vd}>();
    for (var j = start; j < end; j++) {{
        {dot}
        let v_at = (j * {kv} + kv) * {vd}u;
        if (j >= first && j <= t) {{
            let e = exp(s * {scale} - most);
            sum += e;
            for (var x = 0u; x < {vd}u; x++) {{ made[x] += e * c[v_at + x]; }}
        }}
    }}
    if (block + l.x >= {rows}) {{ return; }}
    for (var x = 0u; x < {vd}u; x++) {{ y[head * {vd}u + x] = made[x] / sum; }}
    z[head] = most + ln(sum);",
            self.begin_queries(a, &s),
            own("own_q", "a", "head", kd),
        );
        let writes = vec![self.output(0), self.output(1)];
        self.block(reads, writes, [self.rows, a.heads], self.attention_work(a, 2 * a.k_dim + a.v_dim), body);
    }

    pub(super) fn attend_grad(&mut self, a: &SelfAttention) {
        let (all, rows) = (self.inputs(), self.rows);
        // Of each row and head: the logarithm of the sum, and D = Σ do · o.
        let stats = self.scratch(2 * rows * a.heads, false);
        let vd = self.size(a.v_dim);
        let sum = format!(
            "var sum = 0.0;
    for (var x = 0u; x < {vd}; x++) {{ sum += a[i * {vd} + x] * b[i * {vd} + x]; }}
    y[2u * i] = c[i]; y[2u * i + 1u] = sum;"
        );
        self.push(vec![all[4], all[6], all[5]], vec![stats], rows * a.heads, sum);
        // a q, b k, c v, d starts, f do, h the two above.
        let reads = [all[0], all[1], all[2], all[3], all[6], stats];
        self.queries_grad(a, &reads);
        self.keys_grad(a, &reads);
    }

    fn queries_grad(&mut self, a: &SelfAttention, reads: &[Operand]) {
        let s = self.attention_sizes(a);
        let (kd, vd, Sizes { kv, rows, .. }) = (a.k_dim, a.v_dim, &s);
        let body = format!(
            "{}
    {}
    {}
    var made = array<f32, {kd}>();
    for (var j = start; j < end; j++) {{
        let k_at = (j * {kv} + kv) * {kd}u; let v_at = (j * {kv} + kv) * {vd}u;
        if (j >= first && j <= t) {{
            {}
            for (var x = 0u; x < {kd}u; x++) {{ made[x] += ds * b[k_at + x]; }}
        }}
    }}
    if (block + l.x >= {rows}) {{ return; }}
    for (var x = 0u; x < {kd}u; x++) {{ y[head * {kd}u + x] = made[x]; }}",
            self.begin_queries(a, &s),
            own("own_q", "a", "head", kd),
            own("own_d", "f", "head", vd),
            pair(a, &s, ["own_q[x]", "b[k_at + x]"], ["own_d[x]", "c[v_at + x]"]),
        );
        let work = self.attention_work(a, 2 * a.k_dim + a.v_dim);
        self.block(reads.to_vec(), vec![self.output(0)], [self.rows, a.heads], work, body);
    }

    /// Of each key and value: over the rows that see it, heads in order.
    fn keys_grad(&mut self, a: &SelfAttention, reads: &[Operand]) {
        let s = self.attention_sizes(a);
        let (kd, vd, lanes, part) = (a.k_dim, a.v_dim, self.lanes(), text::parameter(1));
        let Sizes { rows, heads, kv, group, seen, .. } = &s;
        let body = format!(
            "let block = (w.x + {part}) * {lanes}u; let own = w.y;
    let end = min(block + {lanes}u, {rows});
    let j = min(block + l.x, {rows} - 1u);
    let key = j * {kv} + own;
    {}
    {}
    var made_k = array<f32, {kd}>(); var made_v = array<f32, {vd}>();
    for (var t = block; t < {rows}; t++) {{
        {}
        // No key of the workgroup is seen.
        if (first >= end) {{ continue; }}
        for (var o = 0u; o < {group}; o++) {{
            let head = t * {heads} + own * {group} + o;
            let q_at = head * {kd}u; let o_at = head * {vd}u;
            if (j >= first && j <= t) {{
                {}
                for (var x = 0u; x < {kd}u; x++) {{ made_k[x] += ds * a[q_at + x]; }}
                for (var x = 0u; x < {vd}u; x++) {{ made_v[x] += e * f[o_at + x]; }}
            }}
        }}
    }}
    if (block + l.x >= {rows}) {{ return; }}
    for (var x = 0u; x < {kd}u; x++) {{ y[key * {kd}u + x] = made_k[x]; }}
    for (var x = 0u; x < {vd}u; x++) {{ z[key * {vd}u + x] = made_v[x]; }}",
            own("own_k", "b", "key", kd),
            own("own_v", "c", "key", vd),
            text::first_seen(a, seen, "t", "d"),
            pair(a, &s, ["a[q_at + x]", "own_k[x]"], ["f[o_at + x]", "own_v[x]"]),
        );
        let writes = vec![self.output(1), self.output(2)];
        let work = self.attention_work(a, 2 * (a.k_dim + a.v_dim));
        self.block(reads.to_vec(), writes, [self.rows, a.kv_heads], work, body);
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

/// Statements that copy the `n` numbers of row `at` of an operand to private memory.
fn own(name: &str, from: &str, at: &str, n: usize) -> String {
    format!(
        "var {name} = array<f32, {n}>();
    for (var x = 0u; x < {n}u; x++) {{ {name}[x] = {from}[{at} * {n}u + x]; }}"
    )
}

/// Statements that make P and dS of a query and a key, `e` and `ds`, of the factors of q · k and of do · v.
fn pair(a: &SelfAttention, s: &Sizes, [q, k]: [&str; 2], [d, v]: [&str; 2]) -> String {
    let (kd, vd, scale) = (a.k_dim, a.v_dim, &s.scale);
    format!(
        "var s = 0.0; var along = 0.0;
            for (var x = 0u; x < {kd}u; x++) {{ s += {q} * {k}; }}
            for (var x = 0u; x < {vd}u; x++) {{ along += {d} * {v}; }}
            let e = exp(s * {scale} - h[2u * head]);
            let ds = e * (along - h[2u * head + 1u]) * {scale};"
    )
}
