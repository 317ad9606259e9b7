//! Adapters, the choice among them, and the opened device.

use super::{Options, RunOptions, pipeline::Pipelines, upload};
use crate::{
    backend::{Loaded, Program, Progress},
    error::{Error, Result},
    kernels::{
        Style, Tiles,
        tiles::{self, Extras},
    },
    plan::Caps,
};
use std::{
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// A device that could run a plan.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Its number, for [`Options::device`].
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Vulkan, Metal or Dx12.
    pub backend: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `software` or `other`.
    pub device_type: &'static str,
    /// Driver and its version.
    pub driver: String,
    /// Its limits, as far as plans care.
    pub limits: Caps,
    /// Features that kernels may come to use.
    pub features: Vec<String>,
    /// Whether it is taken when none is named.
    pub chosen_by_default: bool,
    /// Why, or why not.
    pub why: String,
}

/// Locks, whatever happened to another thread that held the lock: the data are plain values.
pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

fn instance(checked: bool) -> wgpu::Instance {
    let mut d = wgpu::InstanceDescriptor::new_without_display_handle();
    d.flags = wgpu::InstanceFlags::empty();
    if checked {
        d.flags |= wgpu::InstanceFlags::VALIDATION_INDIRECT_CALL;
    }
    wgpu::Instance::new(d)
}

fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

fn kind(t: wgpu::DeviceType) -> &'static str {
    match t {
        wgpu::DeviceType::DiscreteGpu => "discrete GPU",
        wgpu::DeviceType::IntegratedGpu => "integrated GPU",
        wgpu::DeviceType::VirtualGpu => "virtual GPU",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

/// Better is larger; `None`: never without being named.
fn rank(a: &wgpu::Adapter) -> Option<(u32, u32)> {
    let info = a.get_info();
    let kind = match info.device_type {
        wgpu::DeviceType::DiscreteGpu => 4,
        wgpu::DeviceType::IntegratedGpu => 3,
        wgpu::DeviceType::VirtualGpu => 2,
        wgpu::DeviceType::Other => 1,
        wgpu::DeviceType::Cpu => return None,
    };
    // The same GPU under two systems: the one whose compiler and memory model the kernels were tuned on.
    let system = match info.backend {
        wgpu::Backend::Vulkan | wgpu::Backend::Metal => 1,
        _ => 0,
    };
    too_small(&a.limits(), a).is_none().then_some((kind, system))
}

/// What a device lacks, if anything.
fn too_small(l: &wgpu::Limits, a: &wgpu::Adapter) -> Option<String> {
    if !a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Some("no compute shaders".into());
    }
    let need = wgpu::Limits::defaults();
    let list = [
        ("storage buffers a shader", l.max_storage_buffers_per_shader_stage, need.max_storage_buffers_per_shader_stage),
        (
            "invocations a workgroup",
            l.max_compute_invocations_per_workgroup,
            need.max_compute_invocations_per_workgroup,
        ),
        ("bytes of workgroup memory", l.max_compute_workgroup_storage_size, need.max_compute_workgroup_storage_size),
        ("workgroups a dispatch", l.max_compute_workgroups_per_dimension, need.max_compute_workgroups_per_dimension),
    ];
    list.into_iter().find(|(_, has, need)| has < need).map(|(what, has, need)| format!("{has} {what} of {need} needed"))
}

fn default_index(adapters: &[wgpu::Adapter]) -> Option<usize> {
    let mut best: Option<(usize, (u32, u32))> = None;
    for (i, a) in adapters.iter().enumerate() {
        if let Some(r) = rank(a)
            && best.is_none_or(|(_, b)| r > b)
        {
            best = Some((i, r));
        }
    }
    best.map(|b| b.0)
}

/// Every device that wgpu reaches, in wgpu's order.
pub fn devices() -> Vec<DeviceInfo> {
    let adapters = adapters(&instance(false));
    let default = default_index(&adapters);
    let info = |(index, a): (usize, &wgpu::Adapter)| describe(index, a, default);
    adapters.iter().enumerate().map(info).collect()
}

