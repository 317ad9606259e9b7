//! Memory: transients whose lives do not overlap share a scratch buffer.

use super::{Buffer, Grid, Schedule, Scratch, TransientBuffer};

/// First and last step that touches each transient; `None` for one that no step touches.
fn lives(s: &Schedule) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; s.transients.len()];
    let mut touch = |transient: u32, step: usize| {
        let life = lives[transient as usize].get_or_insert((step, step));
        life.1 = life.1.max(step);
    };
    for (i, step) in s.steps.iter().enumerate() {
        step.bindings.iter().filter_map(|b| b.transient).for_each(|c| touch(c, i));
        if let Grid::Indirect { transient, .. } = step.grid {
            touch(transient, i);
        }
    }
    for call in &s.host_calls {
        // The host reads it before the next dispatch.
        let read = call.inputs.iter().filter_map(|i| i.transient);
        read.for_each(|c| touch(c, call.before.saturating_sub(1)));
    }
    for o in &s.outputs {
        if let Buffer::Scratch(c) = o.view.buffer {
            // The caller reads it after the last step.
            touch(c, s.steps.len());
        }
    }
    lives
}

/// Gives every transient a scratch buffer and rewrites [`Buffer::Scratch`] from transients to these. With `share`, a buffer
/// is used again once what lay in it is dead: the smallest free one that is large enough, else the largest, which
/// grows. Both ends of a life are inclusive, so that no dispatch ever binds one buffer for two transients.
pub(super) fn assign(s: &mut Schedule, share: bool) {
    let lives = lives(s);
    let mut order: Vec<usize> = (0..s.transients.len()).filter(|c| lives[*c].is_some()).collect();
    order.sort_by_key(|c| lives[*c]);
    // Of each buffer: the last step of what lies in it.
    let mut busy: Vec<usize> = Vec::new();
    for c in order {
        let Some((first, last)) = lives[c] else { continue };
        let TransientBuffer { bytes, indirect, .. } = s.transients[c];
        let free = |b: &usize| share && busy[*b] < first && s.scratch[*b].indirect == indirect;
        let roomy = (0..busy.len()).filter(free).filter(|b| s.scratch[*b].bytes >= bytes);
        let best = roomy.min_by_key(|b| s.scratch[*b].bytes);
        let b = best.or_else(|| (0..busy.len()).filter(free).max_by_key(|b| s.scratch[*b].bytes));
        let b = b.unwrap_or_else(|| {
            s.scratch.push(Scratch { bytes: 0, indirect });
            busy.push(0);
            busy.len() - 1
        });
        s.scratch[b].bytes = s.scratch[b].bytes.max(bytes);
        s.transients[c].scratch = b as u32;
        busy[b] = last;
    }
    rename(s);
}

/// From transients to buffers.
fn rename(s: &mut Schedule) {
    let transients = &mut s.transients;
    for step in &mut s.steps {
        for b in &mut step.bindings {
            if let (Buffer::Scratch(i), Some(c)) = (&mut b.buffer, b.transient) {
                *i = transients[c as usize].scratch;
            }
        }
        if let Grid::Indirect { buffer: Buffer::Scratch(i), transient, .. } = &mut step.grid {
            *i = transients[*transient as usize].scratch;
        }
    }
    for input in s.host_calls.iter_mut().flat_map(|c| &mut c.inputs) {
        if let (Buffer::Scratch(i), Some(c)) = (&mut input.view.buffer, input.transient) {
            *i = transients[c as usize].scratch;
        }
    }
    for o in &mut s.outputs {
        if let Buffer::Scratch(i) = &mut o.view.buffer {
            o.transient = Some(*i);
            let c = &mut transients[*i as usize];
            c.output = true;
            *i = c.scratch;
        }
    }
}
