//! Routers, and the ops on routed experts.

use super::*;

impl State {
    /// Runs a router; with `fused` also the norm and the router matrix in front of it.
    pub(super) fn route(
        &mut self,
        f: StepContext<'_>,
        node: &Node,
        r: &Router,
        outs: &mut [Aligned<f32>],
        fused: Option<(&Norm, &Linear)>,
    ) -> Result<()> {
        let x = node.inputs[0];
        let t = f.rows_of(x);
        let mut logits = take(&mut self.normed);
        let width = r.logits();
        logits.grow(t * width);
        let (ids_at, weights_at) = if fused.is_some() { (1, 2) } else { (0, 1) };
        if let Some((norm, linear)) = fused {
            let cols = f.place(x).cols;
            norm_rows(self.env(f), f, self.floats_of(f, x), norm, cols, &mut outs[0])?;
            // Router matrices are kept in f32 (see `load`), so `acts` is not read.
            let input = Input { floats: &outs[0][..t * cols], acts: &self.acts };
            let to = std::slice::from_mut(&mut logits);
            matmul::linears(self.env(f), input, t, std::slice::from_ref(linear), to, Epilogue::Plain)?;
        } else {
            logits[..t * width].copy_from_slice(self.floats_of(f, x));
        }
        let p = f.place(node.outputs[ids_at]);
        let mut ids = take(&mut self.ids[p.buffer]);
        let (to_ids, to_weights) = (Out::new(&mut ids), Out::new(&mut outs[weights_at]));
        let per = (1024 / r.experts).max(1);
        let (bias, factors) = (r.selection_bias.map(|b| f.vector(b)), r.expert_scale.map(|s| f.vector(s)));
        let failed = AtomicBool::new(false);
        let done = f.model.pool.run(t.div_ceil(per), &|worker, item| {
            let mut scratch = self.scratch.of(worker);
            let scratch = ensure_len(&mut scratch.other, 2 * r.experts);
            for i in item * per..t.min((item + 1) * per) {
                let l = &logits[i * width..(i + 1) * width];
                // SAFETY: every token belongs to one item.
                let (ids, w) = unsafe { (to_ids.slice(i * r.used, r.used), to_weights.slice(i * r.used, r.used)) };
                if !choose(l, r, bias, scratch, ids, w) {
                    failed.store(true, Ordering::Relaxed);
                    return;
                }
                if let Some(s) = factors {
                    w.iter_mut().zip(&*ids).for_each(|(w, e)| *w *= s[*e as usize]);
                }
            }
        });
        self.ids[p.buffer] = ids;
        self.normed = logits;
        if failed.into_inner() {
            return Err(Error::Graph(format!("a router takes {} of {} experts: {}", r.used, r.experts, r.variant())));
        }
        done
    }

    /// The numbers of the experts that are here.
    pub(super) fn local_ids(&mut self, f: StepContext<'_>, ids: ValueId, to: ValueId, first: u32, count: u32) {
        let p = f.place(to);
        let mut local = take(&mut self.ids[p.buffer]);
        let here = self.ids_of(f, ids).iter().map(|id| id.wrapping_sub(first).min(count));
        local.iter_mut().zip(here).for_each(|(to, id)| *to = id);
        self.ids[p.buffer] = local;
    }

    /// Lets who has the other experts compute a region.
    pub(super) fn elsewhere(
        &mut self,
        f: StepContext<'_>,
        ins: &[ValueId],
        region: usize,
        out: &mut [f32],
        cols: usize,
    ) -> Result<()> {
        let missing = || Error::Graph("experts of the host in a graph that is not split".into());
        let mut host = self.host.take().ok_or_else(missing)?;
        let rows = f.step.tokens.len();
        let input = |v: &ValueId| {
            let place = f.place(*v);
            let words = match f.model.layout.buffers[place.buffer].ids {
                true => self.ids_of(f, *v),
                false => bytemuck::cast_slice(self.floats_of(f, *v)),
            };
            HostRows { words, stride: place.cols }
        };
        // Slots, ids and weights.
        let [slots, ids, weights] = ins else { return Err(missing()) };
        let inputs = [slots, ids, weights].map(input);
        let to = HostResult { words: out.get_mut(..rows * cols).ok_or_else(missing)?, stride: cols };
        let done = host.run(region, rows, &inputs, to);
        self.host = Some(host);
        done
    }

    /// Runs an op on routed experts.
    pub(super) fn routed(&mut self, f: StepContext<'_>, node: &Node, outs: &mut [Aligned<f32>]) -> Result<()> {
        let (x, ids) = (node.inputs[0], node.inputs[1]);
        let (first, second) = match &node.op {
            Op::ExpertLinear(l) | Op::ExpertAct { linear: l, .. } | Op::ExpertDownAdd { linear: l, .. } => (*l, *l),
            Op::ExpertGlu { gate, up, .. } => (*gate, *up),
            op => return Err(Error::Graph(format!("the CPU backend has no expert code for {}", op.name()))),
        };
        let shape = f.weight(first.weight).tensor().shape();
        let (n, width, inp) = (shape[0], shape[1], shape[2]);
        let mut by_expert = take(&mut self.slots_by_expert);
        let made = by_expert.make(self.ids_of(f, ids), f.place(ids).cols, n, f.model.local_ids.contains(&ids));
        self.slots_by_expert = by_expert;
        made?;
        if let Some(ahead) = &f.model.ahead {
            ahead.ask(f.model, node.outputs[0], &self.slots_by_expert);
        }
        self.quantise(f, x, &[first.weight, second.weight])?;
        let input = Input { floats: self.floats_of(f, x), acts: &self.acts };
        let matrices = |l: Linear| ExpertMatrix { weight: f.weight(l.weight), bias: l.bias.map(|b| f.vector(b)) };
        let (env, m) = (self.env(f), matrices(first));
        let input_rows = if f.place(x).cols == inp { ExpertInput::PerToken } else { ExpertInput::PerSlot };
        match &node.op {
            Op::ExpertGlu { act, .. } => {
                experts::glu(env, input, &self.slots_by_expert, (m, matrices(second)), width, *act, &mut outs[0])
            }
            Op::ExpertDownAdd { factor, .. } => {
                let (weights, residual) = (self.floats_of(f, node.inputs[2]), self.floats_of(f, node.inputs[3]));
                experts::down_add(
                    env,
                    input,
                    &self.slots_by_expert,
                    m,
                    width,
                    weights,
                    (residual, *factor),
                    &mut outs[0],
                )
            }
            Op::ExpertLinear(_) => {
                experts::linear(env, input, input_rows, &self.slots_by_expert, m, width, None, &mut outs[0])
            }
            Op::ExpertAct { act, .. } => {
                experts::linear(env, input, input_rows, &self.slots_by_expert, m, width, Some(*act), &mut outs[0])
            }
            op => Err(Error::Graph(format!("the CPU backend has no expert code for {}", op.name()))),
        }
    }
}