fn describe(index: usize, a: &wgpu::Adapter, default: Option<usize>) -> DeviceInfo {
    let i = a.get_info();
    let limits = a.limits();
    let why = match too_small(&limits, a) {
        Some(lacks) => format!("too small: {lacks}"),
        None if i.device_type == wgpu::DeviceType::Cpu => "software: used only when named".into(),
        None if default == Some(index) => "the best GPU here".into(),
        None => "another GPU comes first".into(),
    };
    let names = a.features().iter_names().map(|f| f.0.to_string());
    let wanted = ["SHADER_F16", "SUBGROUP", "TIMESTAMP_QUERY", "IMMEDIATES", "PIPELINE_CACHE", "COOPERATIVE_MATRIX"];
    DeviceInfo {
        index,
        driver: [i.driver.as_str(), i.driver_info.as_str()].join(" ").trim().to_string(),
        backend: format!("{:?}", i.backend),
        device_type: kind(i.device_type),
        limits: caps(&limits, a, true),
        features: names.filter(|n| wanted.iter().any(|w| n.contains(w))).collect(),
        chosen_by_default: default == Some(index),
        why,
        name: i.name,
    }
}

fn caps(l: &wgpu::Limits, a: &wgpu::Adapter, experimental: bool) -> Caps {
    Caps {
        max_binding: l.max_storage_buffer_binding_size,
        max_buffer: l.max_buffer_size,
        max_workgroups: l.max_compute_workgroups_per_dimension,
        max_invocations: l.max_compute_invocations_per_workgroup,
        workgroup_bytes: l.max_compute_workgroup_storage_size,
        storage_bindings: l.max_storage_buffers_per_shader_stage,
        alignment: u64::from(l.min_storage_buffer_offset_alignment.max(l.min_uniform_buffer_offset_alignment)),
        software: a.get_info().device_type == wgpu::DeviceType::Cpu,
        extras: extras(a, experimental),
        tiles: tiles::default_for(a.get_info().vendor, &extras(a, false)),
    }
}

fn extras(a: &wgpu::Adapter, experimental: bool) -> Extras {
    use wgpu::CooperativeScalarType::{F16, F32};
    let (f, i) = (a.features(), a.get_info());
    let subgroups = f.contains(wgpu::Features::SUBGROUP);
    let alike = subgroups && i.subgroup_min_size == i.subgroup_max_size;
    let cooperates = experimental && f.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
    let list = if cooperates { a.cooperative_matrix_properties() } else { vec![] };
    let has = |side: u32, ab, cr| {
        let sizes = |p: &wgpu::CooperativeMatrixProperties| [p.m_size, p.n_size, p.k_size] == [side; 3];
        list.iter().any(|p| sizes(p) && p.ab_type == ab && p.cr_type == cr)
    };
    Extras {
        f16: f.contains(wgpu::Features::SHADER_F16),
        subgroups,
        subgroup_size: alike.then_some(i.subgroup_min_size),
        coop16: subgroups && has(16, F16, F32),
        coop8: subgroups && has(8, F32, F32),
    }
}

fn choose(adapters: &[wgpu::Adapter], wanted: Option<&str>) -> Result<usize> {
    let list = || {
        let line = |(i, a): (usize, &wgpu::Adapter)| {
            let info = a.get_info();
            format!("{i}: {} ({}, {:?})", info.name, kind(info.device_type), info.backend)
        };
        let lines: Vec<String> = adapters.iter().enumerate().map(line).collect();
        if lines.is_empty() { "there are none".to_string() } else { format!("there are: {}", lines.join("; ")) }
    };
    let Some(wanted) = wanted else {
        return default_index(adapters).ok_or_else(|| {
            let help = "name a software device with --device, or use the cpu backend";
            Error::Device(format!("no GPU that can compute; of devices, {}; {help}", list()))
        });
    };
    let by_name = || {
        let name = |a: &wgpu::Adapter| a.get_info().name.to_lowercase();
        adapters.iter().position(|a| name(a).contains(&wanted.to_lowercase()))
    };
    let by_number = wanted.parse::<usize>().ok().filter(|i| *i < adapters.len());
    by_number
        .or_else(by_name)
        .filter(|_| !wanted.is_empty())
        .ok_or_else(|| Error::Device(format!("no device is called \"{wanted}\"; {}", list())))
}

/// What the device said outside of error scopes.
#[derive(Debug, Default)]
pub(super) struct Errors {
    lost: Mutex<Option<String>>,
    other: Mutex<Option<String>>,
}

impl Errors {
    /// The error that came in, if any. The loss of a device stays.
    pub fn take(&self) -> Result<()> {
        if let Some(why) = lock(&self.lost).as_ref() {
            return Err(Error::Device(format!("lost: {why}; open it again and load the model anew")));
        }
        lock(&self.other).take().map_or(Ok(()), |e| Err(Error::Device(e)))
    }
}

