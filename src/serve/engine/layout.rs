//! The rows of a step, and the masks of those that choose a token under a grammar.

use super::slot::Slot;
use crate::{
    backend::runner::{Mask, Row},
    error::Error,
    serve::{metrics::Metrics, schedule::Share},
};

/// Rows of a step, and masks with the rows that they are for.
#[derive(Default)]
pub struct Layout {
    pub rows: Vec<Row>,
    masks: Vec<(usize, Vec<u32>)>,
}

impl Layout {
    pub fn masks(&self) -> Vec<Mask<'_>> {
        self.masks.iter().map(|(row, m)| Mask { row: *row, allowed: m }).collect()
    }
}

/// The rows of a step: those from which something is wanted come last. `None` where no job is left of it.
pub fn lay_out(slots: &mut [Slot], shares: &[Share], metrics: &Metrics) -> Option<Layout> {
    let mut layout = Layout::default();
    let mut wanted = vec![];
    for share in shares {
        let slot = &mut slots[share.sequence];
        let position = slot.text.len();
        let Some(active) = &mut slot.active else { continue };
        let ids = match active.unread() {
            0 => std::slice::from_ref(&active.last),
            _ => &active.job.prompt[active.fed..active.fed + share.rows],
        };
        let prompt_logits = active.job.prompt_logprobs && active.unread() > 0;
        let length = active.job.prompt.len();
        let mut rows: Vec<Row> = ids.iter().zip(position..).map(|(id, at)| Row::fed(*id, share.sequence, at)).collect();
        let ends = active.unread() <= share.rows;
        if prompt_logits {
            rows.iter_mut().for_each(|r| r.logits = true);
        }
        if let Some(pooled) = &active.job.pooled {
            rows.iter_mut().for_each(|r| r.hidden = pooled.wants(r.position, length));
        }
        let mut mask = None;
        if ends
            && active.job.pooled.is_none()
            && let Some(last) = rows.last_mut()
        {
            if active.on_host || prompt_logits {
                last.logits = true;
            } else {
                let random = active.next_random();
                last.choose = Some(random);
                mask = match active.allowed() {
                    Ok(mask) => mask.map(<[u32]>::to_vec),
                    Err(e) => {
                        slot.active.take().into_iter().for_each(|a| a.fail(Error::Invalid(e.to_string()), metrics));
                        continue;
                    }
                };
            }
        }
        for row in rows {
            if row.wants() { wanted.push((row, mask.take())) } else { layout.rows.push(row) }
        }
    }
    for (row, mask) in wanted {
        layout.masks.extend(mask.map(|m| (layout.rows.len(), m)));
        layout.rows.push(row);
    }
    (!layout.rows.is_empty()).then_some(layout)
}
