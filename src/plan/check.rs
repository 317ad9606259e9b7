//! The plan's checker: replays the steps against the shaders' own words and the device's limits. It shares no code with
//! the memory planner, so that a fault there cannot hide here.

use super::{
    Access, Binding, Buffer, BufferView, Caps, Grid, HostCall, PARAMS_STRIDE, Plan, Schedule, Sizes, Step, Weights,
    ZERO_BYTES,
};
use crate::{
    error::{Error, Result},
    kernels::{self, Reflection},
};
use std::collections::{BTreeMap, BTreeSet};

fn refuse<T>(what: String) -> Result<T> {
    Err(Error::Device(format!("the plan is wrong: {what}")))
}

/// Refuses a plan that cannot be right: a transient read after it was overwritten or before it was written, one buffer read
/// and written by a dispatch, bindings out of range, more bindings, workgroups or bytes than the device takes, indirect
/// arguments in a buffer that is not made for them.
///
/// # Errors
/// [`Error::Device`] with the step and what is wrong.
pub fn check(plan: &Plan, weights: &Weights, caps: &Caps) -> Result<()> {
    for (i, (name, s)) in plan.schedules().into_iter().enumerate() {
        let Some(s) = s else { continue };
        let c = Checker { plan, weights, caps, s };
        let picks = plan.sampling.as_ref().map_or(&[][..], |p| &p.steps[i]);
        c.run(picks).map_err(|e| match e {
            Error::Device(what) => Error::Device(format!("{name}: {what}")),
            other => other,
        })?;
    }
    Ok(())
}

/// Refuses a plan whose bindings are not those of its shaders: every variable bound once, by name, with the shader's
/// access, and uniforms of the shader's size. Links and parses every distinct variant, so it costs a few milliseconds each.
///
/// # Errors
/// [`Error::Device`] with the step and the binding.
pub fn check_shaders(plan: &Plan) -> Result<()> {
    let mut seen: BTreeMap<String, Reflection> = BTreeMap::new();
    let picks = plan.sampling.iter().flat_map(|s| s.steps.iter().flatten());
    let schedules = plan.schedules().into_iter().filter_map(|s| s.1);
    for step in schedules.flat_map(|s| &s.steps).chain(picks) {
        let label = step.variant.label();
        if !seen.contains_key(&label) {
            let reflection = kernels::reflect(&kernels::link(&step.variant)?)?;
            seen.insert(label.clone(), reflection);
        }
        if let Some(r) = seen.get(&label) {
            check_step_shader(step, r)?;
        }
    }
    Ok(())
}

/// One step against what its shader says.
///
/// # Errors
/// As [`check_shaders`].
pub fn check_step_shader(step: &Step, r: &Reflection) -> Result<()> {
    let label = step.variant.label();
    for b in &r.bindings {
        match (b.access, step.bindings.iter().find(|x| x.name == b.name)) {
            (Access::Uniform, None) if b.name == "p" || b.name == "frame" => {}
            (access, Some(x)) if x.access == access => {}
            (access, found) => return refuse(format!("{label}: {} is {access:?}, bound is {found:?}", b.name)),
        }
    }
    if let Some(x) = step.bindings.iter().find(|x| r.binding(x.name).is_none()) {
        return refuse(format!("{label} has no {}", x.name));
    }
    let params: usize = step.variant.kernel.params.iter().map(|f| f.offset + f.size).max().unwrap_or(0);
    if params != step.params.len() {
        return refuse(format!("{label}: {params} bytes of uniforms, given {}", step.params.len()));
    }
    Ok(())
}

struct Checker<'a> {
    plan: &'a Plan,
    weights: &'a Weights,
    caps: &'a Caps,
    s: &'a Schedule,
}

