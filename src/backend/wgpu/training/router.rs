//! The text of routers: the choice with its weights, and their gradient by the logits. Formulas: `ops/router.rs`.

use super::{router_groups, text::number};
use crate::{
    error::{Error, Result},
    ir::{GroupScore, Renormalise, Router, Score},
};

/// How many experts a router's kernels hold in an invocation's memory.
const MOST_EXPERTS: usize = 1024;

/// Statements that make `s[e]`, the scores that weights are made of; logits are a, of row i.
fn scores(r: &Router) -> String {
    let e = r.experts;
    let each = |score: &str| format!("for (var e = 0u; e < {e}u; e++) {{ s[e] = {score}; }}");
    match r.score {
        Score::Softmax => format!(
            "var most = a[at];
    for (var e = 1u; e < {e}u; e++) {{ most = max(most, a[at + e]); }}
    var total = 0.0;
    for (var e = 0u; e < {e}u; e++) {{ s[e] = exp(a[at + e] - most); total += s[e]; }}
    {}",
            each("s[e] / total")
        ),
        Score::Sigmoid => each("sigmoid(a[at + e])"),
        Score::SqrtSoftplus => each("sqrt(softplus(a[at + e]))"),
        Score::SoftmaxOfSelected | Score::SparseMixer { .. } => each("a[at + e]"),
    }
}

/// Statements that make of `u[j]` a softmax over the k chosen.
fn softmax_of_chosen(k: usize) -> String {
    format!(
        "{{
        var most = u[0];
        for (var j = 1u; j < {k}u; j++) {{ most = max(most, u[j]); }}
        var total = 0.0;
        for (var j = 0u; j < {k}u; j++) {{ u[j] = exp(u[j] - most); total += u[j]; }}
        for (var j = 0u; j < {k}u; j++) {{ u[j] = u[j] / total; }}
    }}"
    )
}

/// Statements that divide `u[j]` as a router does, and leave the divisor in `divisor`.
fn renormalised(r: &Router) -> String {
    let k = r.used;
    let divided = |divisor: String| {
        format!(
            "{{
        var total = 0.0;
        for (var j = 0u; j < {k}u; j++) {{ total += u[j]; }}
        divisor = {divisor};
        for (var j = 0u; j < {k}u; j++) {{ u[j] = u[j] / divisor; }}
    }}"
        )
    };
    match r.renormalise {
        Renormalise::No => String::new(),
        Renormalise::Sum => divided("total".into()),
        Renormalise::SumPlus(e) => divided(format!("total + {}", number(f64::from(e)))),
        Renormalise::SumAtLeast(e) => divided(format!("max(total, {})", number(f64::from(e)))),
        Renormalise::Softmax => softmax_of_chosen(k),
    }
}

fn known(r: &Router) -> Result<()> {
    if matches!(r.score, Score::SparseMixer { .. }) {
        return Err(Error::Unsupported("router: a sparsemixer has no training kernel on the GPU".into()));
    }
    if r.experts > MOST_EXPERTS {
        return Err(Error::Unsupported(format!(
            "router: {} experts have no training kernel on the GPU, which takes at most {MOST_EXPERTS}",
            r.experts
        )));
    }
    Ok(())
}

/// Statements that mark in `gone` the experts of groups that take no part.
fn groups(r: &Router) -> String {
    let Some(g) = r.groups else { return String::new() };
    let (count, used, size) = (g.count, g.used, r.experts / g.count);
    let score = match g.score {
        GroupScore::Max => "best",
        GroupScore::TopTwo => "best + second",
        // Those have a text of their own.
        GroupScore::Own => "0.0",
    };
    format!(
        "var score: array<f32, {count}>;
    for (var g = 0u; g < {count}u; g++) {{
        var best = -3.4028234e38; var second = -3.4028234e38;
        for (var o = 0u; o < {size}u; o++) {{
            let x = by[g * {size}u + o];
            if (x > best) {{ second = best; best = x; }} else if (x > second) {{ second = x; }}
        }}
        score[g] = {score};
    }}
    for (var g = 0u; g < {count}u; g++) {{
        var before = 0u;
        for (var o = 0u; o < {count}u; o++) {{
            if (score[o] > score[g] || (score[o] == score[g] && o < g)) {{ before++; }}
        }}
        if (before >= {used}u) {{ for (var o = 0u; o < {size}u; o++) {{ gone[g * {size}u + o] = true; }} }}
    }}"
    )
}

