//! Where a model runs, and how large a session is.

use crate::{cli::units, routing::Slots, session::TensorRule};
use clap::{Args, ValueEnum};

/// The names of the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The best real GPU; the CPU where there is none
    Auto,
    /// A GPU
    Wgpu,
    /// This processor, fast
    Cpu,
    /// This processor, slow and obvious: what the others are tested against
    Reference,
}

/// Storage of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvName {
    /// Half precision
    F16,
    /// Single precision
    F32,
    /// 8 bits and a scale for every 32: half of f16's memory; on the CPU faster in long contexts
    #[value(name = "q8_0")]
    Q8_0,
}

/// How the cpu backend rounds activations that meet quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ActivationsName {
    /// One 8-bit number with a scale for every 32, as fine as llama.cpp's or finer: errors of some 1e-3
    Int8,
    /// Two 8-bit numbers: within 1e-7 of f32, at half the speed of prompts
    Int16,
}

/// The instructions of the cpu backend's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SimdName {
    /// Plain code
    Scalar,
    /// aarch64 with NEON and dot products
    Neon,
    /// x86-64 with AVX2, FMA and F16C
    Avx2,
    /// These and AVX-VNNI
    AvxVnni,
    /// x86-64 with AVX-512 VNNI
    Avx512,
}

/// How a GPU multiplies many rows at a time: tiles in workgroup memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TilesName {
    /// Single precision
    F32,
    /// Half precision, sums in single precision
    F16,
    /// 8-bit integers with a scale for every 32: errors of some 1e-3, as on the cpu
    Int8,
    /// Cooperative matrices of 16 by 16 halves: needs --experimental
    Coop16,
    /// Cooperative matrices of 8 by 8 in single precision: needs --experimental
    Coop8,
}

/// Who on a GPU adds up the products of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReductionName {
    /// Several invocations of a workgroup, as suits GPUs
    Workgroup,
    /// One invocation, for several rows, as suits processors that emulate GPUs
    Invocation,
}

/// Where to run, and how there.
#[derive(Args, Clone, Debug)]
pub struct DeviceArgs {
    /// Number or part of the name of a GPU, as `moeray devices` lists them; several, or cpu among them, separated by commas, to split the
    /// layers of a model
    #[arg(long, value_name = "N|NAME", help_heading = "Where to run")]
    pub device: Option<String>,
    /// Shares of the layers of several devices, such as 1,3 [default: equal ones]; also -ts
    #[arg(
        long,
        value_name = "N,N,...",
        help_heading = "Where to run",
        hide_short_help = true,
        value_delimiter = ',',
        requires = "device"
    )]
    pub split: Vec<u32>,
    /// Processes that share the routed experts of the model, each with a part of those of every layer: as many as mpirun has started, which
    /// this only checks; inspect --memory says what each of them would hold
    #[arg(long, value_name = "N", help_heading = "Where to run", hide_short_help = true, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub ranks: Option<u32>,
    /// Threads of the cpu backend, which this chooses [default: one for each core]
    #[arg(short, long, value_name = "N", help_heading = "Where to run", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// How the cpu backend, which this chooses, rounds activations that meet quantised weights [default: int8]
    #[arg(long, value_name = "TYPE", help_heading = CPU)]
    pub activations: Option<ActivationsName>,
    /// Instructions of the cpu backend, which this chooses, for comparison [default: the fastest that there are]
    #[arg(long, value_name = "LEVEL", help_heading = CPU, hide_short_help = true)]
    pub simd: Option<SimdName>,
    /// Let the cpu backend, which this chooses, read weights from the file's memory map, without a packed copy: slower, but loads at once and
    /// lets several programs share the memory
    #[arg(long, help_heading = CPU, hide_short_help = true)]
    pub no_repack: bool,
    /// Memory for the weights of the cpu backend, which this chooses (8GB, 7.5GiB): what does not fit is read from the file as it is
    /// needed, experts first [default: what is free]
    #[arg(long, value_name = "BYTES", help_heading = CPU, value_parser = units::parsed)]
    pub ram: Option<u64>,
    /// How the GPU multiplies many rows at a time [default: what was fastest when the device was first used]
    #[arg(long, value_name = "TYPE", help_heading = GPU, hide_short_help = true)]
    pub tiles: Option<TilesName>,
    /// Who on the GPU adds up the products of a row [default: what suits the device]
    #[arg(long, value_name = "WHO", help_heading = GPU, hide_short_help = true)]
    pub reduction: Option<ReductionName>,
    /// Use experimental features of wgpu, where the device has them: cooperative matrices
    #[arg(long, help_heading = GPU, hide_short_help = true)]
    pub experimental: bool,
    /// Run shaders with bounds checks, bounded loops and checked indirect dispatches: slower, for finding faults
    #[arg(long, help_heading = GPU, hide_short_help = true)]
    pub checked: bool,
    /// Experts on the processor.
    #[command(flatten)]
    pub experts: ExpertArgs,
    /// Slots of the GPU.
    #[command(flatten)]
    pub slots: SlotArgs,
}

/// Which routed experts the processor computes while the GPU does the rest.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Experts on the processor")]
#[group(multiple = false)]
pub struct ExpertArgs {
    /// Memory of the GPU to use: what does not fit of the routed experts is left to the processor, layer by layer (6GB, 5.5GiB, or auto
    /// for what is free)
    #[arg(long, value_name = "BYTES|auto")]
    pub vram: Option<Vram>,
    /// Leave the routed experts of all layers to the processor; also -cmoe
    #[arg(long)]
    pub cpu_moe: bool,
    /// Leave the routed experts of the first N layers to the processor; also -ncmoe
    #[arg(long, value_name = "N")]
    pub n_cpu_moe: Option<u32>,
    /// Routed experts of the last N layers stay on the GPU, the others are left to the processor; also -ngl
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub gpu_layers: Option<u32>,
    /// Leave the weights whose names a regular expression finds to the processor or the GPU (may be given several times, the last one that
    /// finds a name counts); also -ot
    #[arg(long, value_name = "PATTERN=cpu|gpu", hide_short_help = true)]
    pub override_tensor: Vec<TensorRule>,
}

