//! From the arguments to a loaded model, with a progress bar.

use super::{
    args::{
        BackendName, ContextArgs, DeviceArgs, KvName, LoraArgs, PlaceArgs, SampleArgs, SlotCount, SlotPolicy, StopArgs,
        Vram,
    },
    failure::{Failure, Outcome},
    known, launched, names,
    place::{choice, cpu_options},
    ranks,
};
use crate::{
    backend::{Progress, ranks::World},
    file::{self, Bytes, Checkpoint},
    graph::ExpertSlots,
    model::{self, AdapterFile, Definition},
    quant::KvType,
    routing::Policy,
    sampler::{Sampler, SamplerOptions},
    session::{ExpertPlacement, Experts, LoadOptions, MemoryBudget, Model, Session, SessionOptions, SlotOptions},
    tokenizer::{EncodeOptions, Tokenizer},
};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

#[cfg(feature = "demo-model")]
static DEMO: Option<&[u8]> = Some(crate::session::DEMO_MODEL);
#[cfg(not(feature = "demo-model"))]
static DEMO: Option<&[u8]> = None;

/// What the demo model is called where a file name is expected.
pub const DEMO_NAME: &str = "demo/bard-q4_k_m.gguf (built in)";

/// Opens the named model, or the demo model.
pub fn open(path: Option<&PathBuf>) -> Outcome<Checkpoint> {
    match (path, DEMO) {
        (Some(p), _) => {
            let p = &names::resolved(p)?;
            known::path(p)?;
            let checkpoint = file::open(p)?;
            known::model(p, &checkpoint)?;
            Ok(checkpoint)
        }
        (None, Some(bytes)) => Ok(file::open_bytes(Bytes::from_static(bytes))?),
        (None, None) => {
            Err(Failure::new("no model named").hint("this program was built without the demo model: name one"))
        }
    }
}

/// The name to show for a model.
pub fn name(path: Option<&PathBuf>) -> String {
    path.map_or_else(|| DEMO_NAME.into(), |p| p.display().to_string())
}

/// The name to show for a model where there is little room: that of its file or folder alone.
pub fn short_name(path: Option<&PathBuf>) -> String {
    let file = path.and_then(|p| p.file_name());
    file.map_or_else(|| name(path), |f| f.to_string_lossy().into_owned())
}

/// Loads the named model to where the arguments say, with the adapters that they name.
pub fn load(
    path: Option<&PathBuf>,
    lora: &LoraArgs,
    place: &PlaceArgs,
    room: Room,
    build: model::Options,
    quiet: bool,
) -> Outcome<Model> {
    let world = ranks::world(place.device.ranks)?;
    let checkpoint = ranks::agreed(world.as_ref(), open(path))?;
    load_shared(&checkpoint, lora, (place.backend, &place.device), room, build, quiet, world)
}

/// What sessions will take beside the weights, for `--vram`.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    session: SessionOptions,
    sessions: usize,
}

/// Positions that are kept free for where no `--ctx` says how many.
const USUAL_CTX: u32 = 4096;

impl Room {
    /// Room for a session of these sizes.
    pub fn new(ctx: Option<u32>, args: &ContextArgs) -> Room {
        let ctx = ctx.unwrap_or(USUAL_CTX) as usize;
        let session = SessionOptions { ctx, ubatch: (args.ubatch_size as usize).min(ctx), kv: kv(args) };
        Room { session, sessions: 1 }
    }

    /// Room for several such sessions.
    pub fn times(self, sessions: usize) -> Room {
        Room { sessions, ..self }
    }
}

/// The adapters that `--lora FILE[=SCALE]` names.
pub fn adapters(lora: &LoraArgs) -> Outcome<Vec<AdapterFile>> {
    let one = |word: &String| {
        // A file may have the sign in its name.
        let (path, scale) = match word.rsplit_once('=') {
            Some((path, scale)) if !Path::new(word).exists() => {
                (path, scale.parse::<f32>().ok().filter(|s| s.is_finite()))
            }
            _ => (word.as_str(), Some(1.0)),
        };
        let scale = scale.ok_or_else(|| Failure::new(format!("--lora {word}: the scale behind = is no number")))?;
        let path = PathBuf::from(path);
        if !path.exists() {
            return Err(Failure::new(format!("--lora: there is no {}", path.display())));
        }
        Ok(AdapterFile { path, scale })
    };
    lora.lora.iter().map(one).collect()
}

