//! A device opened, or a host's device adopted.

use super::{
    DeviceCallbacks, Options,
    adapters::{Requirements, adapters, caps, choose, forced, instance, unfit, wanted_features},
    device::Device,
    gpu::Gpu,
    memory::Memory,
    pipeline::Pipelines,
};
use crate::{
    error::{Error, Result},
    kernels::Reduction,
    plan::Caps,
};
use std::{sync::Arc, time::Duration};

/// Columns and rows of the products that are measured: those of a layer of a model of some billion weights, and of a prompt's ubatch.
const MEASURED_HIDDEN: usize = 2048;
const MEASURED_TOKENS: usize = 256;
/// No further way to multiply tiles is measured after this long.
const MEASURING_BUDGET: Duration = Duration::from_millis(700);

impl Gpu {
    /// Opens the device that the options name, or the best one.
    ///
    /// # Errors
    /// [`Error::Device`] where there is none (the message lists what there is), or it lacks what the kernels need.
    pub fn open(options: &Options) -> Result<Gpu> {
        let instance = instance(options.checked);
        let adapters = adapters(&instance);
        let adapter = &adapters[choose(&adapters, options.device.as_deref())?];
        let info = adapter.get_info();
        let limits = forced(adapter.limits(), options.limits);
        if let Some(lacks) = unfit(&limits, adapter) {
            return Err(Error::Device(format!(
                "{} cannot be used: {lacks}; the cpu backend runs everywhere",
                info.name
            )));
        }
        let caps = caps(&limits, adapter.features(), adapter, options.experimental);
        let cooperates = caps.features.coop16 || caps.features.coop8;
        let cooperation = if cooperates { wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX } else { Default::default() };
        let experimental_features = if cooperates {
            // SAFETY: the host asked for it, knowing what wgpu says: faults of wgpu's own may be met. Of these features only
            // cooperative matrices are used, on memory of workgroups that shaders of this crate have filled before.
            unsafe { wgpu::ExperimentalFeatures::enabled() }
        } else {
            wgpu::ExperimentalFeatures::disabled()
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("moeray"),
            required_features: wanted_features(adapter) | cooperation,
            experimental_features,
            required_limits: limits,
            memory_hints: Requirements::minimum().memory_hints,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| Error::Device(format!("{} cannot be opened: {e}", info.name)))?;
        Gpu::with(device, queue, caps, adapter, None, options)
    }

    /// Uses a device that the host has opened, and renders with: one device for both. [`Requirements::minimum`] says
    /// what it must have been opened with. The queue is the host's too: work of both runs in the order of submission.
    ///
    /// Of the options, `device` has no meaning here; forced limits, shaders, tuning and checks have.
    ///
    /// # Errors
    /// [`Error::Device`] where the device was opened with less than the kernels need, by name.
    pub fn adopt(
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
        callbacks: DeviceCallbacks,
        options: &Options,
    ) -> Result<Gpu> {
        let info = adapter.get_info();
        let limits = forced(device.limits(), options.limits);
        if let Some(lacks) = unfit(&limits, adapter) {
            let help = "open it with what `gpu::Requirements::minimum` says";
            return Err(Error::Device(format!("{} cannot be adopted: {lacks}; {help}", info.name)));
        }
        let caps = caps(&limits, device.features(), adapter, options.experimental);
        Gpu::with(device, queue, caps, adapter, Some(callbacks), options)
    }

    fn with(
        device: wgpu::Device,
        queue: wgpu::Queue,
        caps: Caps,
        adapter: &wgpu::Adapter,
        adopted: Option<DeviceCallbacks>,
        options: &Options,
    ) -> Result<Gpu> {
        let info = &adapter.get_info();
        let cache = options.shaders.open(&device, info);
        let name = format!("{} ({:?})", info.name, info.backend);
        let mut gpu = Gpu {
            device: Arc::new(Device::new(device, queue, caps, name, adopted)),
            pipelines: Arc::new(Pipelines::new(options.checked, cache)),
            run: options.run,
            memory: Memory { adapter: adapter.clone(), forced: options.limits.memory, own: options.limits.own_memory },
        };
        let mut probed = gpu.device.catching(|| gpu.probe())?;
        probed.flushes_halves |= options.without_halves;
        tracing::debug!("{} was looked at: {probed:?}", gpu.name());
        let caps = gpu.caps();
        gpu.device = Arc::new(gpu.device.with_caps(Caps { features: probed.applied(&caps.features), ..caps.clone() }));
        if let Some(tiles) = gpu.tune(options, info) {
            gpu.device = Arc::new(gpu.device.with_caps(Caps { tiles, ..gpu.caps().clone() }));
        }
        Ok(gpu)
    }

    /// The tiles that were measured as fastest; `None` where the host says which, or nothing is measured.
    fn tune(&self, options: &Options, info: &wgpu::AdapterInfo) -> Option<crate::kernels::Tiles> {
        if self.caps().reduction() != Reduction::Workgroup || options.run.tiles.is_some() {
            return None;
        }
        let features = &self.caps().features;
        let more = if features.coop16 || features.coop8 { ", experimental" } else { "" };
        let key =
            format!("{}, {} {}{more}", self.name(), info.driver, info.driver_info).replace(['\t', '\n', '\r'], " ");
        options.tuning.tiles(&key, || self.measure(MEASURED_HIDDEN, MEASURED_TOKENS, MEASURING_BUDGET))
    }
}
