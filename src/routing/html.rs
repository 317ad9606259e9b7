//! One page with the figures and all pictures.

use super::{Load, Statistics, canvas::escape};
use std::fmt::Write;

const STYLE: &str = "body{font:14px/1.5 sans-serif;color:#222;max-width:1080px;margin:2em auto;padding:0 1em}\
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
td,th{padding:.15em .8em;text-align:right;border-bottom:1px solid #ddd}svg{max-width:100%;height:auto}";

impl Statistics {
    /// An HTML page that stands alone: a table of each layer's load, and the pictures of load, of the experts that go together, and of load
    /// along the text.
    pub fn html(&self, title: &str) -> String {
        let mut out = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style></head>\n\
         <body>\n<h1>{0}</h1>\n<p>{1} tokens, {2} layers with experts.</p>\n<h2>Load of the experts</h2>\n{3}",
            escape(title),
            self.tokens(),
            self.layers().len(),
            Load::heat_map(&self.loads(), title),
        );
        out.push_str(
        "<table><tr><th>layer</th><th>experts</th><th>entropy (bits)</th><th>evenness</th><th>max / mean</th><th>unused</th>\
         <th>busiest</th></tr>\n",
    );
        for layer in self.layers() {
            let l = &layer.load;
            // Writing to a string cannot fail.
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{:.2}</td><td>{:.0} %</td><td>{:.2}</td><td>{}</td><td>{}</td></tr>",
                l.layer,
                l.counts.len(),
                l.entropy(),
                100.0 * l.evenness(),
                l.max_over_mean(),
                l.unused(),
                l.busiest(1).first().copied().unwrap_or(0),
            );
        }
        out.push_str("</table>\n<h2>Experts that go together</h2>\n");
        out.push_str(&self.co_activation(title));
        out.push_str("<h2>Load along the text</h2>\n");
        out.push_str(&self.over_positions(title));
        out.push_str("</body></html>\n");
        out
    }
}
