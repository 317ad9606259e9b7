//! From a wish where a model runs to weights in place.

use super::{BackendChoice, ExpertPlacement, LoadOptions};
use crate::{
    backend::{self, Loaded, OnProgress, Program, stages::Placed},
    error::{Error, Result},
    graph::{self, Stage},
};

/// Where a model runs, the GPU opened.
pub(super) enum Target {
    Reference,
    Cpu(backend::cpu::Options),
    /// Ranges of layers, each with its share.
    Split(Vec<(Target, u32)>),
    /// With the options for the experts that are left to the processor.
    #[cfg(feature = "gpu")]
    Gpu(backend::wgpu::Gpu, backend::cpu::Options),
}

/// The place that the options name; without a choice the best GPU, and the CPU where there is none.
///
/// # Errors
/// As [`super::Model::load`].
pub(super) fn target(program: &Program, options: &LoadOptions) -> Result<Target> {
    // What a person has said wrongly is wrong on every device.
    options.experts.placement.wanted(program)?;
    choose(&options.backend, options)
}

#[cfg_attr(not(feature = "gpu"), expect(clippy::only_used_in_recursion, reason = "what it is needed for is on a GPU"))]
fn choose(choice: &BackendChoice, options: &LoadOptions) -> Result<Target> {
    Ok(match choice {
        BackendChoice::Split(places) => {
            let one = |(place, share): &(BackendChoice, u32)| match place {
                BackendChoice::Split(_) | BackendChoice::Reference => {
                    Err(Error::Invalid("the layers are split over GPUs and the CPU, and over nothing else".into()))
                }
                place => Ok((choose(place, options)?, *share)),
            };
            Target::Split(places.iter().map(one).collect::<Result<_>>()?)
        }
        BackendChoice::Reference => Target::Reference,
        BackendChoice::Cpu(o) => Target::Cpu(*o),
        #[cfg(feature = "gpu")]
        BackendChoice::Gpu(gpu) => Target::Gpu(gpu.clone(), options.experts.cpu),
        #[cfg(feature = "gpu")]
        BackendChoice::Wgpu(o) => Target::Gpu(backend::wgpu::Gpu::open(o)?, options.experts.cpu),
        #[cfg(not(feature = "gpu"))]
        BackendChoice::Auto => Target::Cpu(backend::cpu::Options::default()),
        #[cfg(feature = "gpu")]
        BackendChoice::Auto => best(&backend::wgpu::Options::default(), &backend::cpu::Options::default())?,
        #[cfg(feature = "gpu")]
        BackendChoice::Prefer(gpu, cpu) => best(gpu, cpu)?,
    })
}

/// Whether the choice is a GPU, and nothing else will do.
#[cfg(feature = "gpu")]
pub(super) fn insists(choice: &BackendChoice) -> bool {
    match choice {
        BackendChoice::Gpu(_) | BackendChoice::Wgpu(_) => true,
        BackendChoice::Split(places) => places.iter().any(|(place, _)| insists(place)),
        BackendChoice::Auto | BackendChoice::Prefer(..) | BackendChoice::Cpu(_) | BackendChoice::Reference => false,
    }
}

#[cfg(feature = "gpu")]
fn best(gpu: &backend::wgpu::Options, cpu: &backend::cpu::Options) -> Result<Target> {
    match backend::wgpu::Gpu::open(gpu) {
        Ok(gpu) => Ok(Target::Gpu(gpu, *cpu)),
        Err(e @ (Error::Device(_) | Error::Unsupported(_))) => {
            tracing::info!("using the CPU: {e}");
            Ok(Target::Cpu(*cpu))
        }
        Err(e) => Err(e),
    }
}

/// Loads a program to where the options say; where nobody insists on a GPU, to the CPU if a GPU refuses it.
pub(super) fn load(program: &Program, options: &LoadOptions, progress: OnProgress<'_>) -> Result<Box<dyn Loaded>> {
    match target(program, options)? {
        Target::Reference => backend::reference::load(program.clone()),
        Target::Cpu(o) => backend::cpu::load(program.clone(), &o, progress),
        Target::Split(places) => split(program, options, places, progress),
        #[cfg(feature = "gpu")]
        Target::Gpu(gpu, cpu) => {
            let loaded = on_gpu(&gpu, program, options, &cpu, progress);
            match loaded {
                Err(e @ (Error::Device(_) | Error::Unsupported(_))) if !insists(&options.backend) => {
                    tracing::info!("using the CPU: {e}");
                    backend::cpu::load(program.clone(), &cpu, progress)
                }
                loaded => loaded,
            }
        }
    }
}

/// The stages of a program on these places.
///
/// # Errors
/// [`Error::Invalid`] for shares that do not fit the layers; [`Error::Unsupported`] for experts that are elsewhere, too.
pub(super) fn stages(
    program: &Program,
    options: &LoadOptions,
    places: Vec<(Target, u32)>,
) -> Result<Vec<(Stage, Target)>> {
    if !matches!(options.experts.placement, ExpertPlacement::Gpu) {
        return Err(Error::Unsupported(
            "layers on several devices, and experts left to the processor or in slots: experts stay with their layers then".into(),
        ));
    }
    let shares: Vec<u32> = places.iter().map(|p| p.1).collect();
    let ranges = graph::ranges_of_layers(graph::layers(&program.graph), &shares)?;
    let stages = graph::stages(program, &ranges)?;
    Ok(stages.into_iter().zip(places.into_iter().map(|p| p.0)).collect())
}

fn split(
    program: &Program,
    options: &LoadOptions,
    places: Vec<(Target, u32)>,
    progress: OnProgress<'_>,
) -> Result<Box<dyn Loaded>> {
    let mut placed = vec![];
    for (stage, target) in stages(program, options, places)? {
        let own = stage.program.clone();
        let loaded = match target {
            Target::Cpu(o) => backend::cpu::load(own, &o, progress)?,
            #[cfg(feature = "gpu")]
            Target::Gpu(gpu, _) => gpu.load(own, progress)?,
            Target::Split(_) | Target::Reference => {
                return Err(Error::Invalid("the layers are split over GPUs and the CPU".into()));
            }
        };
        placed.push(Placed { stage, loaded });
    }
    Ok(backend::stages::staged(program.clone(), placed))
}

#[cfg(feature = "gpu")]
fn on_gpu(
    gpu: &backend::wgpu::Gpu,
    program: &Program,
    options: &LoadOptions,
    cpu: &backend::cpu::Options,
    progress: OnProgress<'_>,
) -> Result<Box<dyn Loaded>> {
    let placed = super::fit::placed(gpu, program, &options.experts.placement)?;
    let (layers, run) = (&placed.cpu_layers, placed.run_options(gpu));
    if let Some(slots) = placed.slots {
        tracing::info!("experts have {} slots a layer", slots.slots);
    }
    if layers.is_empty() {
        return gpu.load_with(program.clone(), run, progress);
    }
    let split = graph::split_experts(&program.graph, layers)?;
    tracing::info!("experts of {} layers are computed by the processor", layers.len());
    let host = backend::cpu::load_experts(&split, &program.weights, cpu, progress)?;
    gpu.load_split(program.clone(), &split, host, run, progress)
}
