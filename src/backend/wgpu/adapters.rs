//! Adapters: which devices there are, the choice among them, what one must be opened with, and what the plan may use of it.

use super::{ForcedLimits, memory};
use crate::{
    error::{Error, Result},
    kernels::tiles::{self, DeviceFeatures},
    plan::Caps,
};

/// A device that could run a plan.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// Number, for [`super::Options::device`].
    pub index: usize,
    /// Name that the driver gives.
    pub name: String,
    /// System: Vulkan, Metal or Dx12.
    pub backend: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `software` or `other`.
    pub device_type: &'static str,
    /// Driver with its version.
    pub driver: String,
    /// Bytes of memory that it has left, as far as its driver says: of its own for a card, of the processor's for what shares that.
    pub free_memory: Option<u64>,
    /// Limits, as far as plans care.
    pub limits: Caps,
    /// Features that kernels may come to use.
    pub features: Vec<String>,
    /// Whether this device is taken when none is named.
    pub chosen_by_default: bool,
    /// Why it is taken, or is not.
    pub why: String,
}

/// What is used where a device has it; no kernel of the base depends on any of these.
const OPTIONAL: wgpu::Features = wgpu::Features::PIPELINE_CACHE
    .union(wgpu::Features::TIMESTAMP_QUERY)
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::MAPPABLE_PRIMARY_BUFFERS)
    .union(wgpu::Features::SUBGROUP);

/// What a device must be opened with so that it can be adopted, see [`Gpu::adopt`](super::Gpu::adopt). wgpu grants what is asked
/// for and no more, so a host has to know this before it opens its device.
#[derive(Clone, Debug)]
pub struct Requirements {
    /// Features that the device must have: none.
    pub features: wgpu::Features,
    /// Features that make it faster, each by itself: ask for those that the adapter has.
    pub optional_features: wgpu::Features,
    /// Limits that the device must have at least: those of every WebGPU device.
    pub limits: wgpu::Limits,
    /// How memory should be handed out. With [`wgpu::MemoryHints::Performance`] weights of 150 MB lie in blocks of 256 MiB: a
    /// model takes up to 1.7 times its size.
    pub memory_hints: wgpu::MemoryHints,
}

impl Requirements {
    /// The features that must and that should be asked for on this adapter.
    pub fn best_features(&self, adapter: &wgpu::Adapter) -> wgpu::Features {
        self.features | (self.optional_features & adapter.features())
    }

    /// The limits that should be asked for on this adapter: buffers and bindings as large as it has them, so that large weights
    /// need not be cut.
    pub fn best_limits(&self, adapter: &wgpu::Adapter) -> wgpu::Limits {
        let has = adapter.limits();
        wgpu::Limits {
            max_buffer_size: has.max_buffer_size.max(self.limits.max_buffer_size),
            max_storage_buffer_binding_size: has
                .max_storage_buffer_binding_size
                .max(self.limits.max_storage_buffer_binding_size),
            ..self.limits.clone()
        }
    }
}

impl Requirements {
    /// What a device must, and what it should, be opened with.
    pub fn minimum() -> Requirements {
        Requirements {
            features: wgpu::Features::empty(),
            optional_features: OPTIONAL,
            limits: wgpu::Limits::defaults(),
            memory_hints: wgpu::MemoryHints::Manual {
                suballocated_device_memory_block_size: MEMORY_BLOCK..MEMORY_BLOCK,
            },
        }
    }
}

/// Bytes of the blocks that small buffers share: the least that wgpu's allocator takes. What is larger gets memory of its own, to the
/// byte. A block is wasted by almost half where buffers are a little larger than half of it, so blocks are small: what is wasted
/// then is little beside the weights, which are large.
pub(super) const MEMORY_BLOCK: u64 = 4 << 20;

/// Percent of the memory that the system grants, beyond which wgpu makes no buffers. Windows would move them to the memory of the
/// host, without a word and ten times slower.
const MOST_MEMORY_PERCENT: u8 = 95;

pub(super) fn instance(checked: bool) -> wgpu::Instance {
    let mut d = wgpu::InstanceDescriptor::new_without_display_handle();
    d.flags = wgpu::InstanceFlags::empty();
    d.memory_budget_thresholds.for_resource_creation = Some(MOST_MEMORY_PERCENT);
    if checked {
        d.flags |= wgpu::InstanceFlags::VALIDATION_INDIRECT_CALL;
    }
    wgpu::Instance::new(d)
}

pub(super) fn adapters(instance: &wgpu::Instance) -> Vec<wgpu::Adapter> {
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
    unfit(&a.limits(), a).is_none().then_some((kind, system))
}

/// Why shaders cannot be compiled well enough: FXC, which Direct3D 12 falls back to where there is no DXC, knows shader model 5.1
/// only, has no subgroups and refuses barriers behind branches that it takes for divergent.
fn compiled_by_fxc(backend: wgpu::Backend, features: wgpu::Features) -> Option<String> {
    let old = backend == wgpu::Backend::Dx12 && !features.contains(wgpu::Features::SUBGROUP);
    let help = "put dxcompiler.dll (DXC 1.8.2502 or later) beside the program or use the Vulkan device of the same GPU";
    old.then(|| format!("its shaders would be compiled by FXC (shader model 5.1), which refuses some of ours: {help}"))
}