/// Loads an open checkpoint.
pub fn load_checkpoint(
    checkpoint: &Checkpoint,
    lora: &LoraArgs,
    (backend, device): (Option<BackendName>, &DeviceArgs),
    room: Room,
    build: model::Options,
    quiet: bool,
) -> Outcome<Model> {
    load_shared(checkpoint, lora, (backend, device), room, build, quiet, ranks::world(device.ranks)?)
}

/// Loads an open checkpoint, whose experts the processes of `world` share, where there are several: only the one that leads comes back
/// with a model.
fn load_shared(
    checkpoint: &Checkpoint,
    lora: &LoraArgs,
    (backend, device): (Option<BackendName>, &DeviceArgs),
    room: Room,
    build: model::Options,
    quiet: bool,
    world: Option<Arc<World>>,
) -> Outcome<Model> {
    let mut bar = Bar::new(quiet || launched::follower().is_some());
    let options = adapters(lora).and_then(|adapters| {
        Ok(LoadOptions { adapters, world: world.clone(), ..load_options(backend, device, room, build)? })
    });
    let options = ranks::agreed(world.as_ref(), options)?;
    let model = Model::from_checkpoint(checkpoint, &options, &mut |p| bar.show(p))?;
    tracing::info!("loaded on {}", model.describe());
    match world.filter(|w| w.rank() > 0) {
        None => Ok(model),
        Some(world) => {
            drop(bar);
            model.follow(&world)?;
            Err(Failure::Followed)
        }
    }
}

/// How a model is to be loaded to where the arguments say.
pub fn load_options(
    backend: Option<BackendName>,
    device: &DeviceArgs,
    room: Room,
    model: model::Options,
) -> Outcome<LoadOptions> {
    let experts = Experts { placement: placement(device, room), cpu: cpu_options(device) };
    Ok(LoadOptions { backend: choice(backend, device)?, model, experts, ..LoadOptions::default() })
}

/// The experts that a person leaves to the processor.
fn placement(device: &DeviceArgs, room: Room) -> ExpertPlacement {
    let Room { session, sessions } = room;
    let budget = |vram| MemoryBudget { vram, session, sessions };
    let fit = |vram| ExpertPlacement::Fit(budget(vram));
    let args = &device.experts;
    if let Some(options) = slot_options(device, room) {
        return ExpertPlacement::Slots(options);
    }
    match (args.vram, args.n_cpu_moe, args.gpu_layers) {
        (Some(Vram::Auto), ..) => fit(None),
        (Some(Vram::Bytes(n)), ..) => fit(Some(n)),
        (None, Some(n), _) => ExpertPlacement::FirstLayers(n as usize),
        (None, None, Some(n)) => ExpertPlacement::LastOnGpu(n as usize),
        (None, None, None) if args.cpu_moe => ExpertPlacement::Cpu,
        (None, None, None) if args.override_tensor.is_empty() => ExpertPlacement::Gpu,
        (None, None, None) => ExpertPlacement::Rules(args.override_tensor.clone()),
    }
}

/// The slots that a person wants for experts.
fn slot_options(device: &DeviceArgs, room: Room) -> Option<SlotOptions> {
    let count = device.slots.expert_slots?;
    let budget = |vram| Some(MemoryBudget { vram, session: room.session, sessions: room.sessions });
    let (slots, without) = match count {
        SlotCount::Of(slots) => (Some(slots), None),
        SlotCount::Auto => (None, budget(None)),
    };
    let budget = match device.experts.vram {
        Some(Vram::Bytes(n)) => budget(Some(n)),
        Some(Vram::Auto) => budget(None),
        None => without,
    };
    let policy = match device.slots.slot_policy {
        Some(SlotPolicy::Lru) | None => Policy::Lru,
        Some(SlotPolicy::LfuAged) => Policy::LfuAged,
        Some(SlotPolicy::PinnedLru) => Policy::PinnedLru,
    };
    Some(SlotOptions { slots, policy, budget })
}

/// The slots that a person wants for the experts of a model, where it is a number.
pub fn expert_slots(device: &DeviceArgs, d: &Definition) -> Outcome<Option<ExpertSlots>> {
    let Some(options) = slot_options(device, Room { session: SessionOptions::default(), sessions: 1 }) else {
        return Ok(None);
    };
    let (number, eviction) = (options.number(&d.program.graph)?, options.eviction()?);
    Ok(number.map(|slots| ExpertSlots { slots, eviction }))
}

/// How keys and values are stored: as the person says, else in half precision.
pub fn kv(args: &ContextArgs) -> KvType {
    kv_or(args, KvType::F16)
}

