//! From nodes to kernels: gradients.

use super::{kernel::Operand, lower::Lower, router, text};
use crate::{
    error::Result,
    ir::{Grad, Norm, NormKind, WeightId},
};

impl Lower<'_> {
    pub(super) fn grad(&mut self, g: &Grad) -> Result<()> {
        let inputs = self.inputs();
        match g {
            Grad::Embed { into, scale } => self.embed_grad(*into, *scale),
            Grad::Norm(n) => self.norm_grad(n),
            Grad::NormWeight(n) => self.norm_weight_grad(n),
            Grad::LinearInput { weight } => self.linear_input(*weight)?,
            Grad::Outer { into } => self.outer(*into)?,
            Grad::SumRows { into } => self.sum_rows(*into),
            Grad::ExpertInput { weight } => self.expert_input(*weight)?,
            Grad::ExpertOuter { into } => self.expert_outer(*into)?,
            Grad::ExpertSumRows { into } => self.expert_sum_rows(*into),
            Grad::SelfAttend(a) => self.attend_grad(a),
            Grad::Sinks { into } => self.sinks(*into),
            Grad::SplitHeads { heads, first } => self.split_heads(*heads, *first),
            Grad::Glu(act) => {
                let [gate, up] = text::slopes(*act, "a[i]", "b[i]");
                let body = format!("y[i] = {gate} * c[i]; z[i] = {up} * c[i];");
                self.by_row(self.out_cols(0), inputs, body);
            }
            Grad::Act(act) => self.each(0, inputs, &format!("{} * b[i]", text::slope(*act, "a[i]"))),
            Grad::SigmoidGate => self.sigmoid_gate_grad(&inputs),
            Grad::Router(r) => {
                let reads = [inputs, r.expert_scale.iter().map(|w| self.weight(*w)).collect()].concat();
                self.by_row(1, reads, router::backward(r)?);
            }
            Grad::CrossEntropy => {
                self.each(0, inputs, "(exp(a[i] - c[r]) - select(0.0, 1.0, col == b[r])) * d[r]");
            }
            Grad::Unary(f) => self.each(0, inputs, &format!("{} * b[i]", text::derivative(*f, "a[i]"))),
            Grad::Softmax { groups } => {
                let n = self.size(self.cols(0) / groups);
                // Relative to the first number: p sums to 1, and what all have in common does not cancel afterwards.
                let body = format!(
                    "let at = i * {n}; var mean = 0.0;
    for (var j = 0u; j < {n}; j++) {{ mean += a[at + j] * (b[at + j] - b[at]); }}
    for (var j = 0u; j < {n}; j++) {{ y[at + j] = a[at + j] * ((b[at + j] - b[at]) - mean); }}"
                );
                self.by_row(*groups, inputs, body);
            }
        }
        Ok(())
    }

    fn split_heads(&mut self, heads: usize, first: usize) {
        let all = self.cols(0);
        let n = all / heads;
        for (which, part, from) in [(0, first, 0), (1, n - first, first)] {
            let [all, n, part, from] = self.sizes([all, n, part, from]);
            let text = format!("a[r * {all} + col / {part} * {n} + {from} + col % {part}]");
            self.each(which, self.inputs(), &text);
        }
    }

    fn sigmoid_gate_grad(&mut self, inputs: &[Operand]) {
        self.each(0, vec![inputs[1], inputs[2]], "b[i] * sigmoid(a[r])");
        let n = self.size(self.cols(0));
        let sum = text::long_sum(&n, "", &format!("a[i * {n} + o] * c[i * {n} + o]"));
        let body = format!("{sum}\n    let s = sigmoid(b[i]);\n    y[i] = s * (1.0 - s) * sum;");
        self.push(inputs.to_vec(), vec![self.output(1)], self.out_rows(1), body);
    }

    fn norm_grad(&mut self, n: &Norm) {
        let len = self.shape(n.weight)[0];
        let (groups, len) = (self.cols(0) / len, self.size(len));
        let centred = match n.kind {
            NormKind::Rms => "0.0",
            NormKind::Layer => "plain",
        };
        let body = format!(
            "let at = i * {len};
    {}
    var along = 0.0; var plain = 0.0;
    for (var j = 0u; j < {len}; j++) {{
        let x = b[at + j] * c[j];
        plain += x; along += x * (a[at + j] - centre) * scale;
    }}
    along /= f32({len}); plain /= f32({len});
    for (var j = 0u; j < {len}; j++) {{
        y[at + j] = scale * (b[at + j] * c[j] - {centred} - (a[at + j] - centre) * scale * along);
    }}",
            text::statistics(n, &len)
        );
        let reads = [self.inputs(), vec![self.weight(n.weight)]].concat();
        self.by_row(groups, reads, body);
    }

    fn norm_weight_grad(&mut self, n: &Norm) {
        let len = self.shape(n.weight)[0];
        let groups = self.in_rows(0) * (self.cols(0) / len);
        let stats = self.scratch(2 * groups, false);
        let size = self.size(len);
        let made = text::statistics(n, &size);
        let body = format!("let at = i * {size};\n    {made}\n    y[2u * i] = centre; y[2u * i + 1u] = scale;");
        self.push(vec![self.input(0)], vec![stats], groups, body);
        let [size, all] = self.sizes([len, groups]);
        let before = format!("let at = o * {size} + i;");
        let sum = text::long_sum(&all, &before, "(a[at] - c[2u * o]) * c[2u * o + 1u] * b[at]");
        let reads = [self.inputs(), vec![stats]].concat();
        self.push(reads, vec![self.gradient(n.weight)], len, format!("{sum}\n    y[i] += sum;"));
    }

    fn sum_rows(&mut self, into: WeightId) {
        let len = self.shape(into).iter().product::<usize>();
        let [n, all] = self.sizes([len, self.in_rows(0) * (self.cols(0) / len)]);
        let sum = text::long_sum(&all, "", &format!("a[o * {n} + i]"));
        self.push(self.inputs(), vec![self.gradient(into)], len, format!("{sum}\n    y[i] += sum;"));
    }
}
