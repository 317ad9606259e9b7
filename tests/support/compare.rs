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

/// The largest error that a tolerance of the mean allows, relative to the root mean square: a single wrong number hides in a
/// mean. Rounding errors are near normal, and the largest of a million is five deviations from zero; rows with outliers, thirty
/// times as large as others, have larger ones.
pub fn peak(tolerance: f64) -> f64 {
    20.0 * tolerance.sqrt()
}

/// Fails where `got` has non-finite numbers, an NMSE above `tolerance`, or one error beyond its [`peak`].
pub fn check(got: &[f32], want: &[f32], tolerance: f64) -> Result<Diff, String> {
    let d = diff(got, want);
    if d.non_finite > 0 || d.nmse.is_nan() || d.nmse > tolerance || d.max > peak(tolerance) {
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
    let lengths = [got.0.len(), got.1.len(), want.0.len(), want.1.len()];
    if lengths != [lengths[0]; 4] || k == 0 || lengths[0] % k != 0 {
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

/// Compares the named outputs of one step; `router_ids_*` are compared with `router_weights_*` as pairs. Gives the largest NMSE.
pub fn check_outputs(names: &[String], got: &[Output], want: &[Output], tolerance: f64) -> Result<f64, String> {
    let mut worst = 0.0f64;
    if got.len() != want.len() || names.len() != want.len() {
        return Err(format!("{} outputs instead of {}", got.len(), want.len()));
    }
    for (i, name) in names.iter().enumerate() {
        let (g, w) = (&got[i], &want[i]);
        if (g.rows, g.cols) != (w.rows, w.cols) {
            return Err(format!("{name} is [{}, {}], not [{}, {}]", g.rows, g.cols, w.rows, w.cols));
        }
        if let Some(j) = weights_of(name, names) {
            let pairs = ((&g.u32[..], &got[j].f32[..]), (&w.u32[..], &want[j].f32[..]));
            check_routing(pairs.0, pairs.1, w.cols, peak(tolerance)).map_err(|e| format!("{name}: {e}"))?;
        } else if !is_weights(name, names) {
            worst = worst.max(check(&g.f32, &w.f32, tolerance).map_err(|e| format!("{name}: {e}"))?.nmse);
        }
    }
    Ok(worst)
}

/// The output with the weights of these ids.
fn weights_of(name: &str, names: &[String]) -> Option<usize> {
    let layer = name.strip_prefix("router_ids_")?;
    names.iter().position(|n| n.strip_prefix("router_weights_") == Some(layer))
}

/// Whether these are the weights of ids beside them, compared with those.
fn is_weights(name: &str, names: &[String]) -> bool {
    (0..names.len()).any(|i| weights_of(&names[i], names).is_some_and(|j| names[j] == name))
}

/// Compares the outputs of several steps: all steps together as [`check_outputs`] does, and each by itself, so that a wrong one
/// does not drown among right ones. By itself a step is measured by its own size or by that of all steps, whichever is larger:
/// the relative error of a few small numbers is as large as cancellation makes it.
pub fn check_steps(names: &[String], got: &[Vec<Output>], want: &[Vec<Output>], tolerance: f64) -> Result<f64, String> {
    if got.len() != want.len() || want.is_empty() {
        return Err(format!("{} steps instead of {}", got.len(), want.len()));
    }
    let all = joined(want);
    let worst = check_outputs(names, &joined(got), &all, tolerance)?;
    let square = |x: &f32| f64::from(*x).powi(2);
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        for (j, name) in names.iter().enumerate().filter(|(_, n)| !is_weights(n, names)) {
            let (g, w) = (&got[j].f32, &want[j].f32);
            if g.len() != w.len() {
                return Err(format!("{name}, step {i}: {} numbers instead of {}", g.len(), w.len()));
            }
            let error: f64 = g.iter().zip(w).map(|(g, w)| (f64::from(*g) - f64::from(*w)).powi(2)).sum();
            let mean: f64 = all[j].f32.iter().map(square).sum::<f64>() / all[j].f32.len().max(1) as f64;
            let energy = f64::max(w.iter().map(square).sum(), mean * w.len() as f64);
            if error > tolerance * energy.max(1e-30) || error.is_nan() {
                return Err(format!("{name}, step {i}: NMSE {:.1e}, tolerance {tolerance:e}", error / energy));
            }
        }
    }
    Ok(worst)
}

/// The outputs of several steps, one below the other.
fn joined(steps: &[Vec<Output>]) -> Vec<Output> {
    let mut sum = steps[0].clone();
    for step in &steps[1..] {
        for (s, o) in sum.iter_mut().zip(step) {
            assert_eq!(s.cols, o.cols);
            s.rows += o.rows;
            s.f32.extend(&o.f32);
            s.u32.extend(&o.u32);
        }
    }
    sum
}
