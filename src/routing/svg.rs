//! A heat map as SVG: layers down, experts across, the colour says how often an expert was taken.

use super::Load;
use std::fmt::Write;

/// Steps of the scale from never (0) to [`TOP`] times the mean and more.
const STEPS: usize = 24;

/// Times the mean load at the scale's upper end.
const TOP: f64 = 4.0;

/// An expert that no token took: off the scale, so that it is told from one that is rarely taken.
const UNUSED: &str = "#d9d9d9";

/// The scale's colours at even distances: from nearly white over orange to nearly black, darker throughout, so that it
/// reads in grey too.
const ANCHORS: [[f64; 3]; 5] =
    [[255.0, 247.0, 224.0], [254.0, 200.0, 110.0], [240.0, 110.0, 60.0], [165.0, 25.0, 80.0], [30.0, 5.0, 40.0]];

fn colour(step: usize) -> String {
    let at = step as f64 / (STEPS - 1) as f64 * (ANCHORS.len() - 1) as f64;
    let i = (at as usize).min(ANCHORS.len() - 2);
    let mix = |c: usize| ANCHORS[i][c] + (ANCHORS[i + 1][c] - ANCHORS[i][c]) * (at - i as f64);
    format!("#{:02x}{:02x}{:02x}", mix(0) as u8, mix(1) as u8, mix(2) as u8)
}

/// The step of a load that is `relative` times the mean; `None` for an unused expert.
fn step(relative: f64) -> Option<usize> {
    let at = relative / TOP * STEPS as f64;
    (relative > 0.0).then(|| (at.ceil() as usize).clamp(1, STEPS) - 1)
}

/// Sizes of a picture, in pixels.
struct Frame {
    cell: [usize; 2],
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl Frame {
    fn new(rows: usize, columns: usize) -> Frame {
        // A wide layer gets narrow cells, so that the picture stays on a screen; a cell is at least 2 wide.
        let wide = (960 / columns.max(1)).clamp(2, 24);
        let cell = [wide, (640 / rows.max(1)).clamp(6, 24)];
        let (left, top) = (64, 56);
        let width = (left + columns * cell[0] + 24).max(420);
        Frame { cell, left, top, width, height: top + rows * cell[1] + 76 }
    }
}

/// A heat map of loads, layers × experts, as an SVG document: what each expert was taken relative to its layer's mean.
/// Cells of one colour are one path, so that 48 layers of 512 experts stay below a megabyte. `title` stands above it.
pub fn heat_map(loads: &[Load], title: &str) -> String {
    let columns = loads.iter().map(|l| l.counts.len()).max().unwrap_or(0);
    let f = Frame::new(loads.len(), columns);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
         font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n<rect width=\"{w}\" height=\"{h}\" fill=\"#fff\"/>\n",
        w = f.width,
        h = f.height,
    );
    text(&mut out, f.left, 22, "start", 14, &escape(title));
    text(&mut out, f.left, 42, "start", 11, "share of each layer's choices by expert, relative to the layer's mean");
    cells(&mut out, &f, loads);
    axes(&mut out, &f, loads, columns);
    legend(&mut out, &f);
    out.push_str("</svg>\n");
    out
}

fn escape(s: &str) -> String {
    s.chars()
        .filter(|c| !c.is_control())
        .map(|c| match c {
            '&' => "&amp;".into(),
            '<' => "&lt;".into(),
            '>' => "&gt;".into(),
            '"' => "&quot;".into(),
            c => c.to_string(),
        })
        .collect()
}

fn text(out: &mut String, x: usize, y: usize, anchor: &str, size: usize, what: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{what}</text>");
}

fn cells(out: &mut String, f: &Frame, loads: &[Load]) {
    let [w, h] = f.cell;
    let mut paths = vec![String::new(); STEPS + 1];
    for (row, load) in loads.iter().enumerate() {
        for (column, relative) in load.relative().into_iter().enumerate() {
            let path = &mut paths[step(relative).unwrap_or(STEPS)];
            let _ = write!(path, "M{} {}h{w}v{h}h-{w}z", f.left + column * w, f.top + row * h);
        }
    }
    for (i, path) in paths.iter().enumerate().filter(|(_, p)| !p.is_empty()) {
        let fill = if i == STEPS { UNUSED.into() } else { colour(i) };
        let _ = writeln!(out, "<path fill=\"{fill}\" d=\"{path}\"/>");
    }
}

/// A round distance between labels, so that at most `most` of `n` are shown.
fn stride(n: usize, most: usize) -> usize {
    [1, 2, 4, 8, 16, 32, 64, 128, 256, 512].into_iter().find(|s| n / s <= most).unwrap_or(1024)
}

fn axes(out: &mut String, f: &Frame, loads: &[Load], columns: usize) {
    let [w, h] = f.cell;
    let every = stride(loads.len(), 640 / 12);
    for (row, load) in loads.iter().enumerate().step_by(every) {
        text(out, f.left - 6, f.top + row * h + h / 2 + 4, "end", 10, &load.layer.to_string());
    }
    let every = stride(columns, (columns * w / 28).max(1));
    let y = f.top + loads.len() * h + 14;
    for column in (0..columns).step_by(every) {
        text(out, f.left + column * w + w / 2, y, "middle", 10, &column.to_string());
    }
    text(out, f.left - 6, f.top - 4, "end", 10, "layer");
    text(out, f.left, y + 16, "start", 10, "expert");
}

fn legend(out: &mut String, f: &Frame) {
    let (w, h, y) = (8, 10, f.height - 30);
    let rect = |out: &mut String, x: usize, fill: &str| {
        let _ = writeln!(out, "<rect x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" fill=\"{fill}\"/>");
    };
    rect(out, f.left, UNUSED);
    text(out, f.left + w / 2, y + 22, "middle", 10, "unused");
    let start = f.left + 48;
    (0..STEPS).for_each(|i| rect(out, start + i * w, &colour(i)));
    for times in 0..=TOP as usize {
        let x = start + times * STEPS * w / TOP as usize;
        let label = if times as f64 == TOP { format!("{times}x and more") } else { format!("{times}x") };
        text(out, x, y + 22, if times as f64 == TOP { "start" } else { "middle" }, 10, &label);
    }
}
