//! What the pictures are made of: an SVG document, a scale of colours, its legend.

use std::fmt::Write;

/// Steps of a scale.
const STEPS: usize = 24;

/// What no token took: off the scale, so that it is told from what is rarely taken.
pub(crate) const UNUSED: &str = "#d9d9d9";

/// The scale's colours at even distances: from nearly white over orange to nearly black, darker throughout, so that it
/// reads in grey too.
const ANCHORS: [[f64; 3]; 5] =
    [[255.0, 247.0, 224.0], [254.0, 200.0, 110.0], [240.0, 110.0, 60.0], [165.0, 25.0, 80.0], [30.0, 5.0, 40.0]];

/// The mean width of a letter of text of 1 pixel, in pixels: generous, so that what is estimated to fit does.
const LETTER: f64 = 0.58;

/// A scale of multiples of a mean, from 0 to `top`: even in the logarithm of one more than the multiple, so that little and much
/// can be told apart.
pub(crate) struct Scale {
    pub top: f64,
}

impl Scale {
    /// A scale that reaches the largest value that occurs: a power of two, at least 2.
    pub fn up_to(values: impl Iterator<Item = f64>) -> Scale {
        let most = values.filter(|v| v.is_finite()).fold(2.0, f64::max);
        Scale { top: most.log2().ceil().exp2() }
    }

    /// Where a value is on the scale, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        ((1.0 + value).log2() / (1.0 + self.top).log2()).clamp(0.0, 1.0)
    }

    /// The colour of a value; what is 0 is not used.
    pub fn colour(&self, value: f64) -> String {
        if value <= 0.0 {
            return UNUSED.into();
        }
        let step = (self.place(value) * (STEPS - 1) as f64).round();
        colour(step / (STEPS - 1) as f64)
    }
}

/// The colour at a place from 0 to 1.
fn colour(place: f64) -> String {
    let at = place * (ANCHORS.len() - 1) as f64;
    let i = (at as usize).min(ANCHORS.len() - 2);
    let mix = |c: usize| ANCHORS[i][c] + (ANCHORS[i + 1][c] - ANCHORS[i][c]) * (at - i as f64);
    format!("#{:02x}{:02x}{:02x}", mix(0) as u8, mix(1) as u8, mix(2) as u8)
}

/// An SVG document that grows downwards.
pub(crate) struct Canvas {
    body: String,
    pub width: usize,
    pub height: usize,
}

/// The space at the left and right of everything, in pixels.
pub(crate) const MARGIN: usize = 24;

impl Canvas {
    /// A document with a title and a subtitle, which are broken into lines where they are too long.
    pub fn new(width: usize, title: &str, subtitle: &str) -> Canvas {
        let mut c = Canvas { body: String::new(), width, height: 12 };
        for (words, size) in [(title, 14), (subtitle, 11)] {
            for line in lines(words, (width - 2 * MARGIN) as f64 / (LETTER * f64::from(size))) {
                c.height += size as usize + 5;
                let y = c.height;
                c.text(MARGIN, y, "start", size as usize, &line);
            }
        }
        c.height += 12;
        c
    }

    /// A text; `anchor` says which end of it `x` is.
    pub fn text(&mut self, x: usize, y: usize, anchor: &str, size: usize, what: &str) {
        // Writing to a string cannot fail, here and below.
        let _ = writeln!(
            self.body,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>",
            escape(what)
        );
    }

    /// A rectangle, with a text that shows where the pointer rests on it.
    pub fn rect(&mut self, [x, y]: [usize; 2], [w, h]: [usize; 2], fill: &str, hover: Option<&str>) {
        let _ = write!(self.body, "<path fill=\"{fill}\" d=\"M{x} {y}h{w}v{h}h-{w}z\"");
        let _ = match hover {
            Some(text) => writeln!(self.body, "><title>{}</title></path>", escape(text)),
            None => writeln!(self.body, "/>"),
        };
    }

    /// Rectangles of one size, those of one colour as one path, so that pictures of large models stay small.
    pub fn cells(&mut self, size: [usize; 2], cells: impl Iterator<Item = ([usize; 2], String)>) {
        let mut by_colour = std::collections::BTreeMap::<String, String>::new();
        let [w, h] = size;
        for ([x, y], colour) in cells {
            let _ = write!(by_colour.entry(colour).or_default(), "M{x} {y}h{w}v{h}h-{w}z");
        }
        for (colour, path) in by_colour {
            let _ = writeln!(self.body, "<path fill=\"{colour}\" d=\"{path}\"/>");
        }
    }

    /// A line through these points, in pixels.
    pub fn line(&mut self, points: &[[f64; 2]], colour: &str, width: f64) {
        let _ = write!(self.body, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\" points=\"");
        for [x, y] in points {
            let _ = write!(self.body, "{x:.1},{y:.1} ");
        }
        let _ = writeln!(self.body, "\"/>");
    }

    /// A legend at the lower end.
    pub fn legend(&mut self, scale: &Scale, unused: &str) {
        let (w, h) = (8, 10);
        let y = self.height + 14;
        self.rect([MARGIN, y], [w, h], UNUSED, None);
        self.text(MARGIN + w + 4, y + 9, "start", 10, unused);
        let start = MARGIN + w + 24 + (LETTER * 10.0 * unused.chars().count() as f64) as usize;
        for i in 0..STEPS {
            self.rect([start + i * w, y], [w, h], &colour(i as f64 / (STEPS - 1) as f64), None);
        }
        // Every doubling, and fewer where they would touch.
        let all = scale.top.log2() as i32;
        let every = (all / 5).max(1);
        for times in [0.0, 1.0].into_iter().chain((1..=all).rev().step_by(every as usize).map(|i| f64::from(i).exp2()))
        {
            let x = start + (scale.place(times) * (STEPS * w) as f64) as usize;
            self.text(x, y + h + 12, "middle", 10, &format!("{times}x"));
        }
        self.height = y + h + 24;
    }

    /// The document.
    pub fn finish(self) -> String {
        let (w, h) = (self.width, self.height);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
             font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n<rect width=\"{w}\" height=\"{h}\" \
             fill=\"#fff\"/>\n{}</svg>\n",
            self.body
        )
    }
}

/// Words in lines of at most `letters` letters, where a word allows it.
fn lines(words: &str, letters: f64) -> Vec<String> {
    let mut lines: Vec<String> = vec![];
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if ((line.chars().count() + 1 + word.chars().count()) as f64) <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// A text for XML.
pub(crate) fn escape(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars().filter(|c| !c.is_control()) {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

/// A round distance between labels, so that at most `most` of `n` are shown.
pub(crate) fn stride(n: usize, most: usize) -> usize {
    [1, 2, 4, 8, 16, 32, 64, 128, 256, 512].into_iter().find(|s| n / s <= most.max(1)).unwrap_or(1024)
}
