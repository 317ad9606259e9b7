//! What a model and its sessions take where, said before anything of them is made.

use super::{
    ExpertPlacement, LoadOptions, SessionOptions,
    needs::{bytes_per_token, bytes_per_token_of_rank},
    place::{Target, stages, target},
    ranked,
};
#[cfg(feature = "gpu")]
use super::{
    fit::{device_bytes, placed},
    place::insists,
};
use crate::{
    backend::{self, Program, runner::RunnerOptions},
    error::Result,
    graph::{self, Stage},
    ir::{Graph, WeightId},
    model::{self, Definition},
};
#[cfg(feature = "gpu")]
use crate::{error::Error, graph::Split};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

/// Bytes of weights by what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightBytes {
    /// The table of token embeddings and the output matrix.
    pub embedding: u64,
    /// Attention, and what stands in its place (convolutions, linear attention).
    pub attention: u64,
    /// Feed-forward networks that every token goes through, routers, norms, and whatever else there is.
    pub dense: u64,
    /// Shared experts.
    pub shared: u64,
    /// Routed experts.
    pub experts: u64,
}

impl WeightBytes {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.embedding + self.attention + self.dense + self.shared + self.experts
    }

    fn add(&mut self, kinds: &Kinds, w: WeightId, bytes: u64) {
        *match kinds.0.get(&w) {
            Some(Kind::Embedding) => &mut self.embedding,
            Some(Kind::Attention) => &mut self.attention,
            Some(Kind::Shared) => &mut self.shared,
            Some(Kind::Expert) => &mut self.experts,
            Some(Kind::Dense) | None => &mut self.dense,
        } += bytes;
    }
}

/// What is in one memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaceBytes {
    /// Whose memory it is: the GPU's name, or `cpu`.
    pub name: String,
    /// Bytes that are free, as far as the driver or the system says.
    pub free: Option<u64>,
    /// Weights that are held there.
    pub weights: WeightBytes,
    /// Weights that the processor reads where the file's memory map has them: memory that the system takes back when it is short.
    pub mapped: WeightBytes,
    /// Keys and values.
    pub kv: u64,
    /// Recurrent states.
    pub states: u64,
    /// Activations, and on a GPU tables, parameters and buffers for what goes in and comes out.
    pub scratch: u64,
    /// Bytes of weights that a generated token reads there.
    pub read_per_token: u64,
}

impl PlaceBytes {
    /// Bytes that are held, without what is mapped.
    pub fn total(&self) -> u64 {
        self.weights.total() + self.kv + self.states + self.scratch
    }
}

/// What a model and its sessions take where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// On the GPU; `None` where none is used.
    pub gpu: Option<PlaceBytes>,
    /// By the processor: the whole model, the experts that are left to it, or nothing.
    pub cpu: PlaceBytes,
    /// Layers whose routed experts the processor computes for the GPU.
    pub cpu_layers: Vec<usize>,
    /// Layers with routed experts.
    pub expert_layers: Vec<usize>,
    /// Of each layer whose experts have slots of the GPU's memory, the layer and how many; the experts themselves are then in memory of the
    /// processor, whose weights count them, where the GPU reads them.
    pub expert_slots: Vec<(usize, usize)>,
    /// Bytes of experts that the GPU reads in memory of the processor.
    pub host_experts: u64,
    /// Where layers are split over several places: each place, and its layers from the first to the one behind the last. The others are
    /// empty then.
    pub split: Vec<(PlaceBytes, std::ops::Range<usize>)>,
}

impl MemoryPlan {
    /// Plans a file or folder with a session of these options, where `load` says that it runs. Reads headers alone; a GPU is opened, and
    /// nothing is put on it.
    ///
    /// # Errors
    /// [`crate::Error`] for what cannot be read or run, and as [`super::Model::load`] for a budget that cannot hold the model.
    pub fn of(path: &Path, load: &LoadOptions, session: &SessionOptions) -> Result<MemoryPlan> {
        let definition = model::build(&crate::file::open(path)?, &load.model)?;
        MemoryPlan::of_definition(&definition, load, session)
    }

    /// As [`MemoryPlan::of`], of one of several processes (feature `mpi`) that share the routed experts of the model: rank `rank` of `ranks`
    /// has its block of each layer's experts and all else. What a token reads there is meant for a token whose experts are spread evenly.
    ///
    /// # Errors
    /// As [`MemoryPlan::of`]; [`crate::Error::Invalid`] for a rank that is not there, a model without routed experts or with fewer of them
    /// than ranks; [`crate::Error::Unsupported`] for experts that cannot be shared or are to be elsewhere, and for several devices.
    pub fn of_rank(
        path: &Path,
        load: &LoadOptions,
        session: &SessionOptions,
        rank: usize,
        ranks: usize,
    ) -> Result<MemoryPlan> {
        let definition = model::build(&crate::file::open(path)?, &load.model)?;
        MemoryPlan::of_part(&definition, load, session, (rank, ranks))
    }