/// How keys and values are stored: as the person says, else as `default`.
pub fn kv_or(args: &ContextArgs, default: KvType) -> KvType {
    match args.kv {
        Some(KvName::F16) => KvType::F16,
        Some(KvName::F32) => KvType::F32,
        Some(KvName::Q8_0) => KvType::Q8_0,
        None => default,
    }
}

/// A session of `ctx` positions.
pub fn session(model: &Model, ctx: usize, args: &ContextArgs) -> Outcome<Session> {
    let trained = model.hyper().context;
    if trained > 0 && ctx > trained {
        tracing::warn!(
            "a context of {ctx} tokens: the model was made for {trained}, and what it writes beyond is guesswork"
        );
    }
    let options = SessionOptions { ctx, ubatch: (args.ubatch_size as usize).min(ctx), kv: kv(args) };
    Ok(Session::new(model, options)?)
}

/// The context that the model was made for, or 4096 where it does not say.
pub fn trained_context(model: &Model) -> usize {
    match model.hyper().context {
        0 => 4096,
        n => n,
    }
}

/// The model's tokenizer, or why there is no text without it.
pub fn tokenizer(model: &Model) -> Outcome<&Tokenizer> {
    Ok(model.require_tokenizer()?)
}

/// Token ids of a prompt; `raw` adds nothing and takes special tokens as plain text.
pub fn encode(tokenizer: &Tokenizer, text: &str, raw: bool) -> Outcome<Vec<u32>> {
    Ok(tokenizer.encode(text, EncodeOptions { add_bos: !raw, parse_special: !raw })?)
}

/// The sampler's options; without `--seed`, one from the clock.
pub fn sampler(args: &SampleArgs) -> Outcome<SamplerOptions> {
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos() as u64 % 1_000_000_000);
    let options = SamplerOptions {
        temperature: args.temp,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repeat_penalty: args.repeat_penalty,
        repeat_last_n: args.repeat_last_n,
        seed: args.seed.unwrap_or_else(clock),
    };
    check_sampler(options)?;
    Ok(options)
}

/// Whether a sampler takes the options; the option that is at fault, where it does not.
pub fn check_sampler(options: SamplerOptions) -> Outcome {
    let Err(e) = Sampler::new(options) else { return Ok(()) };
    // One value at a time in otherwise good options shows which it is.
    let good = SamplerOptions::default();
    let each = [
        ("--temp", SamplerOptions { temperature: options.temperature, ..good }),
        ("--top-k", SamplerOptions { top_k: options.top_k, ..good }),
        ("--top-p", SamplerOptions { top_p: options.top_p, ..good }),
        ("--min-p", SamplerOptions { min_p: options.min_p, ..good }),
        ("--repeat-penalty", SamplerOptions { repeat_penalty: options.repeat_penalty, ..good }),
    ];
    let at_fault = each.into_iter().find(|(_, o)| Sampler::new(*o).is_err());
    Err(Failure::new(at_fault.map_or(e.to_string(), |(option, _)| format!("{option}: {e}"))))
}

/// The stop strings, unescaped where that was asked for.
pub fn stops(args: &StopArgs) -> Outcome<Vec<String>> {
    if args.stop.iter().any(String::is_empty) {
        return Err(Failure::new("--stop: a stop string is empty"));
    }
    Ok(args.stop.iter().map(|s| if args.escape { unescape(s) } else { s.clone() }).collect())
}

/// Replaces `\n`, `\t`, `\r`, `\"`, `\'` and `\\`; other backslashes stay.
pub fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some(q @ ('"' | '\'' | '\\')) => out.push(q),
            other => {
                out.push('\\');
                out.extend(other);
            }
        }
    }
    out
}

/// A progress bar on stderr, only where a person sees it.
pub struct Bar {
    bar: ProgressBar,
    phase: &'static str,
}

impl Bar {
    /// A bar that shows nothing yet.
    pub fn new(quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) };
        Bar { bar, phase: "" }
    }

    /// Shows a report of the library.
    pub fn show(&mut self, p: Progress) {
        if p.phase != self.phase {
            self.phase = p.phase;
            let style = ProgressStyle::with_template("{msg:>12} [{bar:30}] {percent:>3} % {eta:>4}");
            self.bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            self.bar.set_message(p.phase);
            self.bar.reset();
        }
        self.bar.set_length(p.total);
        self.bar.set_position(p.done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_person() {
        assert_eq!(unescape(r#"a\nb\\n\"\x\"#), "a\nb\\n\"\\x\\");
    }
}