impl Checker<'_> {
    /// The steps of the schedule, then those that pick a token.
    fn run(&self, picks: &[Step]) -> Result<()> {
        let mut holds: BTreeMap<u32, u32> = BTreeMap::new();
        let mut calls = self.s.host_calls.iter().peekable();
        let mut of_host = None;
        let mut filled = BTreeSet::new();
        for (i, step) in self.s.steps.iter().chain(picks).enumerate() {
            let wrong = |what: String| refuse(format!("step {i} ({}): {what}", step.variant.label()));
            while let Some(call) = calls.next_if(|c| c.before == i) {
                self.host_call(call, &holds).or_else(wrong)?;
                of_host = Some(call);
            }
            let computed = of_host.filter(|c| c.needed <= i).map(|c| c.region);
            if let Some(b) = step.bindings.iter().find(|b| matches!(b.buffer, Buffer::Host(r) if Some(r) != computed)) {
                return wrong(format!("{} expects {:?}, the host has computed region {computed:?}", b.name, b.buffer));
            }
            for b in step.bindings.iter().filter(|b| matches!(b.buffer, Buffer::ExpertSlots { .. })) {
                match b.access {
                    Access::ReadWrite => _ = filled.insert(b.buffer),
                    Access::Read | Access::Uniform if filled.contains(&b.buffer) => {}
                    Access::Read | Access::Uniform => {
                        return wrong(format!("{} reads {:?}, which nothing has filled", b.name, b.buffer));
                    }
                }
            }
            if step.params.len() as u64 > PARAMS_STRIDE {
                return wrong(format!("{} bytes of uniforms", step.params.len()));
            }
            if step.bindings.len() > self.caps.storage_bindings as usize {
                return wrong(format!("{} storage bindings", step.bindings.len()));
            }
            for b in &step.bindings {
                self.binding(b, step.op).or_else(|what| wrong(format!("{}: {what}", b.name)))?;
            }
            self.one_use(step).or_else(wrong)?;
            self.grid(step).or_else(wrong)?;
            self.replay(step, &mut holds).or_else(wrong)?;
        }
        if let Some(call) = calls.next() {
            return refuse(format!(
                "the host computes region {} before step {}, which is not there",
                call.region, call.before
            ));
        }
        for o in &self.s.outputs {
            if let (Buffer::Scratch(b), Some(c)) = (o.view.buffer, o.transient)
                && holds.get(&b) != Some(&c)
            {
                return refuse(format!("output {} was overwritten or never written", o.name));
            }
        }
        Ok(())
    }

    /// Bytes of a buffer.
    fn bytes(&self, b: Buffer) -> Option<u64> {
        let most = self.plan.prefill.max_tokens as u64;
        Some(match b {
            Buffer::Frame | Buffer::Params => PARAMS_STRIDE,
            Buffer::Tokens => 4 * most,
            Buffer::Rows => 8 * most,
            Buffer::Spans => self.plan.span_bytes(),
            Buffer::Zero => ZERO_BYTES,
            Buffer::Vectors => self.weights.vector_bytes,
            Buffer::Matrix { matrix, segment } => {
                self.weights.matrices.get(matrix as usize)?.segments.get(segment as usize)?.bytes
            }
            Buffer::ExpertSlots { cache, part } => {
                self.plan.expert_caches.get(cache as usize)?.matrices.get(part as usize)?.segment.bytes
            }
            Buffer::ExpertCache(c) => self.plan.expert_caches.get(c as usize)?.bytes,
            Buffer::Rope(i) => self.plan.ropes.get(i as usize)?.bytes,
            Buffer::Input(i) => 4 * most * self.plan.inputs.get(i as usize)?.stride as u64,
            Buffer::Host(_) => self.plan.host_bytes(),
            Buffer::Keys { cache, part } => self.plan.caches.get(cache as usize)?.parts.get(part as usize)?.keys,
            Buffer::Values { cache, part } => self.plan.caches.get(cache as usize)?.parts.get(part as usize)?.values,
            Buffer::State(s) => *self.plan.states.get(s as usize)?,
            Buffer::Scratch(i) => self.s.scratch.get(i as usize)?.bytes,
            Buffer::Sampling(part) => self.plan.sampling.as_ref()?.bytes(part),
        })
    }

    fn binding(&self, b: &Binding, op: &str) -> Result<(), String> {
        let Some(bytes) = self.bytes(b.buffer) else { return Err(format!("{:?} does not exist", b.buffer)) };
        if b.size == 0 || b.offset.checked_add(b.size).is_none_or(|end| end > bytes) {
            return Err(format!("bytes {} + {} of a buffer of {bytes}", b.offset, b.size));
        }
        if bytes > self.caps.max_buffer || b.size > self.caps.max_binding {
            return Err(format!("{} of {bytes} bytes are more than the device takes", b.size));
        }
        if b.offset % self.caps.alignment.max(1) != 0 || b.size % 4 != 0 {
            return Err(format!("bytes {} + {} are not aligned", b.offset, b.size));
        }
        let read_only = match b.buffer {
            Buffer::Keys { .. } | Buffer::Values { .. } | Buffer::State(_) | Buffer::Scratch(_) => false,
            Buffer::ExpertSlots { .. } | Buffer::ExpertCache(_) => false,
            // What is picked is the next step's input.
            Buffer::Tokens | Buffer::Sampling(_) => op != "sample",
            Buffer::Frame
            | Buffer::Params
            | Buffer::Rows
            | Buffer::Spans
            | Buffer::Zero
            | Buffer::Vectors
            | Buffer::Matrix { .. }
            | Buffer::Rope(_)
            | Buffer::Input(_)
            | Buffer::Host(_) => true,
        };
        if read_only && b.access == Access::ReadWrite {
            return Err(format!("{:?} is written", b.buffer));
        }
        Ok(())
    }

    /// What the host reads is there.
    fn host_call(&self, call: &HostCall, holds: &BTreeMap<u32, u32>) -> Result<(), String> {
        for (i, input) in call.inputs.iter().enumerate() {
            let BufferView { buffer, offset, stride } = input.view;
            if let (Buffer::Scratch(b), Some(c)) = (buffer, input.transient)
                && holds.get(&b) != Some(&c)
            {
                let held = holds.get(&b);
                return Err(format!(
                    "the host expects transient {c} as input {i} of region {}, and finds {held:?}",
                    call.region
                ));
            }
            let bytes = self.bytes(buffer).unwrap_or(0);
            if input.bytes(self.s.max_tokens) > bytes || offset as usize + input.cols > stride as usize {
                return Err(format!("the host reads beyond {bytes} bytes of {buffer:?}"));
            }
        }
        Ok(())
    }

    /// A buffer that a dispatch writes is bound once.
    fn one_use(&self, step: &Step) -> Result<(), String> {
        for (i, w) in step.bindings.iter().enumerate().filter(|(_, b)| b.access == Access::ReadWrite) {
            if let Some((_, r)) = step.bindings.iter().enumerate().find(|(j, b)| *j != i && b.buffer == w.buffer) {
                return Err(format!("{} and {} are the same buffer, written", w.name, r.name));
            }
            if matches!(step.grid, Grid::Indirect { buffer, .. } if buffer == w.buffer) {
                return Err(format!("{} is written while it gives the workgroups", w.name));
            }
        }
        Ok(())
    }

    fn grid(&self, step: &Step) -> Result<(), String> {
        let most = Sizes { tokens: self.s.max_tokens as u32, outputs: self.s.max_outputs as u32, past: 0 };
        if let Some(g) = step.grid.eval(most)
            && g.iter().any(|n| *n > self.caps.max_workgroups)
        {
            return Err(format!("{g:?} workgroups; a smaller micro-batch would help"));
        }
        if let Grid::Indirect { buffer: Buffer::Scratch(i), .. } = step.grid
            && !self.s.scratch.get(i as usize).is_some_and(|s| s.indirect)
        {
            return Err("workgroups from a buffer that is not made for it".into());
        }
        Ok(())
    }

    /// Reads must find what they expect; writes leave it.
    fn replay(&self, step: &Step, holds: &mut BTreeMap<u32, u32>) -> Result<(), String> {
        let indirect = match step.grid {
            Grid::Indirect { buffer: Buffer::Scratch(i), transient, .. } => Some((i, transient, "the grid")),
            _ => None,
        };
        let scratch = |access: Access| {
            step.bindings.iter().filter(move |b| b.access == access).filter_map(|b| match (b.buffer, b.transient) {
                (Buffer::Scratch(i), Some(c)) => Some((i, c, b.name)),
                _ => None,
            })
        };
        for (i, c, name) in scratch(Access::Read).chain(indirect) {
            if holds.get(&i) != Some(&c) {
                return Err(format!("{name} expects transient {c} in scratch {i}, which holds {:?}", holds.get(&i)));
            }
        }
        for (i, c, name) in scratch(Access::ReadWrite) {
            match self.s.transients.get(c as usize) {
                Some(transient) if transient.bytes <= self.s.scratch[i as usize].bytes => holds.insert(i, c),
                _ => return Err(format!("{name} writes more than scratch {i} has")),
            };
        }
        Ok(())
    }
}