/// What is used where a device has it; no kernel of the base depends on it.
const WANTED: wgpu::Features = wgpu::Features::PIPELINE_CACHE
    .union(wgpu::Features::TIMESTAMP_QUERY)
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// Sizes of the products that are measured: those of a layer of a model of some billion weights, and of a chunk of a prompt.
const MEASURED_HIDDEN: usize = 2048;
const MEASURED_TOKENS: usize = 256;
/// No further way is begun after this long.
const MEASURING_BUDGET: Duration = Duration::from_millis(700);

/// How long a mapping may take after the device is done: the callback may be in the hands of another thread.
const MAPPING: Duration = Duration::from_secs(10);

/// The answer to a mapping.
type Mapped = Result<(), wgpu::BufferAsyncError>;

/// Where a mapping's answer arrives: made once, used for one mapping at a time.
#[derive(Clone, Default)]
pub(super) struct Signal(Arc<(Mutex<Option<Mapped>>, Condvar)>);

/// An opened device. Cheap to clone; pipelines are shared by everything that is loaded through it.
#[derive(Clone)]
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) caps: Arc<Caps>,
    pub(super) errors: Arc<Errors>,
    pub(super) pipelines: Arc<Pipelines>,
    name: Arc<str>,
    run: RunOptions,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

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
        let mut limits = adapter.limits();
        if options.limits.webgpu_defaults {
            limits = wgpu::Limits::defaults().or_worse_values_from(&limits);
        }
        if let Some(most) = options.limits.max_binding {
            limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(most);
        }
        if let Some(lacks) = too_small(&limits, adapter) {
            return Err(Error::Device(format!("{} is too small: {lacks}; use the cpu backend", info.name)));
        }
        let caps = caps(&limits, adapter, options.experimental);
        let cooperates = caps.extras.coop16 || caps.extras.coop8;
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
            required_features: (adapter.features() & WANTED) | cooperation,
            experimental_features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| Error::Device(format!("{} cannot be opened: {e}", info.name)))?;
        let errors = Arc::new(Errors::default());
        let (lost, other) = (errors.clone(), errors.clone());
        device.set_device_lost_callback(move |reason, what| {
            *lock(&lost.lost) = Some(format!("{reason:?} {what}"));
        });
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            lock(&other.other).get_or_insert_with(|| e.to_string());
        }));
        let cache = options.shaders.open(&device, &info);
        let mut gpu = Gpu {
            caps: Arc::new(caps),
            pipelines: Arc::new(Pipelines::new(options.checked, cache)),
            name: format!("{} ({:?})", info.name, info.backend).into(),
            run: options.run,
            device,
            queue,
            errors,
        };
        gpu.tune(options, &info);
        Ok(gpu)
    }

    /// Takes the tiles that were measured as fastest, unless the host says which.
    fn tune(&mut self, options: &Options, info: &wgpu::AdapterInfo) {
        if self.caps.style() != Style::Lanes || options.run.tiles.is_some() {
            return;
        }
        let extras = &self.caps.extras;
        let more = if extras.coop16 || extras.coop8 { ", experimental" } else { "" };
        let key = format!("{}, {} {}{more}", self.name, info.driver, info.driver_info).replace(['\t', '\n', '\r'], " ");
        if let Some(tiles) =
            options.tuning.tiles(&key, || self.measure(MEASURED_HIDDEN, MEASURED_TOKENS, MEASURING_BUDGET))
        {
            self.caps = Arc::new(Caps { tiles, ..(*self.caps).clone() });
        }
    }

    /// Puts a program's weights on the device.
    ///
    /// # Errors
    /// [`Error::Device`] where memory is short or something does not fit the device's limits; [`Error::Unsupported`] for
    /// sizes that no kernel takes.
    pub fn load(&self, program: Program, progress: &mut dyn FnMut(Progress)) -> Result<Box<dyn Loaded>> {
        self.load_with(program, self.run, progress)
    }

    /// As [`Gpu::load`], run in another way than the device was opened for.
    ///
    /// # Errors
    /// As [`Gpu::load`].
    pub fn load_with(
        &self,
        program: Program,
        run: RunOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Box<dyn Loaded>> {
        if let Some(row) = run.tiles.map(Tiles::row).filter(|r| !(r.runs)(&self.caps.extras)) {
            let (name, device) = (row.name, self.name());
            let lacks =
                format!("{name} tiles on {device}, which lacks what they need (or experimental features are not on)");
            return Err(Error::Unsupported(format!("{lacks}; f32 ones run everywhere")));
        }
        Ok(Box::new(upload::Model::new(self.clone(), &program, run, progress)?))
    }

    /// Name and system of the device.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As [`Gpu::name`], for messages.
    pub fn describe(&self) -> String {
        format!("wgpu on {}", self.name)
    }

    /// What it can do, forced limits applied.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Distinct pipelines made so far.
    pub fn pipeline_count(&self) -> usize {
        self.pipelines.len()
    }

    /// Destroys the device, as a driver that resets does: everything loaded through it gives [`Error::Device`] from then
    /// on. For tests of hosts that must survive that.
    pub fn destroy(&self) {
        self.device.destroy();
        // The callback comes when the device is polled.
        if let Err(e) = self.device.poll(wgpu::PollType::Poll) {
            tracing::debug!("poll after destroy: {e}");
        }
        lock(&self.errors.lost).get_or_insert_with(|| "destroyed".into());
    }

    /// Makes a buffer.
    pub(super) fn buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        if bytes > self.caps.max_buffer {
            let most = self.caps.max_buffer;
            return Err(Error::Device(format!(
                "{label} takes {bytes} bytes, a buffer of {} at most {most}",
                self.name
            )));
        }
        let size = bytes.max(16).next_multiple_of(4);
        let made = self.scoped(|d| {
            d.create_buffer(&wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false })
        });
        made.map_err(|e| {
            Error::Device(format!("{label} ({bytes} bytes): {e}; a smaller model, context or chunk helps"))
        })
    }

    /// Runs something that creates, and gives what the device has against it.
    pub(super) fn scoped<T>(&self, f: impl FnOnce(&wgpu::Device) -> T) -> Result<T, String> {
        let filters = [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
        let [a, b, c] = filters.map(|f| self.device.push_error_scope(f));
        let made = f(&self.device);
        // Scopes are popped in reverse order.
        let errors = [c, b, a].map(|s| pollster::block_on(s.pop()));
        match errors.into_iter().flatten().next() {
            None => Ok(made),
            Some(e) => Err(e.to_string()),
        }
    }

    /// Waits for what was submitted.
    pub(super) fn wait(&self, submission: Option<wgpu::SubmissionIndex>) -> Result<()> {
        let wait = wgpu::PollType::Wait { submission_index: submission, timeout: None };
        let polled = self.device.poll(wait);
        self.errors.take()?;
        polled.map(drop).map_err(|e| Error::Device(format!("waiting for {}: {e}", self.name)))
    }

    /// Waits for what was submitted and maps a part of a buffer for reading. After an error the buffer is not mapped.
    pub(super) fn map_read(
        &self,
        buffer: &wgpu::Buffer,
        range: Range<u64>,
        signal: &Signal,
        submission: Option<wgpu::SubmissionIndex>,
    ) -> Result<wgpu::BufferView> {
        self.map_later(buffer, range.clone(), signal);
        self.mapped(buffer, range, signal, submission).inspect_err(|_| buffer.unmap())
    }

    /// Asks for a part of a buffer to be mapped for reading once all that was submitted with it is done.
    pub(super) fn map_later(&self, buffer: &wgpu::Buffer, range: Range<u64>, signal: &Signal) {
        *lock(&signal.0.0) = None;
        let answer = signal.clone();
        buffer.map_async(wgpu::MapMode::Read, range, move |r| {
            *lock(&answer.0.0) = Some(r);
            answer.0.1.notify_all();
        });
    }

    /// Waits for a submission and for a mapping that was asked for.
    pub(super) fn mapped(
        &self,
        buffer: &wgpu::Buffer,
        range: Range<u64>,
        signal: &Signal,
        submission: Option<wgpu::SubmissionIndex>,
    ) -> Result<wgpu::BufferView> {
        let failed = |e: String| Error::Device(format!("reading results of {}: {e}", self.name));
        self.wait(submission)?;
        // A poll on another thread may have taken the callback and not yet run it.
        let since = Instant::now();
        let mut answer = lock(&signal.0.0);
        while answer.is_none() {
            if since.elapsed() > MAPPING {
                return Err(failed("the device did not answer".into()));
            }
            let waited = signal.0.1.wait_timeout(answer, Duration::from_millis(5));
            answer = waited.unwrap_or_else(PoisonError::into_inner).0;
            if answer.is_none() {
                drop(answer);
                self.device.poll(wgpu::PollType::Poll).map_err(|e| failed(e.to_string()))?;
                self.errors.take()?;
                answer = lock(&signal.0.0);
            }
        }
        answer.take().unwrap_or(Ok(())).map_err(|e| failed(e.to_string()))?;
        buffer.get_mapped_range(range).map_err(|e| failed(e.to_string()))
    }
}