    /// As [`MemoryPlan::of_rank`], of a model that was built: the rank, and how many there are.
    ///
    /// # Errors
    /// As [`MemoryPlan::of_rank`].
    pub(crate) fn of_part(
        d: &Definition,
        load: &LoadOptions,
        session: &SessionOptions,
        (rank, ranks): (usize, usize),
    ) -> Result<MemoryPlan> {
        let split = ranked::part(&d.program, load, rank, ranks)?;
        let mut plan = MemoryPlan::of_program(&split.program, load, session)?;
        let place = plan.gpu.as_mut().unwrap_or(&mut plan.cpu);
        place.read_per_token = bytes_per_token_of_rank(&split.program, &split.regions);
        Ok(plan)
    }

    /// As [`MemoryPlan::of`], of a model that was built. Adapters are not counted.
    ///
    /// # Errors
    /// As [`MemoryPlan::of`].
    pub(crate) fn of_definition(d: &Definition, load: &LoadOptions, session: &SessionOptions) -> Result<MemoryPlan> {
        MemoryPlan::of_program(&d.program, load, session)
    }

    fn of_program(program: &Program, load: &LoadOptions, session: &SessionOptions) -> Result<MemoryPlan> {
        let kinds = Kinds::of(&program.graph);
        let options = session.runner(1);
        let expert_layers = graph::expert_weights(&program.graph).into_keys().map(|l| l as usize).collect();
        let whole = |cpu: PlaceBytes| MemoryPlan {
            gpu: None,
            cpu,
            cpu_layers: vec![],
            expert_layers,
            expert_slots: vec![],
            host_experts: 0,
            split: vec![],
        };
        match target(program, load)? {
            Target::Reference => {
                let mut cpu = PlaceBytes { name: "reference".into(), ..PlaceBytes::default() };
                let weights = program.weights.iter().enumerate();
                weights.for_each(|(i, t)| cpu.mapped.add(&kinds, WeightId(i as u32), t.byte_len() as u64));
                cpu.kv = super::needs::kv_bytes(program, session.kv) * session.ctx as u64;
                cpu.read_per_token = bytes_per_token(program);
                Ok(whole(cpu))
            }
            Target::Cpu(o) => Ok(whole(on_cpu(program, &kinds, &o, &options))),
            Target::Split(places) => {
                let mut plan = whole(PlaceBytes { name: "cpu".into(), ..PlaceBytes::default() });
                for (stage, target) in stages(program, load, places)? {
                    plan.split.push((of_stage(&stage, target, &kinds, &options)?, stage.layers));
                }
                Ok(plan)
            }
            #[cfg(feature = "gpu")]
            Target::Gpu(gpu, o) => match with_gpu(&gpu, program, &load.experts.placement, (&kinds, &o, &options)) {
                Err(Error::Device(_) | Error::Unsupported(_)) if !insists(&load.backend) => {
                    Ok(whole(on_cpu(program, &kinds, &o, &options)))
                }
                Err(e) => Err(e),
                Ok(with) => {
                    let mut plan = whole(with.cpu);
                    plan.cpu_layers = with.cpu_layers.into_iter().map(|l| l as usize).collect();
                    plan.expert_slots = with.bytes.expert_slots.iter().map(|(l, n)| (*l as usize, *n)).collect();
                    plan.host_experts = with.bytes.away_bytes();
                    plan.gpu = Some(with.place);
                    Ok(plan)
                }
            },
        }
    }
}

/// What a range of layers takes where it is.
fn of_stage(stage: &Stage, target: Target, kinds: &Kinds, options: &RunnerOptions) -> Result<PlaceBytes> {
    let program = &stage.program;
    match target {
        Target::Cpu(o) => Ok(on_cpu(program, kinds, &o, options)),
        #[cfg(feature = "gpu")]
        Target::Gpu(gpu, _) => {
            let bytes = device_bytes(&gpu, program, &program.graph, &gpu.run_options(), options)?;
            Ok(on_gpu(&gpu, &bytes, kinds, bytes_per_token(program)))
        }
        Target::Split(_) | Target::Reference => {
            Err(crate::Error::Invalid("the layers are split over GPUs and the CPU".into()))
        }
    }
}

