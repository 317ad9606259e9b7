//! Graphs: building, checking, rewriting, differentiating.
//!
//! Deliberately absent: devices, the bytes of weights (a [`Program`] only carries them).

mod back;
mod build;
mod check;
mod differentiate;
pub mod formula;
mod fuse;
mod low_rank;
mod padding;
mod parameter;
mod program;
mod ranks;
mod recompute;
mod rewrite;
mod router_capacity;
mod router_groups;
mod router_noise;
mod routers;
mod rules;
mod slots;
mod split;
mod stages;
mod train_program;
mod unroll;
mod weighed;

pub use build::Builder;
pub use check::check;
pub use differentiate::{Differentiated, differentiate};
pub use fuse::fuse;
pub use low_rank::{LowRank, with_low_rank};
pub use padding::COUNTED;
use padding::counted_rows;
pub use parameter::Parameter;
pub use program::Program;
pub use ranks::{RankRegion, RankSplit, experts_of_rank, split_for_rank};
pub use recompute::Recompute;
pub use router_capacity::{ExpertDropout, RouterCapacity, with_capacity, with_expert_dropout};
pub use router_groups::{GROUP_ROUTER, RouterGroups, with_router_groups};
pub use router_noise::{NOISE_ROUTER, RouterNoise, with_experts_used, with_router_noise};
pub use routers::{RouterNode, routers};
pub use slots::{Eviction, ExpertSlots};
pub use split::{Region, Split, expert_weights, split_experts};
pub use stages::{Stage, layers, ranges_of_layers, stages};
pub use train_program::{LOSS, TrainProgram, inference_only};
pub use unroll::for_training;
