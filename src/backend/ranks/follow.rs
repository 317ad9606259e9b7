//! What the ranks do that do not lead: what rank 0 says.

use super::{World, as_step, message::Command};
use crate::{
    backend::{
        Loaded,
        runner::{Budget, Executor, Results, Status},
    },
    error::{Error, Result},
};
use std::collections::BTreeMap;

/// Does what rank 0 says with this rank's part of the model, until it says that it is done.
///
/// # Errors
/// [`Error::Network`] where rank 0 or another rank is gone; whatever a step comes to on this rank, after which the others cannot go on.
pub fn follow(model: &dyn Loaded, world: &World) -> Result<()> {
    let done = follow_until_end(model, world);
    if done.is_err() {
        world.part();
    }
    done
}

fn follow_until_end(model: &dyn Loaded, world: &World) -> Result<()> {
    let mut executors: BTreeMap<u32, Box<dyn Executor>> = BTreeMap::new();
    let (mut words, mut results) = (vec![], Results::default());
    let unknown = |id: u32| Error::Network(format!("rank 0 speaks of executor {id}, which is not there"));
    loop {
        world.broadcast(&mut words)?;
        match Command::decode(&words)? {
            Command::End => return Ok(()),
            Command::Executor(id, options) => match world.agree(model.executor(options)) {
                Ok(executor) => _ = executors.insert(id, executor),
                Err(e) if world.is_apart() => return Err(e),
                // All ranks have heard of it, and go on without this executor.
                Err(_) => {}
            },
            Command::Drop(id) => _ = executors.remove(&id),
            Command::Step(id, step) => {
                let executor = executors.get_mut(&id).ok_or_else(|| unknown(id))?;
                executor.begin(&as_step(&step))?;
                while executor.poll(Budget::UNLIMITED, &mut results)? != Status::Done {
                    executor.wait()?;
                }
            }
            Command::CopyPrefix(id, [from, to, positions]) => {
                executors.get_mut(&id).ok_or_else(|| unknown(id))?.copy_prefix(from, to, positions)?;
            }
            Command::CopyStates(id, [from, to]) => {
                executors.get_mut(&id).ok_or_else(|| unknown(id))?.copy_states(from, to)?;
            }
            Command::Write(id, s) => {
                let executor = executors.get_mut(&id).ok_or_else(|| unknown(id))?;
                executor.write_sequence(s.sequence, s.positions, s.states, &s.bytes)?;
            }
        }
    }
}
