//! Pipelines, made once for each variant and shared by everything on a device.

use super::device::{Device, lock};
use crate::{
    error::{Error, Result},
    kernels::{self, Access, Reflection, Variant},
    threads,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

/// A compiled kernel.
pub(super) struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
    pub reflection: Reflection,
    /// Whether wgpu checks its accesses and bounds its loops.
    checked: bool,
    /// Whether it was dispatched.
    ran: AtomicBool,
}

impl Pipeline {
    /// Notes that it is dispatched.
    pub fn runs(&self) {
        self.ran.store(true, Ordering::Relaxed);
    }
}

/// What [`super::Gpu::edit_shaders`] is given.
type Edit = Box<dyn Fn(&str, &mut String) + Send + Sync>;

/// The pipelines of a device, by [`Variant::label`].
pub(super) struct Pipelines {
    made: Mutex<HashMap<String, Arc<Pipeline>>>,
    checked: bool,
    cache: Option<wgpu::PipelineCache>,
    /// The kernels of training, by their texts.
    training: Mutex<HashMap<String, wgpu::ComputePipeline>>,
    /// For tests: a change of the texts of kernels.
    pub edit: OnceLock<Edit>,
}

impl Pipelines {
    pub fn new(checked: bool, cache: Option<wgpu::PipelineCache>) -> Self {
        Pipelines { made: Mutex::default(), checked, cache, training: Mutex::default(), edit: OnceLock::new() }
    }

    pub fn len(&self) -> usize {
        lock(&self.made).len()
    }

    /// The labels of those that were dispatched with all checks on.
    pub fn ran_checked(&self) -> Vec<String> {
        let made = lock(&self.made);
        let ran = |p: &Pipeline| p.checked && p.ran.load(Ordering::Relaxed);
        made.iter().filter(|(_, p)| ran(p)).map(|(label, _)| label.clone()).collect()
    }

    /// The pipeline of a variant.
    pub fn get(&self, device: &Device, variant: &Variant) -> Result<Arc<Pipeline>> {
        let label = variant.label();
        if let Some(p) = lock(&self.made).get(&label) {
            return Ok(p.clone());
        }
        let p = Arc::new(self.make(device, variant, &label)?);
        Ok(lock(&self.made).entry(label).or_insert(p).clone())
    }

