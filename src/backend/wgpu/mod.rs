//! The GPU backend: runs a [`crate::plan`] on a device that wgpu reaches (Vulkan, Metal, DX12).
//!
//! In the order in which they stand on each other:
//! - `adapters`: which devices there are, the choice among them, what one must be opened with;
//! - `device`: the handle, errors, buffers, waits with a bound; `mapping`: buffers read back;
//! - `pipeline`: compiled kernels; `shaders`: compiled shaders as bytes between runs; `gpu`: a device with its pipelines;
//! - `probe`: what a device does where WGSL leaves it open;
//! - `canary`: poison and canaries, for tests;
//! - `memory`: what a device has left of it;
//! - `needs`: what a model will take of it;
//! - `upload`: weights, packed and streamed to buffers made once;
//! - `expert_slots`: slots of experts in the device's memory; `expert_counts`: what the device has counted of them;
//! - `schedules`: caches, scratch, bind groups, and what encodes steps into a pass;
//! - `sampler`: tokens chosen on the device, and their way back to the host;
//! - `begun`, `slices`, `states`: a step on its way, how much of it one submission takes, where recurrent states are;
//! - `runner`: the plan and the buffers of some sequences; `submit`: one encoder, one compute pass, one submit a step (or a slice);
//!   `fetch`: results; `host`, `exchange`: experts that the processor computes; `moves`: sequences copied, saved, restored; `executor`: all that, as the host sees it;
//! - `profile`: time of each kernel, and the device's roofline;
//! - `training`: graphs with gradients;
//! - `model`: a loaded model; `tuning`: which variants of kernels a device runs fastest; `open`: a device opened or adopted.
//!
//! A step writes token ids, a 32-byte uniform and what its rows want, submits, and reads results and chosen tokens back through
//! mapped buffers. Nothing is created per token. Routing stays on the device. Nothing blocks but what says so, and every wait has
//! a bound.
//!
//! Errors never panic: what wgpu reports through error scopes, its uncaptured-error handler or the loss of the device
//! becomes [`Error::Device`](crate::Error::Device); after a loss, open the device and load again.
//!
//! Deliberately absent: shape rules, models, decisions (the plan makes them).

mod adapters;
mod begun;
mod canary;
mod device;
mod exchange;
mod expert_counts;
mod expert_slots;
mod executor;
mod fetch;
mod gpu;
mod host;
mod mapping;
mod memory;
mod model;
mod moves;
mod needs;
mod open;
mod pipeline;
mod probe;
mod profile;
mod runner;
mod sampler;
mod schedules;
mod shaders;
mod slices;
mod states;
mod submit;
mod training;
mod tuning;
mod upload;

pub use adapters::{DeviceInfo, Requirements};
pub use gpu::Gpu;
pub use needs::DeviceBytes;
#[doc(hidden)]
pub use probe::Probed;
pub use shaders::ShaderCache;
pub use training::{train, train_with};
pub use tuning::{Measured, Tuning};

use super::{Loaded, OnProgress, Program};
use crate::{
    error::Result,
    graph::ExpertSlots,
    kernels::{Reduction, Tiles},
};

/// Which device, and how to use it.
#[derive(Clone, Debug)]
pub struct Options {
    /// A number of [`DeviceInfo::all`], or a part of a device's name, upper or lower case. `None`: the best real GPU; a software
    /// device is taken only when it is named.
    pub device: Option<String>,
    /// Limits to stay below, for tests and for plans that must fit other devices.
    pub limits: ForcedLimits,
    /// Run all shaders with bounds checks and bounded loops, and let wgpu validate indirect dispatches. Without it, those run
    /// unchecked whose variant of kernel, formats and numbers the tests of this crate ran with the checks on
    /// (`src/kernels/proven.txt`), and the others run with bounds checks and bounded loops.
    pub checked: bool,
    /// How programs are run.
    pub run: RunOptions,
    /// Compiled shaders of earlier runs, and where those of this run can be asked for.
    pub shaders: ShaderCache,
    /// What was measured on devices, and whether those that are new to it are.
    pub tuning: Tuning,
    /// Decode the halves of weights as on a device whose own conversion takes subnormal ones for zeros. For tests: whether a device
    /// does that is found out when it is opened.
    pub without_halves: bool,
    /// Use experimental features of wgpu where the device has them: cooperative matrices. wgpu warns that faults of its own may
    /// be met.
    pub experimental: bool,
}