impl ExpertArgs {
    /// The option that was given.
    pub fn word(&self) -> Option<&'static str> {
        let named = [
            self.vram.map(|_| "--vram"),
            self.cpu_moe.then_some("--cpu-moe"),
            self.n_cpu_moe.map(|_| "--n-cpu-moe"),
            self.gpu_layers.map(|_| "--gpu-layers"),
            (!self.override_tensor.is_empty()).then_some("--override-tensor"),
        ];
        named.into_iter().flatten().next()
    }
}

/// Slots of the GPU's memory for routed experts.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Experts in slots of the GPU")]
pub struct SlotArgs {
    /// Keep all routed experts in memory of the host that the GPU reads, and those of each layer that were used last in so many slots of the
    /// GPU's memory (8, 25% of a layer's experts, or auto: as many as --vram has room for, or as is free)
    #[arg(long, value_name = "N|P%|auto", conflicts_with_all = ["cpu_moe", "n_cpu_moe", "gpu_layers", "override_tensor"])]
    pub expert_slots: Option<SlotCount>,
    /// Whose slot an expert takes that is in none [default: lru]
    #[arg(long, value_name = "NAME", requires = "expert_slots", hide_short_help = true)]
    pub slot_policy: Option<SlotPolicy>,
}

/// Whose slot a missing expert takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SlotPolicy {
    /// That of the expert whose last use is longest ago
    Lru,
    /// That of the expert that was used least; counts are halved every 256 tokens
    LfuAged,
    /// That of the expert whose last use is longest ago, but none of the half of the slots with the experts that were used most
    #[value(name = "pinned+lru")]
    PinnedLru,
}

/// A number of slots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SlotCount {
    /// What fits.
    Auto,
    /// So many, or a part of a layer's experts.
    Of(Slots),
}

impl std::str::FromStr for SlotCount {
    type Err = String;

    fn from_str(text: &str) -> Result<SlotCount, String> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(SlotCount::Auto);
        }
        text.parse().map(SlotCount::Of).map_err(|e: crate::Error| e.to_string())
    }
}

/// Memory of a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vram {
    /// What its driver says is free.
    Auto,
    /// So many bytes.
    Bytes(u64),
}

impl std::str::FromStr for Vram {
    type Err = String;

    fn from_str(text: &str) -> Result<Vram, String> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Vram::Auto);
        }
        units::parsed(text).map(Vram::Bytes)
    }
}

/// Headings of what few people need: they stand last.
const CPU: &str = "Tuning of the CPU";
const GPU: &str = "Tuning of the GPU";

impl DeviceArgs {
    /// The devices that were named.
    pub fn devices(&self) -> Vec<&str> {
        // A comma within brackets belongs to a name: `llvmpipe (LLVM 19.1.7, 256 bits)`.
        let mut depth = 0;
        let between = |c: char| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ',' && depth <= 0
        };
        self.device.as_deref().map_or(vec![], |names| names.split(between).map(str::trim).collect())
    }

    /// An option that is about a GPU, where one was given.
    pub fn of_gpu(&self) -> Option<String> {
        let named = [
            self.device.as_ref().filter(|_| self.devices().len() == 1).map(|d| format!("--device {d}")),
            self.checked.then(|| "--checked".into()),
            self.tiles.map(|_| "--tiles".into()),
            self.reduction.map(|_| "--reduction".into()),
            self.slots.expert_slots.map(|_| "--expert-slots".into()),
            self.experimental.then(|| "--experimental".into()),
        ];
        named.into_iter().flatten().next()
    }

    /// An option that is about the CPU, where one was given.
    pub fn of_cpu(&self) -> Option<&'static str> {
        let named = [
            self.threads.map(|_| "--threads"),
            self.activations.map(|_| "--activations"),
            self.simd.map(|_| "--simd"),
            self.no_repack.then_some("--no-repack"),
            self.ram.map(|_| "--ram"),
        ];
        named.into_iter().flatten().next()
    }

    /// The options that are about this backend, of several that run one after the other.
    pub fn only_of(&self, name: BackendName) -> DeviceArgs {
        let mut own = self.clone();
        if !matches!(name, BackendName::Cpu | BackendName::Auto) {
            (own.threads, own.activations, own.simd, own.no_repack, own.ram) = (None, None, None, false, None);
        }
        if !matches!(name, BackendName::Wgpu | BackendName::Auto) {
            (own.experts, own.slots) = (ExpertArgs::default(), SlotArgs::default());
            own = DeviceArgs {
                device: None,
                split: vec![],
                checked: false,
                tiles: None,
                experimental: false,
                reduction: None,
                ..own
            };
        }
        own
    }
}

/// Where to run, for verbs that run in one place.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Where to run")]
pub struct PlaceArgs {
    /// Backend [default: auto]
    #[arg(long, value_name = "NAME")]
    pub backend: Option<BackendName>,
    /// Device and threads.
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Sizes of a session.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Context")]
pub struct ContextArgs {
    /// Most tokens of a prompt that are computed at once (a micro-batch); also -ub
    #[arg(long, hide_short_help = true, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub ubatch_size: u32,
    /// How keys and values are stored [default: f16]
    #[arg(long, value_name = "TYPE")]
    pub kv: Option<KvName>,
}
