//! Pictures of routing as SVG: load, which experts go together, load along the text.

use super::{
    Load,
    canvas::{Canvas, MARGIN, Scale, stride},
    statistics::{LayerStatistics, Statistics},
};

/// Cells that get a text of their own for the pointer to rest on: beyond, a picture would grow over a megabyte.
const HOVERED: usize = 8192;

/// Experts of a layer in the pictures that have one field for each layer.
const SHOWN: usize = 32;

/// The width that pictures try to keep to, in pixels.
const WIDE: usize = 1024;

impl Load {
    /// A heat map of loads, layers × experts, as an SVG document: how often each expert was taken relative to its layer's mean, and
    /// beside it the entropy of each layer's shares, in bits. `title` stands above it.
    pub fn heat_map(loads: &[Load], title: &str) -> String {
        let columns = loads.iter().map(|l| l.counts.len()).max().unwrap_or(0);
        // A wide layer gets narrow cells, so that the picture stays on a screen; a cell is at least 2 wide.
        let cell = [(880 / columns.max(1)).clamp(2, 24), (640 / loads.len().max(1)).clamp(6, 24)];
        let (left, entropy) = (MARGIN + 40, 64);
        let width = (left + columns * cell[0] + entropy + MARGIN).max(480);
        let subtitle = "How often each expert was taken, as a multiple of its layer's mean. Entropy: of the experts' shares, in bits; \
                    the layer's greatest possible is log2 of its experts.";
        let mut c = Canvas::new(width, title, subtitle);
        let scale = Scale::up_to(loads.iter().flat_map(Load::relative));
        let right = left + columns * cell[0] + 8;
        c.height += 10;
        let top = c.height;
        c.text(left - 6, top - 4, "end", 10, "layer");
        c.text(right, top - 4, "start", 10, "entropy");
        let at = |row: usize, column: usize| [left + column * cell[0], top + row * cell[1]];
        if loads.len() * columns <= HOVERED {
            for (row, load) in loads.iter().enumerate() {
                for (e, (relative, count)) in load.relative().into_iter().zip(&load.counts).enumerate() {
                    let words = format!("layer {}, expert {e}: {relative:.2} x mean, {count} choices", load.layer);
                    c.rect(at(row, e), cell, &scale.colour(relative), Some(&words));
                }
            }
        } else {
            let rows = loads.iter().enumerate();
            let cells = rows.flat_map(|(row, l)| l.relative().into_iter().enumerate().map(move |(e, r)| (row, e, r)));
            c.cells(cell, cells.map(|(row, e, relative)| (at(row, e), scale.colour(relative))));
        }
        for (row, load) in loads.iter().enumerate().step_by(stride(loads.len(), 640 / 12)) {
            let y = top + row * cell[1] + cell[1] / 2 + 4;
            c.text(left - 6, y, "end", 10, &load.layer.to_string());
            c.text(right, y, "start", 10, &format!("{:.2}", load.entropy()));
        }
        c.height = top + loads.len() * cell[1] + 14;
        let y = c.height;
        for column in (0..columns).step_by(stride(columns, columns * cell[0] / 28)) {
            c.text(left + column * cell[0] + cell[0] / 2, y, "middle", 10, &column.to_string());
        }
        c.text(left + columns * cell[0] / 2, y + 16, "middle", 10, "expert");
        c.height += 20;
        c.legend(&scale, "unused");
        c.finish()
    }
}

/// A field of each layer in a grid.
struct Fields {
    width: usize,
    height: usize,
    columns: usize,
    top: usize,
}

impl Fields {
    fn new(c: &Canvas, width: usize, height: usize) -> Fields {
        let (width, height) = (width + 20, height + 28);
        Fields { width, height, columns: ((c.width - 2 * MARGIN) / width).max(1), top: c.height }
    }

    /// The upper left corner of what is drawn for a layer.
    fn corner(&self, i: usize) -> [usize; 2] {
        [MARGIN + i % self.columns * self.width, self.top + i / self.columns * self.height + 16]
    }

    fn name(&self, c: &mut Canvas, i: usize, layer: usize) {
        let [x, y] = self.corner(i);
        c.text(x, y - 4, "start", 10, &format!("layer {layer}"));
    }

    fn end(&self, layers: usize) -> usize {
        self.top + layers.div_ceil(self.columns) * self.height
    }
}

