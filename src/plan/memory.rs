//! Memory: contents whose lives do not overlap share a scratch buffer.

use super::{Buffer, Content, Grid, Schedule, Scratch};

/// First and last step that touches each content; `None` for one that no step touches.
fn lives(s: &Schedule) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; s.contents.len()];
    let mut touch = |content: u32, step: usize| {
        let life = lives[content as usize].get_or_insert((step, step));
        life.1 = step;
    };
    for (i, step) in s.steps.iter().enumerate() {
        step.bindings.iter().filter_map(|b| b.content).for_each(|c| touch(c, i));
        if let Grid::Indirect { content, .. } = step.grid {
            touch(content, i);
        }
    }
    for o in &s.outputs {
        if let Buffer::Scratch(c) = o.place.buffer {
            // The caller reads it after the last step.
            touch(c, s.steps.len());
        }
    }
    lives
}

/// Gives every content a scratch buffer and rewrites [`Buffer::Scratch`] from contents to these. With `share`, a buffer
/// is used again once what lay in it is dead: the smallest free one that is large enough, else the largest, which
/// grows. Both ends of a life are inclusive, so that no dispatch ever binds one buffer for two contents.
pub(super) fn assign(s: &mut Schedule, share: bool) {
    let lives = lives(s);
    let mut order: Vec<usize> = (0..s.contents.len()).filter(|c| lives[*c].is_some()).collect();
    order.sort_by_key(|c| lives[*c]);
    // Of each buffer: the last step of what lies in it.
    let mut busy: Vec<usize> = Vec::new();
    for c in order {
        let Some((first, last)) = lives[c] else { continue };
        let Content { bytes, indirect, .. } = s.contents[c];
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
        s.contents[c].scratch = b as u32;
        busy[b] = last;
    }
    rename(s);
}

/// From contents to buffers.
fn rename(s: &mut Schedule) {
    let contents = &mut s.contents;
    for step in &mut s.steps {
        for b in &mut step.bindings {
            if let (Buffer::Scratch(i), Some(c)) = (&mut b.buffer, b.content) {
                *i = contents[c as usize].scratch;
            }
        }
        if let Grid::Indirect { buffer: Buffer::Scratch(i), content, .. } = &mut step.grid {
            *i = contents[*content as usize].scratch;
        }
    }
    for o in &mut s.outputs {
        if let Buffer::Scratch(i) = &mut o.place.buffer {
            o.content = Some(*i);
            let c = &mut contents[*i as usize];
            c.output = true;
            *i = c.scratch;
        }
    }
}