fn on_cpu(program: &Program, kinds: &Kinds, o: &backend::cpu::Options, options: &RunnerOptions) -> PlaceBytes {
    let bytes = backend::cpu::memory_of(program, o, options);
    let mut place = PlaceBytes {
        name: "cpu".into(),
        free: crate::memory::available(),
        kv: bytes.kv,
        states: bytes.states,
        scratch: bytes.scratch,
        read_per_token: bytes_per_token(program),
        ..PlaceBytes::default()
    };
    bytes.copied.iter().for_each(|(w, n)| place.weights.add(kinds, *w, *n));
    bytes.mapped.iter().for_each(|(w, n)| place.mapped.add(kinds, *w, *n));
    place
}

/// What is on a GPU, what is left to the processor, and in which layers.
#[cfg(feature = "gpu")]
struct WithGpu {
    place: PlaceBytes,
    bytes: backend::wgpu::DeviceBytes,
    cpu: PlaceBytes,
    cpu_layers: BTreeSet<u32>,
}

#[cfg(feature = "gpu")]
fn with_gpu(
    gpu: &backend::wgpu::Gpu,
    program: &Program,
    placement: &ExpertPlacement,
    (kinds, o, options): (&Kinds, &backend::cpu::Options, &RunnerOptions),
) -> Result<WithGpu> {
    let placed = placed(gpu, program, placement)?;
    let split = graph::split_experts(&program.graph, &placed.cpu_layers)?;
    let device = Program { graph: Arc::new(split.device.clone()), weights: program.weights.clone() };
    let bytes = device_bytes(gpu, program, &split.device, &placed.run_options(gpu), options)?;
    gpu.check_weights(bytes.weights())?;
    let mut cpu = experts_on_cpu(program, &split, kinds, o, options);
    for (parts, n) in &bytes.away {
        parts.iter().take(1).for_each(|w| cpu.weights.add(kinds, *w, *n));
    }
    let place = on_gpu(gpu, &bytes, kinds, bytes_per_token(&device));
    Ok(WithGpu { place, bytes, cpu, cpu_layers: placed.cpu_layers })
}

/// What the experts that are left to the processor take there.
#[cfg(feature = "gpu")]
fn experts_on_cpu(
    program: &Program,
    split: &Split,
    kinds: &Kinds,
    o: &backend::cpu::Options,
    options: &RunnerOptions,
) -> PlaceBytes {
    let host = Program { graph: Arc::new(split.host.clone()), weights: program.weights.clone() };
    match split.regions.is_empty() {
        true => PlaceBytes { name: "cpu".into(), free: crate::memory::available(), ..PlaceBytes::default() },
        false => on_cpu(&host, kinds, o, options),
    }
}

#[cfg(feature = "gpu")]
fn on_gpu(
    gpu: &backend::wgpu::Gpu,
    bytes: &backend::wgpu::DeviceBytes,
    kinds: &Kinds,
    read_per_token: u64,
) -> PlaceBytes {
    let mut place = PlaceBytes {
        name: gpu.name().to_owned(),
        free: gpu.free_memory(),
        kv: bytes.kv,
        states: bytes.states,
        scratch: bytes.scratch,
        read_per_token,
        ..PlaceBytes::default()
    };
    (place.weights.dense, place.weights.experts) = (bytes.vectors, bytes.slots);
    for (parts, n) in &bytes.matrices {
        parts.iter().take(1).for_each(|w| place.weights.add(kinds, *w, *n));
    }
    place
}

/// What a weight is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Embedding,
    Attention,
    Dense,
    Shared,
    Expert,
}

/// Of each weight of a graph.
struct Kinds(BTreeMap<WeightId, Kind>);

impl Kinds {
    /// By their names, which are GGUF's; routed experts by what multiplies with them.
    fn of(graph: &Graph) -> Kinds {
        let experts: BTreeSet<WeightId> = graph::expert_weights(graph).into_values().flatten().collect();
        let mixers = [".attn", ".ssm", ".shortconv", ".linear_attn"];
        let kind = |(i, name): (usize, &str)| {
            let id = WeightId(i as u32);
            let kind = match () {
                () if experts.contains(&id) => Kind::Expert,
                () if name.contains("_shexp") => Kind::Shared,
                () if name.starts_with("token_embd.") || name == "output.weight" => Kind::Embedding,
                () if mixers.iter().any(|m| name.contains(m)) && !name.contains("norm") => Kind::Attention,
                () => Kind::Dense,
            };
            (id, kind)
        };
        Kinds(graph.weights.iter().map(|w| w.name.as_str()).enumerate().map(kind).collect())
    }
}