impl Default for Options {
    fn default() -> Self {
        let (limits, run) = Default::default();
        Options {
            device: None,
            limits,
            checked: false,
            run,
            shaders: ShaderCache::default(),
            tuning: Tuning::default(),
            without_halves: false,
            experimental: false,
        }
    }
}

/// Who hears of an adopted device's loss and of errors outside error scopes. wgpu has one place for each of these two callbacks on a
/// device; whoever sets one last replaces what stood there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceCallbacks {
    /// The host keeps both, set before or after: Moeray never touches them. The host forwards the loss of the device with
    /// [`Gpu::lost`]; errors of Moeray's own work are caught in error scopes and do not reach the host.
    KeptByHost,
    /// The host hands both over: Moeray sets them, and what they report becomes [`Error::Device`](crate::Error::Device).
    HandedOver,
}

/// Limits below what a device offers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForcedLimits {
    /// The limits that every WebGPU device has, and no more.
    pub webgpu_defaults: bool,
    /// Bytes of a storage binding.
    pub max_binding: Option<u64>,
    /// Bytes of memory that the device is taken to have left.
    pub memory: Option<u64>,
    /// Whether the device is taken for one with memory of its own, whatever it is.
    pub own_memory: bool,
}

/// How a program is run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Fuse the graph first.
    pub fuse: bool,
    /// The reduction of the kernels; `None`: what suits the device.
    pub reduction: Option<Reduction>,
    /// How products of many rows store and multiply their tiles; `None`: what suits the device. See
    /// `plan::Options::tiles`.
    pub tiles: Option<Tiles>,
    /// Whether subgroups are used; `None`: where it is safe. See `plan::Options::subgroups`.
    pub subgroups: Option<bool>,
    /// Slots of the device's memory for the experts of each layer, as `session::ExpertPlacement::Slots` asks for them: all experts are then
    /// kept where kernels read them more slowly, which on a device with memory of its own is memory of the host. `None`: all experts in the
    /// device's memory. For what runs programs without a session.
    #[doc(hidden)]
    pub expert_slots: Option<ExpertSlots>,
    /// Fill scratch with NaN before every step, and caches when they are made: what reads more than was written shows.
    pub poison: bool,
    /// Put canaries (known bytes) behind every buffer of scratch and check them after every step: what writes too far shows.
    pub canaries: bool,
    /// Most dispatches of one submission, for hosts that draw pictures in between; `None`: no limit.
    pub max_dispatches: Option<usize>,
    /// Most work of one submission in bytes of weights (and of keys and values) times the tokens that meet them, so that no
    /// submission of a long prompt runs into a driver's watchdog; `None`: no limit. Attention over a long context, whose bytes count
    /// once for each query head, is cut within a dispatch.
    pub max_work: Option<u64>,
}

/// Some 10^11 operations: half a second on a GPU of 200 GFLOP/s, a tenth of what watchdogs allow.
const MAX_WORK: u64 = 1 << 35;

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions {
            fuse: true,
            reduction: None,
            tiles: None,
            subgroups: None,
            expert_slots: None,
            poison: false,
            canaries: false,
            max_dispatches: None,
            max_work: Some(MAX_WORK),
        }
    }
}

/// Opens a device and puts a program's weights on it.
///
/// # Errors
/// [`crate::Error::Device`] where there is no such device, it is too small or out of memory;
/// [`crate::Error::Unsupported`] for sizes that no kernel takes.
pub fn load(program: Program, options: &Options, progress: OnProgress<'_>) -> Result<Box<dyn Loaded>> {
    Gpu::open(options)?.load(program, progress)
}