/// The choice and the weights of row i: a logits, then the selection bias and the experts' factors where there are some; y ids,
/// z weights.
///
/// # Errors
/// [`Error::Unsupported`] for routers that have no kernel.
pub fn forward(r: &Router) -> Result<String> {
    known(r)?;
    if let Some(g) = r.over_groups() {
        return Ok(router_groups::forward(r, g));
    }
    let (e, k) = (r.experts, r.used);
    let factor = match (r.selection_bias, r.expert_scale) {
        (_, None) => "1.0".to_string(),
        (None, Some(_)) => format!("b[y[i * {k}u + j]]"),
        (Some(_), Some(_)) => format!("c[y[i * {k}u + j]]"),
    };
    let by = if r.chooses_by_logits() { "a[at + e]" } else { "s[e]" };
    let bias = if r.selection_bias.is_some() { " + b[e]" } else { "" };
    let selected = if r.score == Score::SoftmaxOfSelected { softmax_of_chosen(k) } else { String::new() };
    Ok(format!(
        "let at = i * {e}u;
    var s: array<f32, {e}>; var by: array<f32, {e}>; var gone: array<bool, {e}>; var u: array<f32, {k}>;
    var divisor = 1.0;
    {}
    for (var e = 0u; e < {e}u; e++) {{ by[e] = {by}{bias}; gone[e] = false; }}
    {}
    for (var j = 0u; j < {k}u; j++) {{
        var best = {e}u;
        for (var e = 0u; e < {e}u; e++) {{
            if (!gone[e] && (best == {e}u || by[e] > by[min(best, {e}u - 1u)])) {{ best = e; }}
        }}
        y[i * {k}u + j] = best; u[j] = s[best]; gone[best] = true;
    }}
    {selected}
    {}
    for (var j = 0u; j < {k}u; j++) {{ z[i * {k}u + j] = u[j] * {} * {factor}; }}",
        scores(r),
        groups(r),
        renormalised(r),
        number(f64::from(r.scale)),
    ))
}

/// From the gradient by the renormalised values `u`, `du`, to that by the scores.
fn through_divisor(r: &Router) -> String {
    let k = r.used;
    match r.renormalise {
        Renormalise::No => String::new(),
        Renormalise::Softmax => format!("for (var j = 0u; j < {k}u; j++) {{ du[j] = u[j] * (du[j] - along); }}"),
        Renormalise::Sum | Renormalise::SumPlus(_) => {
            format!("for (var j = 0u; j < {k}u; j++) {{ du[j] = (du[j] - along) / divisor; }}")
        }
        Renormalise::SumAtLeast(least) => format!(
            "if (divisor == {}) {{ along = 0.0; }}
    for (var j = 0u; j < {k}u; j++) {{ du[j] = (du[j] - along) / divisor; }}",
            number(f64::from(least))
        ),
    }
}

/// From the gradient by the chosen scores `v` to that by the logits.
fn through_scores(r: &Router) -> String {
    let (e, k) = (r.experts, r.used);
    let own = |slope: &str, d: &str| {
        format!("for (var j = 0u; j < {k}u; j++) {{ let x = b[i * {k}u + j]; y[at + x] = {slope} * {d}; }}")
    };
    match r.score {
        Score::Softmax => format!(
            "for (var e = 0u; e < {e}u; e++) {{ y[at + e] = -s[e] * mean; }}
    {}",
            own("s[x]", "(du[j] - mean)")
        ),
        Score::SoftmaxOfSelected | Score::SparseMixer { .. } => own("v[j]", "(du[j] - mean)"),
        Score::Sigmoid => own("(v[j] * (1.0 - v[j]))", "du[j]"),
        Score::SqrtSoftplus => own("(sigmoid(a[at + x]) / (2.0 * v[j]))", "du[j]"),
    }
}

/// The gradient of row i by its logits: a logits, b ids, c the gradient by the weights, then the experts' factors; y.
///
/// # Errors
/// As [`forward`].
pub fn backward(r: &Router) -> Result<String> {
    known(r)?;
    if let Some(g) = r.over_groups() {
        return Ok(router_groups::backward(r, g));
    }
    let (e, k) = (r.experts, r.used);
    let factor = if r.expert_scale.is_some() { format!("d[b[i * {k}u + j]]") } else { "1.0".into() };
    let selected = if r.score == Score::SoftmaxOfSelected { softmax_of_chosen(k) } else { String::new() };
    Ok(format!(
        "let at = i * {e}u;
    var s: array<f32, {e}>; var u: array<f32, {k}>; var v: array<f32, {k}>; var du: array<f32, {k}>;
    var divisor = 1.0;
    {}
    for (var e = 0u; e < {e}u; e++) {{ y[at + e] = 0.0; }}
    for (var j = 0u; j < {k}u; j++) {{ u[j] = s[b[i * {k}u + j]]; }}
    {selected}
    for (var j = 0u; j < {k}u; j++) {{ v[j] = u[j]; }}
    {}
    for (var j = 0u; j < {k}u; j++) {{ du[j] = c[i * {k}u + j] * {} * {factor}; }}
    var along = 0.0;
    for (var j = 0u; j < {k}u; j++) {{ along += u[j] * du[j]; }}
    {}
    var mean = 0.0;
    for (var j = 0u; j < {k}u; j++) {{ mean += v[j] * du[j]; }}
    {}",
        scores(r),
        renormalised(r),
        number(f64::from(r.scale)),
        through_divisor(r),
        through_scores(r),
    ))
}
