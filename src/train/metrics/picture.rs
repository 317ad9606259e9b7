//! Pictures of a run, as SVG: the loss, and the load of every expert over time.

use super::{EvalRecord, StepRecord};
use crate::routing::canvas::{Canvas, MARGIN, Scale};

/// Width of the pictures, in pixels.
const WIDTH: usize = 760;
/// Height of the loss's plot, in pixels.
const HEIGHT: usize = 260;
/// Columns of the loads' picture at most.
const COLUMNS: usize = 96;
/// Space for the numbers at the left of a plot, in pixels.
const LEFT: usize = 48;

/// The curve of the training loss (its first term: every step thin, its moving mean thick) and of evaluations.
pub fn loss_svg(title: &str, steps: &[StepRecord], evals: &[EvalRecord]) -> String {
    let first = |r: &StepRecord| r.terms.first().map_or(r.loss, |t| t.value);
    let train: Vec<(u64, f64)> = steps.iter().map(|r| (r.step, first(r))).filter(|(_, y)| y.is_finite()).collect();
    let eval: Vec<(u64, f64)> = evals.iter().map(|r| (r.step, r.loss)).filter(|(_, y)| y.is_finite()).collect();
    let last = |points: &[(u64, f64)]| points.last().map_or(String::from("none"), |(_, y)| format!("{y:.4}"));
    let subtitle = format!("training {} (grey, its mean in blue), evaluation {} (red)", last(&train), last(&eval));
    let mut c = Canvas::new(WIDTH, title, &subtitle);
    let top = c.height;
    let all = || train.iter().chain(&eval);
    let low = all().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = all().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    let end = all().map(|p| p.0).max().unwrap_or(1).max(1);
    c.height += HEIGHT + 40;
    if !low.is_finite() {
        c.text(MARGIN, top + 20, "start", 11, "no step has a loss yet");
        return c.finish();
    }
    let span = (high - low).max(1e-9);
    let place = |(step, y): &(u64, f64)| {
        let x = MARGIN as f64 + LEFT as f64 + *step as f64 / end as f64 * (WIDTH - 2 * MARGIN - LEFT) as f64;
        [x, top as f64 + (high - y) / span * HEIGHT as f64]
    };
    for i in 0..=4 {
        let y = high - span * f64::from(i) / 4.0;
        let [x, at] = place(&(0, y));
        c.line(&[[x, at], [place(&(end, y))[0], at]], "#e4e4e4", 1.0);
        c.text(x as usize - 4, at as usize + 4, "end", 10, &format!("{y:.3}"));
        let step = end * i as u64 / 4;
        c.text(place(&(step, low))[0] as usize, top + HEIGHT + 16, "middle", 10, &step.to_string());
    }
    let points = |curve: &[(u64, f64)]| thinned(curve).iter().map(place).collect::<Vec<_>>();
    c.line(&points(&train), "#b8b8b8", 1.0);
    c.line(&points(&smooth(&train)), "#2060c0", 2.0);
    c.line(&points(&eval), "#c02020", 2.0);
    c.finish()
}

/// The moving mean over a fiftieth of the curve.
fn smooth(curve: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let width = curve.len().div_ceil(50).max(1);
    let mut sum = 0.0;
    let mut out = Vec::with_capacity(curve.len());
    for (i, (step, y)) in curve.iter().enumerate() {
        sum += y;
        if i >= width {
            sum -= curve[i - width].1;
        }
        out.push((*step, sum / (i + 1).min(width) as f64));
    }
    out
}

/// At most some 1500 points, so that pictures of long runs stay small.
fn thinned(curve: &[(u64, f64)]) -> Vec<(u64, f64)> {
    let every = curve.len().div_ceil(1500).max(1);
    let mut out: Vec<_> = curve.iter().step_by(every).copied().collect();
    if let Some(last) = curve.last().filter(|l| out.last() != Some(l)) {
        out.push(*last);
    }
    out
}

/// The load of every expert over time: a row an expert, a column some steps, as multiples of the mean of the layer. `None`
/// without experts.
pub fn load_svg(title: &str, steps: &[StepRecord]) -> Option<String> {
    let layers: Vec<(u32, usize)> =
        steps.iter().find(|r| !r.loads.is_empty())?.loads.iter().map(|l| (l.layer, l.tokens.len())).collect();
    let each = steps.len().div_ceil(COLUMNS).max(1);
    let columns: Vec<&[StepRecord]> = steps.chunks(each).collect();
    let mut c = Canvas::new(WIDTH, title, "load of each expert over the layer's mean; from left to right the steps");
    let cell = [((WIDTH - 2 * MARGIN - LEFT) / columns.len().max(1)).clamp(2, 16), 9];
    // For each layer and column the tokens of each expert.
    let load = |layer: u32, experts: usize, column: &[StepRecord]| {
        let mut sum = vec![0u64; experts];
        for l in column.iter().flat_map(|r| r.loads.iter().filter(|l| l.layer == layer)) {
            sum.iter_mut().zip(&l.tokens).for_each(|(a, b)| *a += b);
        }
        let all = sum.iter().sum::<u64>().max(1) as f64;
        sum.iter().map(|n| *n as f64 * experts as f64 / all).collect::<Vec<f64>>()
    };
    let loads: Vec<Vec<Vec<f64>>> =
        layers.iter().map(|(l, e)| columns.iter().map(|c| load(*l, *e, c)).collect()).collect();
    let scale = Scale::up_to(loads.iter().flatten().flatten().copied());
    for ((layer, experts), loads) in layers.iter().zip(&loads) {
        let top = c.height;
        c.text(MARGIN, top + 10, "start", 10, &format!("layer {layer}"));
        let cells = loads.iter().enumerate().flat_map(|(x, column)| {
            let scale = &scale;
            column
                .iter()
                .enumerate()
                .map(move |(y, v)| ([MARGIN + LEFT + x * cell[0], top + y * cell[1]], scale.colour(*v)))
        });
        c.cells(cell, cells.collect::<Vec<_>>().into_iter());
        c.height += experts * cell[1] + 8;
    }
    c.legend(&scale, "no token");
    Some(c.finish())
}
