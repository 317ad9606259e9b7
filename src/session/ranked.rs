//! A model whose routed experts several processes share.

use super::{
    BackendChoice, ExpertPlacement, LoadOptions,
    place::{Target, target},
};
use crate::{
    backend::{
        self, Loaded, OnProgress, Program,
        ranks::{self, Joining, MOST_GATHERED, World},
        runner::fingerprint,
    },
    error::{Error, Result},
    graph::{RankSplit, split_for_rank},
};
use std::sync::Arc;

/// Positions that the fingerprint of a model takes for its context; any number does.
const USUAL_CTX: usize = 4096;

/// Loads this rank's part, where all ranks have the same model and run it in the same way. Rank 0's is the whole model; the others'
/// follow it.
///
/// # Errors
/// As [`super::Model::load`]; [`Error::Invalid`] where ranks bring different things, [`Error::Network`] where one is gone.
pub(super) fn load(
    program: &Program,
    options: &LoadOptions,
    world: &Arc<World>,
    progress: OnProgress<'_>,
) -> Result<Box<dyn Loaded>> {
    let (split, target) = world.meet(prepare(program, options, world))?;
    let shared = ranks::exchange(world, &split.regions, MOST_GATHERED);
    let loaded = world.agree(match target {
        Target::Cpu(o) => backend::cpu::load_with_host(split.program, shared, &o, progress),
        #[cfg(feature = "gpu")]
        Target::Gpu(gpu, _) => gpu.load_with_host(split.program, shared, gpu.run_options(), progress),
        Target::Reference => Err(alone()),
        Target::Split(_) => Err(several()),
    })?;
    Ok(if world.rank() == 0 { ranks::lead(loaded, world.clone()) } else { loaded })
}

/// The part of a rank of so many, where the options leave its experts with the rest of it on one device.
///
/// # Errors
/// [`Error::Unsupported`] where they do not; as [`split_for_rank`].
pub(super) fn part(program: &Program, options: &LoadOptions, rank: usize, ranks: usize) -> Result<RankSplit> {
    if !matches!(options.experts.placement, ExpertPlacement::Gpu) {
        return Err(Error::Unsupported(
            "experts that processes share, and a part of them left to the processor or in slots: each rank has its experts where the rest \
             of the model is"
                .into(),
        ));
    }
    match &options.backend {
        BackendChoice::Reference => return Err(alone()),
        BackendChoice::Split(_) => return Err(several()),
        BackendChoice::Auto | BackendChoice::Cpu(_) => {}
        #[cfg(feature = "gpu")]
        BackendChoice::Prefer(..) | BackendChoice::Gpu(_) | BackendChoice::Wgpu(_) => {}
    }
    split_for_rank(program, rank, ranks)
}

fn alone() -> Error {
    Error::Unsupported("the reference runs in one process".into())
}

fn several() -> Error {
    Error::Unsupported("each of several processes has one device".into())
}

/// This rank's part, where it runs, and what must be the same on all ranks.
fn prepare(program: &Program, options: &LoadOptions, world: &World) -> Result<((RankSplit, Target), Joining)> {
    let split = part(program, options, world.rank(), world.size())?;
    let target = target(program, options)?;
    let how = match &target {
        Target::Reference => "the reference".into(),
        Target::Split(places) => format!("{} devices", places.len()),
        Target::Cpu(o) => {
            let level = o.simd_level.unwrap_or_else(backend::cpu::best_simd_level);
            format!(
                "cpu, {}, {:?}, {}",
                level.name(),
                o.activations,
                if o.repack { "packed" } else { "as in the file" }
            )
        }
        #[cfg(feature = "gpu")]
        Target::Gpu(gpu, _) => {
            let (run, caps) = (gpu.run_options(), gpu.caps());
            let (tiles, reduction) = (run.tiles.unwrap_or(caps.tiles), run.reduction.unwrap_or(caps.reduction()));
            format!("{}, {tiles:?} tiles, {reduction:?}", gpu.name())
        }
    };
    let version = env!("CARGO_PKG_VERSION");
    let joining = Joining {
        model: fingerprint(program, USUAL_CTX),
        options: format!("moeray {version} on {how}, {} ranks", world.size()),
    };
    Ok(((split, target), joining))
}