    /// Makes the pipelines of these variants that are not there yet, on several threads: drivers compile here. Errors come
    /// again when the pipeline is asked for.
    pub fn prepare<'a>(&self, device: &Device, variants: impl Iterator<Item = &'a Variant>) {
        let mut missing: HashMap<String, &Variant> = HashMap::new();
        {
            let made = lock(&self.made);
            missing.extend(variants.map(|v| (v.label(), v)).filter(|(label, _)| !made.contains_key(label)));
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
        let compile = |(): &mut (), v: &Variant| {
            if let Err(e) = self.get(device, v) {
                tracing::debug!("{e}");
            }
            Ok(())
        };
        if let Err(e) = threads::for_each(threads, missing.into_values(), || (), compile) {
            tracing::debug!("{e}");
        }
    }

    /// The texts of the kernels of training so far.
    pub fn training_texts(&self) -> Vec<String> {
        lock(&self.training).keys().cloned().collect()
    }

    /// The pipeline of a kernel of training: of two uniform buffers, then of buffers that are read, then of those that are
    /// written, whether the text names them or not. It runs with bounds checks; loops are not bounded unless all checks are on.
    pub fn training(
        &self,
        device: &Device,
        name: &str,
        text: &str,
        reads: usize,
        writes: usize,
    ) -> Result<wgpu::ComputePipeline> {
        let mut text = text.to_string();
        if let Some(edit) = self.edit.get() {
            edit(name, &mut text);
        }
        if let Some(p) = lock(&self.training).get(&text) {
            return Ok(p.clone());
        }
        let uniform = std::iter::repeat_n(Access::Uniform, 2);
        let storage = std::iter::repeat_n(Access::Read, reads).chain(std::iter::repeat_n(Access::ReadWrite, writes));
        let all = uniform.chain(storage).enumerate();
        let entries: Vec<_> = all.map(|(i, access)| binding_entry(i as u32, access)).collect();
        let made = device.scoped(|raw| {
            let source = wgpu::ShaderSource::Wgsl(text.as_str().into());
            let descriptor = wgpu::ShaderModuleDescriptor { label: Some(name), source };
            let module = if self.checked || self.edit.get().is_some() {
                raw.create_shader_module(descriptor)
            } else {
                let checks =
                    wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
                // SAFETY: every loop of these kernels counts up to a size, or down to 0, or along a list that only goes forward: none
                // is without end. All else stays checked.
                unsafe { raw.create_shader_module_trusted(descriptor, checks) }
            };
            let group = wgpu::BindGroupLayoutDescriptor { label: Some(name), entries: &entries };
            let group = raw.create_bind_group_layout(&group);
            let layout = raw.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(name),
                bind_group_layouts: &[Some(&group)],
                immediate_size: 0,
            });
            raw.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: self.cache.as_ref(),
            })
        });
        let made = made.map_err(|e| Error::Device(format!("the training kernel of {name}: {e}")))?;
        Ok(lock(&self.training).entry(text).or_insert(made).clone())
    }

    fn make(&self, device: &Device, variant: &Variant, label: &str) -> Result<Pipeline> {
        let mut linked = kernels::link(variant)?;
        if let Some(edit) = self.edit.get() {
            edit(variant.kernel.name, &mut linked.text);
        }
        let reflection = kernels::reflect(&linked)?;
        let size: u32 = reflection.workgroup.iter().product();
        if reflection.workgroup_bytes > device.caps.workgroup_bytes || size > device.caps.max_invocations {
            let (bytes, most) = (reflection.workgroup_bytes, device.caps.workgroup_bytes);
            return Err(Error::Device(format!(
                "kernel {label} wants {size} invocations and {bytes} bytes of workgroup memory; {} has {} and {most}",
                device.name, device.caps.max_invocations,
            )));
        }
        let checked = self.checked || self.edit.get().is_some() || !kernels::is_proven(label);
        let made = device.scoped(|raw| {
            let source = wgpu::ShaderSource::Wgsl(linked.text.as_str().into());
            let descriptor = wgpu::ShaderModuleDescriptor { label: Some(label), source };
            let module = if checked {
                raw.create_shader_module(descriptor)
            } else {
                // SAFETY: the shader is this crate's own, and the tests ran this very variant with the checks on, with
                // poisoned buffers and canaries behind them: it neither indexes out of bounds nor loops for ever.
                unsafe { raw.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked()) }
            };
            let entries: Vec<wgpu::BindGroupLayoutEntry> = reflection.bindings.iter().map(entry).collect();
            let layout = raw
                .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(label), entries: &entries });
            let pipeline_layout = raw.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(label),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            let pipeline = raw.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(label),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    zero_initialize_workgroup_memory: checked,
                    ..Default::default()
                },
                cache: self.cache.as_ref(),
            });
            (pipeline, layout)
        });
        // What naga refuses it refuses here too, and then the fragment's line is known.
        let explained = |e| kernels::diagnose(&linked).unwrap_or(Error::Device(format!("kernel {label}: {e}")));
        let (pipeline, layout) = made.map_err(explained)?;
        tracing::debug!("{label} is compiled {}", if checked { "with checks" } else { "without checks" });
        Ok(Pipeline { pipeline, layout, reflection, checked, ran: AtomicBool::new(false) })
    }
}

fn entry(b: &kernels::Binding) -> wgpu::BindGroupLayoutEntry {
    binding_entry(b.index, b.access)
}

fn binding_entry(binding: u32, access: Access) -> wgpu::BindGroupLayoutEntry {
    let ty = match access {
        Access::Uniform => wgpu::BufferBindingType::Uniform,
        Access::Read => wgpu::BufferBindingType::Storage { read_only: true },
        Access::ReadWrite => wgpu::BufferBindingType::Storage { read_only: false },
    };
    wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}
