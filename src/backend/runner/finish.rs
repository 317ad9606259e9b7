//! From what an executor left of a step to its results: the host's choices, the logits that are wanted, and hidden states.

use super::{Chosen, Output, Results, Runner, queue::Queued};
use crate::ops::{Array, Weights, linear::Activations, rms_norm};

impl Runner {
    /// Takes the oldest step out of the queue: chooses the tokens that are the host's, and leaves logits of the rows that want
    /// them.
    pub(super) fn finish_oldest(&mut self) {
        let Some(step) = self.queue.pop_front() else { return };
        self.begun -= 1;
        self.choose(&step);
        self.leave_wanted(&step);
        self.make_hidden(&step);
        self.spare.push(step);
    }

    /// Puts what the last layer left of the rows that want it through the final norm, which costs little beside a layer and is
    /// the norm's own reference code here.
    fn make_hidden(&mut self, step: &Queued) {
        let Results { outputs, hidden, hidden_of, .. } = &mut self.results;
        hidden.clear();
        hidden_of.clear();
        let Some(facts) = &self.graph.hidden else { return };
        let Some(out) = outputs.get_mut(facts.at) else { return };
        if out.rows > 0 {
            let tensors = &self.graph.program.weights;
            let x = Array { rows: out.rows, cols: facts.cols, data: std::mem::take(&mut out.f32) };
            *hidden =
                rms_norm::eval(&x, &facts.norm, Weights { tensors, activations: Activations::F32, owned: &[] }).data;
            hidden_of.extend(step.rows.iter().filter(|r| r.hidden).map(|r| (r.sequence, r.position)));
        }
        (out.rows, out.f32) = (0, vec![]);
    }

    fn choose(&mut self, step: &Queued) {
        self.chosen.clear();
        let (mut of_device, mut logits_row) = (0, 0);
        for (i, row) in step.rows.iter().enumerate().skip(step.rows.len() - step.outputs) {
            let sampler = &mut self.samplers[row.sequence];
            let has_logits = row.logits || !sampler.on_device;
            if let Some(random) = row.choose {
                let chosen = if sampler.on_device {
                    of_device += 1;
                    self.results.tokens.get(of_device - 1).copied().unwrap_or(Chosen::NotFinite)
                } else {
                    let (at, cols) = self.graph.logits.unwrap_or_default();
                    let logits = self.results.outputs.get(at).map_or(&[][..], |o| &o.f32);
                    let row = logits.get(logits_row * cols..(logits_row + 1) * cols).unwrap_or_default();
                    sampler.choose(&mut self.chooser, row, step.mask(i), random)
                };
                sampler.last = Some(if let Chosen::Token(id) = chosen { id } else { 0 });
                self.chosen.push(chosen);
            }
            logits_row += usize::from(has_logits);
        }
        std::mem::swap(&mut self.chosen, &mut self.results.tokens);
    }

    /// Drops logits that were read only for the host's choices.
    fn leave_wanted(&mut self, step: &Queued) {
        let last = &step.rows[step.rows.len() - step.outputs..];
        if last.iter().all(|r| r.logits) {
            return;
        }
        for (out, of_outputs) in self.results.outputs.iter_mut().zip(&self.graph.of_outputs) {
            if !of_outputs {
                continue;
            }
            let (mut from, mut to) = (0, 0);
            for row in last {
                let given = row.logits || !self.samplers[row.sequence].on_device;
                if row.logits {
                    move_row(out, from, to);
                    to += 1;
                }
                from += usize::from(given);
            }
            out.rows = to;
            out.f32.truncate(to * out.cols);
            out.u32.truncate(to * out.cols);
        }
    }
}

fn move_row(out: &mut Output, from: usize, to: usize) {
    let source = from * out.cols..(from + 1) * out.cols;
    if from == to {
        return;
    }
    if out.f32.len() >= source.end {
        out.f32.copy_within(source.clone(), to * out.cols);
    }
    if out.u32.len() >= source.end {
        out.u32.copy_within(source, to * out.cols);
    }
}