/// Why a device cannot be used, if it cannot.
pub(super) fn unfit(l: &wgpu::Limits, a: &wgpu::Adapter) -> Option<String> {
    if let Some(why) = compiled_by_fxc(a.get_info().backend, a.features()) {
        return Some(why);
    }
    if !a.get_downlevel_capabilities().flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS) {
        return Some("no compute shaders".into());
    }
    let need = Requirements::minimum().limits;
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

impl DeviceInfo {
    /// Every device that wgpu reaches, in wgpu's order.
    pub fn all() -> Vec<DeviceInfo> {
        let adapters = adapters(&instance(false));
        let default = default_index(&adapters);
        let info = |(index, a): (usize, &wgpu::Adapter)| describe(index, a, default);
        adapters.iter().enumerate().map(info).collect()
    }

    /// The device that [`super::Gpu::open`] would take: the one that is named, by number or by part of its name, or the best one.
    ///
    /// # Errors
    /// [`Error::Device`] with a list of what there is.
    pub fn find(wanted: Option<&str>) -> Result<DeviceInfo> {
        let adapters = adapters(&instance(false));
        let index = choose(&adapters, wanted)?;
        Ok(describe(index, &adapters[index], default_index(&adapters)))
    }
}

fn describe(index: usize, a: &wgpu::Adapter, default: Option<usize>) -> DeviceInfo {
    let i = a.get_info();
    let limits = a.limits();
    let why = match unfit(&limits, a) {
        Some(lacks) => format!("cannot be used: {lacks}"),
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
        free_memory: memory::free_of(a),
        limits: caps(&limits, a.features(), a, true),
        features: names.filter(|n| wanted.iter().any(|w| n.contains(w))).collect(),
        chosen_by_default: default == Some(index),
        why,
        name: i.name,
    }
}

/// What the plan may use of a device that was opened with these limits and features. Experimental features count where `experimental`
/// allows them.
pub(super) fn caps(l: &wgpu::Limits, features: wgpu::Features, a: &wgpu::Adapter, experimental: bool) -> Caps {
    Caps {
        max_binding: l.max_storage_buffer_binding_size,
        max_buffer: l.max_buffer_size,
        max_workgroups: l.max_compute_workgroups_per_dimension,
        max_invocations: l.max_compute_invocations_per_workgroup,
        workgroup_bytes: l.max_compute_workgroup_storage_size,
        storage_bindings: l.max_storage_buffers_per_shader_stage,
        alignment: u64::from(l.min_storage_buffer_offset_alignment.max(l.min_uniform_buffer_offset_alignment)),
        software: a.get_info().device_type == wgpu::DeviceType::Cpu,
        features: device_features(features, a, experimental),
        tiles: tiles::default_for(a.get_info().vendor, &device_features(features, a, false)),
    }
}

fn device_features(f: wgpu::Features, a: &wgpu::Adapter, experimental: bool) -> DeviceFeatures {
    use wgpu::CooperativeScalarType::{F16, F32};
    let i = a.get_info();
    let subgroups = f.contains(wgpu::Features::SUBGROUP);
    let alike = subgroups && i.subgroup_min_size == i.subgroup_max_size;
    let cooperates = experimental && f.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX);
    let list = if cooperates { a.cooperative_matrix_properties() } else { vec![] };
    let has = |side: u32, ab, cr| {
        let sizes = |p: &wgpu::CooperativeMatrixProperties| [p.m_size, p.n_size, p.k_size] == [side; 3];
        list.iter().any(|p| sizes(p) && p.ab_type == ab && p.cr_type == cr)
    };
    DeviceFeatures {
        f16: f.contains(wgpu::Features::SHADER_F16),
        subgroups,
        subgroup_size: alike.then_some(i.subgroup_min_size),
        coop16: subgroups && has(16, F16, F32),
        coop8: subgroups && has(8, F32, F32),
        // Found out when the device is opened.
        flushes_halves: false,
    }
}

/// These limits, but none above the forced ones.
pub(super) fn forced(limits: wgpu::Limits, by: ForcedLimits) -> wgpu::Limits {
    let mut limits = limits;
    if by.webgpu_defaults {
        limits = wgpu::Limits::defaults().or_worse_values_from(&limits);
    }
    if let Some(most) = by.max_binding {
        limits.max_storage_buffer_binding_size = limits.max_storage_buffer_binding_size.min(most);
    }
    limits
}

/// The features that a device of our own is opened with.
pub(super) fn wanted_features(a: &wgpu::Adapter) -> wgpu::Features {
    a.features() & OPTIONAL
}

/// The number of the adapter that is named, by number or by part of its name, or of the best one.
///
/// # Errors
/// [`Error::Device`] with a list of what there is.
pub(super) fn choose(adapters: &[wgpu::Adapter], wanted: Option<&str>) -> Result<usize> {
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
            let help = "name a software device, or use the CPU";
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fxc_is_refused_by_name() {
        let all = wgpu::Features::all();
        let why = compiled_by_fxc(wgpu::Backend::Dx12, wgpu::Features::empty()).unwrap();
        assert!(why.contains("FXC") && why.contains("dxcompiler.dll"), "{why}");
        assert_eq!(compiled_by_fxc(wgpu::Backend::Dx12, all), None);
        assert_eq!(compiled_by_fxc(wgpu::Backend::Vulkan, wgpu::Features::empty()), None);
    }
}
