//! Routed experts that are somewhere else than the rest of a model: left to the processor by a GPU, in a cache of slots; and what all of
//! it takes of which memory.

mod budgets;
mod cache;
mod cache_plan;
mod cache_shape;
mod hybrid;
mod larger;
mod layers;
mod memory;
mod program;
mod ranks;
mod ranks_program;
mod slots;
mod split;

use moeray::{
    backend::wgpu::RunOptions,
    kernels::{Reduction, Tiles},
};

/// How real GPUs run, with everything watched.
fn watched() -> RunOptions {
    RunOptions {
        reduction: Some(Reduction::Workgroup),
        tiles: Some(Tiles::F32),
        subgroups: Some(false),
        poison: true,
        canaries: true,
        ..RunOptions::default()
    }
}
