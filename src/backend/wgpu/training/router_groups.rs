//! The text of routers over groups and those in the groups, as files have them: `ops/router.rs`, `GroupScore::Own`.

use super::text::number;
use crate::ir::{Groups, Router};

/// Sizes of a router over groups.
struct Sizes {
    experts: usize,
    /// Logits of a row.
    all: usize,
    used: usize,
    groups: usize,
    groups_used: usize,
    /// Experts of a group, and those that are chosen of it.
    size: usize,
    each: usize,
    scale: String,
}

impl Sizes {
    fn new(r: &Router, g: Groups) -> Sizes {
        Sizes {
            experts: r.experts,
            all: r.logits(),
            used: r.used,
            groups: g.count,
            groups_used: g.used,
            size: r.experts / g.count,
            each: r.used / g.used,
            scale: number(f64::from(r.scale)),
        }
    }
}

/// Statements that make of `x[0..n]` a softmax.
fn softmax(x: &str, n: usize) -> String {
    format!(
        "{{
        var most = {x}[0];
        for (var j = 1u; j < {n}u; j++) {{ most = max(most, {x}[j]); }}
        var total = 0.0;
        for (var j = 0u; j < {n}u; j++) {{ {x}[j] = exp({x}[j] - most); total += {x}[j]; }}
        for (var j = 0u; j < {n}u; j++) {{ {x}[j] = {x}[j] / total; }}
    }}"
    )
}

/// Statements that find in `best` the largest of the `count` logits from `first` on that are not marked in `marks`, and mark it.
fn best(first: &str, marks: &str, count: usize) -> String {
    let last = count - 1;
    format!(
        "var best = {count}u;
        for (var o = 0u; o < {count}u; o++) {{
            if (!{marks}[o] && (best == {count}u || a[{first} + o] > a[{first} + min(best, {last}u)])) {{ best = o; }}
        }}
        best = min(best, {last}u);
        {marks}[best] = true;"
    )
}

/// The choice and the weights of row i: a logits; y ids, z weights.
pub fn forward(r: &Router, g: Groups) -> String {
    let Sizes { experts, all, used, groups, groups_used, size, each, scale } = Sizes::new(r, g);
    format!(
        "let at = i * {all}u;
    var gone_groups: array<bool, {groups}>; var outer: array<f32, {groups_used}>; var which: array<u32, {groups_used}>;
    for (var o = 0u; o < {groups}u; o++) {{ gone_groups[o] = false; }}
    let of_groups = at + {experts}u;
    for (var m = 0u; m < {groups_used}u; m++) {{
        {}
        which[m] = best; outer[m] = a[of_groups + best];
    }}
    {}
    for (var m = 0u; m < {groups_used}u; m++) {{
        var gone: array<bool, {size}>; var inner: array<f32, {each}>;
        for (var o = 0u; o < {size}u; o++) {{ gone[o] = false; }}
        let of_group = at + which[m] * {size}u;
        for (var n = 0u; n < {each}u; n++) {{
            {}
            y[i * {used}u + m * {each}u + n] = which[m] * {size}u + best; inner[n] = a[of_group + best];
        }}
        {}
        for (var n = 0u; n < {each}u; n++) {{ z[i * {used}u + m * {each}u + n] = outer[m] * inner[n] * {scale}; }}
    }}",
        best("of_groups", "gone_groups", groups),
        softmax("outer", groups_used),
        best("of_group", "gone", size),
        softmax("inner", each),
    )
}

/// The gradient of row i by its logits: a logits, b ids, c the gradient by the weights; y.
pub fn backward(r: &Router, g: Groups) -> String {
    let Sizes { experts, all, used, groups_used, size, each, scale, .. } = Sizes::new(r, g);
    format!(
        "let at = i * {all}u;
    for (var e = 0u; e < {all}u; e++) {{ y[at + e] = 0.0; }}
    var outer: array<f32, {groups_used}>; var by_outer: array<f32, {groups_used}>;
    for (var m = 0u; m < {groups_used}u; m++) {{ outer[m] = a[at + {experts}u + b[i * {used}u + m * {each}u] / {size}u]; }}
    {}
    var mean = 0.0;
    for (var m = 0u; m < {groups_used}u; m++) {{
        let chosen = i * {used}u + m * {each}u;
        var inner: array<f32, {each}>;
        for (var n = 0u; n < {each}u; n++) {{ inner[n] = a[at + b[chosen + n]]; }}
        {}
        var along = 0.0;
        for (var n = 0u; n < {each}u; n++) {{ along += inner[n] * c[chosen + n] * {scale}; }}
        by_outer[m] = along; mean += outer[m] * along;
        for (var n = 0u; n < {each}u; n++) {{
            y[at + b[chosen + n]] = outer[m] * inner[n] * (c[chosen + n] * {scale} - along);
        }}
    }}
    for (var m = 0u; m < {groups_used}u; m++) {{
        y[at + {experts}u + b[i * {used}u + m * {each}u] / {size}u] = outer[m] * (by_outer[m] - mean);
    }}",
        softmax("outer", groups_used),
        softmax("inner", each),
    )
}
