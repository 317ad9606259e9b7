//! The GPU backend: runs a [`crate::plan`] on a device that wgpu reaches (Vulkan, Metal, DX12).
//!
//! - `device`: adapters, the choice among them, the opened device with its pipelines and its errors;
//! - `upload`: weights, packed and streamed to buffers made once;
//! - `picker`: tokens chosen on the device, and their way back to the host;
//! - `runner`: caches, scratch, bind groups, and the encode loop: one encoder, one compute pass, one submit a step.
//!
//! A step writes token ids and a 32-byte uniform, submits, and reads the results back through one mapped buffer. Nothing
//! is created per token. Routing stays on the device.
//!
//! Errors never panic: what wgpu reports through error scopes, its uncaptured-error handler or the loss of the device
//! becomes [`Error::Device`](crate::Error::Device); after a loss, open the device and load again.
//!
//! Deliberately absent: shape rules, models, decisions (the plan makes them).

mod device;
mod guard;
mod picker;
mod pipeline;
mod runner;
mod upload;

pub use device::{DeviceInfo, Gpu, devices};

use super::{Loaded, Program, Progress};
use crate::{error::Result, kernels::Style};

/// Which device, and how to use it.
#[derive(Clone, Debug)]
pub struct Options {
    /// A number of [`devices`], or a part of a device's name, upper or lower case. `None`: the best real GPU; a software
    /// device is taken only when it is named.
    pub device: Option<String>,
    /// Limits to stay below, for tests and for plans that must fit other devices.
    pub limits: ForcedLimits,
    /// Run shaders with bounds checks and bounded loops, and let wgpu validate indirect dispatches. Without it, shaders are
    /// trusted: they are this crate's own, and pass its tests with the checks on.
    pub checked: bool,
    /// How programs are run.
    pub run: RunOptions,
}

impl Default for Options {
    fn default() -> Self {
        Options { device: None, limits: ForcedLimits::default(), checked: true, run: RunOptions::default() }
    }
}

/// Limits below what a device offers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForcedLimits {
    /// The limits that every WebGPU device has, and no more.
    pub webgpu_defaults: bool,
    /// Bytes of a storage binding.
    pub max_binding: Option<u64>,
}

/// How a program is run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Fuse the graph first.
    pub fuse: bool,
    /// The reduction of the kernels; `None`: what suits the device.
    pub style: Option<Style>,
    /// Fill scratch with NaN before every step, and caches when they are made: what reads more than was written shows.
    pub poison: bool,
    /// Put guard bytes behind every buffer of scratch and check them after every step: what writes too far shows.
    pub guard: bool,
    /// Most dispatches of one submission, so that no single one runs into a watchdog; `None`: no limit.
    pub max_dispatches: Option<usize>,
}

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions { fuse: true, style: None, poison: false, guard: false, max_dispatches: None }
    }
}

/// Opens a device and puts a program's weights on it.
///
/// # Errors
/// [`crate::Error::Device`] where there is no such device, it is too small or out of memory;
/// [`crate::Error::Unsupported`] for sizes that no kernel takes.
pub fn load(program: Program, options: &Options, progress: &mut dyn FnMut(Progress)) -> Result<Box<dyn Loaded>> {
    Gpu::open(options)?.load(program, progress)
}
