//! Whether this process was started together with others, by `mpirun` or its like, and which of them it is.

use std::{
    env,
    sync::atomic::{AtomicBool, Ordering},
};

/// Where this process stands among those that were started together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Its number, from 0 on.
    pub rank: usize,
    /// How many there are, more than one.
    pub size: usize,
    /// How many of them are on this host.
    pub local: usize,
}

/// What every process finds out by itself, and one of them says.
static KNOWN_TO_ALL: AtomicBool = AtomicBool::new(false);

/// What the launcher says in the environment: Open MPI's, MPICH's and Intel's (Hydra), Slurm's. `None`: started alone.
pub fn launched() -> Option<Launched> {
    let number = |name: &str| env::var(name).ok()?.parse::<usize>().ok();
    let of = |rank: &str, size: &str| Some((number(rank)?, number(size)?));
    let found = of("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE").or_else(|| of("PMI_RANK", "PMI_SIZE"));
    let (rank, size) = found.or_else(|| of("PMIX_RANK", "SLURM_NTASKS")).filter(|(_, size)| *size > 1)?;
    let local = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"];
    let local = local.into_iter().find_map(number).unwrap_or(1).max(1);
    Some(Launched { rank, size, local })
}

/// The rank of this process, where it is not the one that leads.
pub fn follower() -> Option<usize> {
    launched().map(|l| l.rank).filter(|rank| *rank > 0)
}

/// All processes fail by the same: the one that leads says it.
pub fn say_once() {
    KNOWN_TO_ALL.store(true, Ordering::Relaxed);
}

/// Whether another process says what this one fails by.
pub fn said_by_another() -> bool {
    follower().is_some() && KNOWN_TO_ALL.load(Ordering::Relaxed)
}
