//! The comparators. Each is itself tested with data that it must reject (`tests/alarms.rs`).

use moeray::backend::Output;

/// How far `got` is from `want`.
#[derive(Clone, Copy, Debug)]
pub struct Diff {
    /// Σ (got − want)² / Σ want².
    pub nmse: f64,
    /// Largest error, relative to the root mean square of `want`.
    pub max: f64,
    /// Infinities and not-a-numbers in `got`.
    pub non_finite: usize,
}

pub fn diff(got: &[f32], want: &[f32]) -> Diff {
    assert_eq!(got.len(), want.len(), "lengths differ");
    let energy: f64 = want.iter().map(|w| f64::from(*w).powi(2)).sum();
    let errors = || got.iter().zip(want).map(|(g, w)| f64::from(*g) - f64::from(*w));
    let error: f64 = errors().map(|e| e * e).sum();
    let rms = (energy / want.len().max(1) as f64).sqrt();
    Diff {
        nmse: if error == 0.0 { 0.0 } else { error / energy.max(1e-30) },
        max: errors().fold(0.0, |a, e| f64::max(a, e.abs())) / rms.max(1e-15),
        non_finite: got.iter().filter(|g| !g.is_finite()).count(),
    }
}

/// Fails where `got` has non-finite numbers, an NMSE above `tolerance`, or one error of more than `sqrt(tolerance) · 30`
/// of the root mean square (a single wrong number hides in a mean over many).
pub fn check(got: &[f32], want: &[f32], tolerance: f64) -> Result<Diff, String> {
    let d = diff(got, want);
    if d.non_finite > 0 || d.nmse.is_nan() || d.nmse > tolerance || d.max > 30.0 * tolerance.sqrt() {
        return Err(format!("{d:?}, tolerance {tolerance:e}"));
    }
    Ok(d)
}

/// Compares routing as a set of (expert, weight) pairs for each token: a swap of two weights is an error, another order of
/// the same pairs is not.
pub fn check_routing(got: (&[u32], &[f32]), want: (&[u32], &[f32]), k: usize, tolerance: f64) -> Result<(), String> {
    let pairs = |ids: &[u32], weights: &[f32]| {
        let mut p: Vec<(u32, f32)> = ids.iter().copied().zip(weights.iter().copied()).collect();
        p.sort_by_key(|x| x.0);
        p
    };
    if got.0.len() != want.0.len() || got.1.len() != want.1.len() || got.0.len() != got.1.len() {
        return Err("different numbers of pairs".into());
    }
    for t in 0..want.0.len() / k {
        let r = t * k..(t + 1) * k;
        let (g, w) = (pairs(&got.0[r.clone()], &got.1[r.clone()]), pairs(&want.0[r.clone()], &want.1[r]));
        for (a, b) in g.iter().zip(&w) {
            let error = f64::from(a.1 - b.1).abs();
            if a.0 != b.0 || error.is_nan() || error > tolerance * f64::from(b.1.abs()).max(1e-6) {
                return Err(format!("token {t}: {g:?} instead of {w:?}"));
            }
        }
    }
    Ok(())
}

/// Compares the named outputs of one step; `router_ids_*` are compared with `router_weights_*` as pairs.
pub fn check_outputs(names: &[String], got: &[Output], want: &[Output], tolerance: f64) -> Result<f64, String> {
    let mut worst = 0.0f64;
    if got.len() != want.len() {
        return Err(format!("{} outputs instead of {}", got.len(), want.len()));
    }
    for (i, name) in names.iter().enumerate() {
        let (g, w) = (&got[i], &want[i]);
        if (g.rows, g.cols) != (w.rows, w.cols) {
            return Err(format!("{name} is [{}, {}], not [{}, {}]", g.rows, g.cols, w.rows, w.cols));
        }
        if !w.u32.is_empty() {
            let weights = name.replace("ids", "weights");
            let j = names.iter().position(|n| *n == weights).ok_or("ids without weights")?;
            let pairs = ((&g.u32[..], &got[j].f32[..]), (&w.u32[..], &want[j].f32[..]));
            check_routing(pairs.0, pairs.1, w.cols, 30.0 * tolerance.sqrt()).map_err(|e| format!("{name}: {e}"))?;
        } else if !name.contains("weights") {
            worst = worst.max(check(&g.f32, &w.f32, tolerance).map_err(|e| format!("{name}: {e}"))?.nmse);
        }
    }
    Ok(worst)
}
