//! Processes that share a model's routed experts, as `mpirun` or its like has started them.

use super::{
    failure::{Failure, Outcome},
    launched::{launched, say_once},
};
use crate::backend::{cpu::pool::default_threads, ranks::World};
use std::sync::{Arc, Mutex, PoisonError};

static WORLD: Mutex<Option<Arc<World>>> = Mutex::new(None);

fn held() -> Option<Arc<World>> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Threads of the cpu backend where several processes share this host's cores.
pub fn threads() -> Option<usize> {
    launched().filter(|l| l.local > 1).map(|l| (default_threads() / l.local).max(1))
}

/// The processes that share the next model; `None`: this one is alone. `wanted`: how many a person wants there to be.
pub fn world(wanted: Option<u32>) -> Outcome<Option<Arc<World>>> {
    let size = launched().map_or(1, |l| l.size);
    let wanted = wanted.map_or(size, |n| n as usize);
    if size != wanted {
        say_once();
        let what = match size {
            1 => format!("--ranks {wanted}: this process was started alone"),
            n => format!("--ranks {wanted}: {n} processes were started"),
        };
        return Err(Failure::new(what).hint(format!("mpirun -n {wanted} moeray ... starts {wanted}")));
    }
    if size == 1 {
        return Ok(None);
    }
    if held().is_some() {
        return Err(Failure::new("several processes share one model at a time, and this would be the second"));
    }
    let world = started()?;
    if world.size() != size {
        let what = format!("MPI has started {} processes, and the launcher says {size}", world.size());
        return Err(Failure::new(what).hint("the program and mpirun must be of the same MPI"));
    }
    *WORLD.lock().unwrap_or_else(PoisonError::into_inner) = Some(world.clone());
    Ok(Some(world))
}

/// Refuses what is made for one process, where several were started together.
pub fn alone(what: &str) -> Outcome {
    match launched() {
        None => Ok(()),
        Some(l) => {
            say_once();
            Err(Failure::new(format!("{what} runs in one process, and {} were started together", l.size)))
        }
    }
}

#[cfg(feature = "mpi")]
fn started() -> Outcome<Arc<World>> {
    super::interrupt::install();
    Ok(Arc::new(World::new(crate::backend::ranks::processes(super::interrupt::was_pressed)?)))
}

#[cfg(not(feature = "mpi"))]
fn started() -> Outcome<Arc<World>> {
    say_once();
    Err(Failure::new("several processes were started together, and this program was built without MPI").hint(
        "cargo install moeray --features mpi (it needs an MPI, its mpicc, and libclang); one process needs no mpirun",
    ))
}

/// What this rank has come to, where all of them have come to it.
pub fn agreed<T>(world: Option<&Arc<World>>, own: Outcome<T>) -> Outcome<T> {
    let Some(world) = world else { return own };
    match own {
        Ok(made) => Ok(world.agree(Ok(made))?),
        Err(failure) => {
            // The others hear why; this one says it with its hint, unless rank 0 says it for all.
            let why = crate::Error::Invalid(failure.message());
            match world.agree::<()>(Err(why)) {
                Err(e @ crate::Error::Network(_)) => Err(e.into()),
                _ => Err(failure),
            }
        }
    }
}

/// What the ranks have done together, for who asks.
pub fn as_json() -> Option<serde_json::Value> {
    let world = held()?;
    let c = world.counts();
    Some(serde_json::json!({
        "size": world.size(),
        "all_gathers": c.gathers,
        "all_to_alls": c.exchanges,
        "broadcasts": c.broadcasts,
        "received_bytes": c.received,
        "exchange_seconds": c.seconds,
    }))
}

/// The same for the closing line.
pub fn closing() -> String {
    held().map_or(String::new(), |world| {
        let c = world.counts();
        let (n, bytes) = (c.gathers + c.exchanges, super::units::bytes(c.received));
        format!(" | {n} exchanges, {bytes} received, {:.0} ms", c.seconds * 1e3)
    })
}

/// Settles who says how it went, before anybody does.
pub fn settle() {
    if held().is_some_and(|world| world.has_refused()) {
        say_once();
    }
}

/// Ends what was begun together, once all are here. The model and its sessions are gone.
pub fn end() {
    let Some(world) = WORLD.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    if let Err(e) = world.leave() {
        tracing::warn!("the ranks have not ended in order: {e}");
    }
}
