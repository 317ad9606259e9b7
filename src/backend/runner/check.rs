//! What can be said of a step before anything of it runs.

use super::{Mask, Row, Runner, Step, Token};
use crate::error::{Error, Result};

impl Runner {
    /// What can be said of a step by itself; gives O.
    pub(super) fn check(&self, step: &Step<'_>) -> Result<usize> {
        let rows = step.rows;
        if rows.is_empty() || rows.len() > self.options.ubatch {
            return Err(Error::Invalid(format!("a step takes 1 to {} rows, not {}", self.options.ubatch, rows.len())));
        }
        let outputs = rows.iter().rev().take_while(|r| r.wants()).count();
        if rows[..rows.len() - outputs].iter().any(Row::wants) {
            return Err(Error::Invalid("rows from which something is wanted come last in a step".into()));
        }
        for row in rows {
            self.check_sequence(row.sequence)?;
            if row.position >= self.options.ctx {
                let needed = row.position.saturating_add(1);
                return Err(Error::ContextFull { needed, capacity: self.options.ctx });
            }
            self.check_token(row)?;
            if row.hidden && self.graph.hidden.is_none() {
                return Err(Error::Unsupported("hidden states: the graph has no output for them".into()));
            }
        }
        self.check_masks(step)?;
        Ok(outputs)
    }

    fn check_token(&self, row: &Row) -> Result<()> {
        let sampler = &self.samplers[row.sequence];
        if row.choose.is_some() && !sampler.set {
            return Err(Error::Invalid(format!("sequence {} has no rules to choose a token by", row.sequence)));
        }
        match row.token {
            Token::Id(id) if id as usize >= self.graph.ids => {
                Err(Error::Invalid(format!("token id {id} is not below the vocabulary's {}", self.graph.ids)))
            }
            Token::Last if sampler.last.is_none() && !self.queue.iter().any(|q| q.chooses(row.sequence)) => {
                Err(Error::Invalid(format!("no token was chosen for sequence {} that could be fed", row.sequence)))
            }
            Token::Id(_) | Token::Last => Ok(()),
        }
    }

    fn check_masks(&self, step: &Step<'_>) -> Result<()> {
        let words = self.graph.logits.map_or(0, |l| Mask::words(l.1));
        for (i, mask) in step.masks.iter().enumerate() {
            let row = step.rows.get(mask.row).filter(|r| r.choose.is_some());
            let Some(row) = row else {
                return Err(Error::Invalid(format!("a mask for row {}, which chooses no token", mask.row)));
            };
            if !self.samplers[row.sequence].masked {
                return Err(Error::Invalid(format!("sequence {} was not said to bring masks", row.sequence)));
            }
            if i > 0 && step.masks[i - 1].row >= mask.row {
                return Err(Error::Invalid("masks do not stand in the order of their rows".into()));
            }
            if mask.allowed.len() != words {
                return Err(Error::Invalid(format!("a mask of {} words, not {words}", mask.allowed.len())));
            }
        }
        Ok(())
    }
}