impl Statistics {
    /// Which experts go together, as an SVG document: for every layer a triangle of its (at most 32) busiest experts, from the busiest
    /// on; how many times as often as by chance a token takes both.
    pub fn co_activation(&self, title: &str) -> String {
        let shown = self.layers().iter().map(|l| l.load.counts.len()).max().unwrap_or(0).min(SHOWN);
        let cell = (192 / shown.max(1)).clamp(4, 16);
        let subtitle = format!(
            "Which experts go together: how often tokens take both, as a multiple of what chance would give. Every layer's {shown} busiest \
         experts, from the busiest at the upper left on."
        );
        let mut c = Canvas::new(WIDE, title, &subtitle);
        let lifts = |l: &LayerStatistics| {
            let busiest = l.load.busiest(SHOWN);
            let pairs = (1..busiest.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
            pairs
                .map(|(i, j)| (i, j, busiest[i], busiest[j], l.lift(busiest[i], busiest[j]).unwrap_or(0.0)))
                .collect::<Vec<_>>()
        };
        let all: Vec<_> = self.layers().iter().map(lifts).collect();
        let scale = Scale::up_to(all.iter().flatten().map(|p| p.4));
        let fields = Fields::new(&c, shown * cell, shown * cell);
        let hovered = all.iter().map(Vec::len).sum::<usize>() <= HOVERED;
        for (n, (layer, pairs)) in self.layers().iter().zip(&all).enumerate() {
            let [x, y] = fields.corner(n);
            fields.name(&mut c, n, layer.load.layer);
            let at = |i: usize, j: usize| [x + j * cell, y + (i - 1) * cell];
            if hovered {
                for (i, j, a, b, lift) in pairs {
                    let both = layer.together(*a, *b);
                    let words = format!("experts {a} and {b}: {lift:.2} x chance, {both} tokens");
                    c.rect(at(*i, *j), [cell, cell], &scale.colour(*lift), Some(&words));
                }
            } else {
                c.cells([cell, cell], pairs.iter().map(|(i, j, _, _, lift)| (at(*i, *j), scale.colour(*lift))));
            }
        }
        c.height = fields.end(self.layers().len());
        c.legend(&scale, "never");
        c.finish()
    }
}

impl Statistics {
    /// Load along the text, as an SVG document: for every layer its (at most 32) busiest experts from top to bottom, positions from left to
    /// right; how often each was taken there, as a multiple of the mean.
    pub fn over_positions(&self, title: &str) -> String {
        let first = self.layers().first();
        let (bins, positions) = first.map_or((0, 0), |l| (l.bins(), l.bin_width()));
        let shown = self.layers().iter().map(|l| l.load.counts.len()).max().unwrap_or(0).min(SHOWN);
        let cell = [(300 / bins.max(1)).clamp(2, 12), (96 / shown.max(1)).clamp(3, 12)];
        let subtitle = format!(
            "Load along the text: how often each of a layer's {shown} busiest experts was taken, as a multiple of the mean. A column is \
         {positions} {}, the busiest expert is at the top.",
            if positions == 1 { "position" } else { "positions" }
        );
        let mut c = Canvas::new(WIDE, title, &subtitle);
        let busiest: Vec<_> = self.layers().iter().map(|l| l.load.busiest(SHOWN)).collect();
        let values = |l: &LayerStatistics, experts: &[usize]| -> Vec<f64> {
            let of_bin = |bin| experts.iter().map(move |e| l.load_in_bin(bin, *e));
            (0..l.bins()).flat_map(of_bin).collect()
        };
        let all: Vec<_> = self.layers().iter().zip(&busiest).map(|(l, experts)| values(l, experts)).collect();
        let scale = Scale::up_to(all.iter().flatten().copied());
        let fields = Fields::new(&c, bins * cell[0], shown * cell[1]);
        for (n, (layer, values)) in self.layers().iter().zip(&all).enumerate() {
            let [x, y] = fields.corner(n);
            fields.name(&mut c, n, layer.load.layer);
            let rows = busiest[n].len().max(1);
            let cells = values
                .iter()
                .enumerate()
                .map(|(i, v)| ([x + i / rows * cell[0], y + i % rows * cell[1]], scale.colour(*v)));
            c.cells(cell, cells);
        }
        c.height = fields.end(self.layers().len());
        c.legend(&scale, "not taken");
        c.finish()
    }
}
