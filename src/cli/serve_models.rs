//! Which models `moeray serve` has, and how they are loaded.

use super::{
    args::ServeArgs,
    failure::{Failure, Outcome},
    load, names,
};
use crate::{
    backend::wgpu,
    file,
    hub::Places,
    memory, model,
    serve::{App, Fleet, FleetOptions, ServeOptions, Source, metrics::Metrics},
    session::{BackendChoice, Model},
};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// A model that a person wants served.
pub struct Wanted {
    /// Its name for clients.
    pub name: String,
    /// Where it lies; `None` for the demo model.
    pub path: Option<PathBuf>,
    /// Bytes of its files; 0 where nobody has looked.
    pub bytes: u64,
}

/// The models that the arguments name.
pub fn wanted(args: &ServeArgs) -> Outcome<Vec<Wanted>> {
    let named: Vec<&PathBuf> = args.positional.iter().chain(&args.model).collect();
    if named.is_empty() && args.models_dir.is_none() {
        return Ok(vec![Wanted { name: args.name.clone().unwrap_or_else(|| "demo".into()), path: None, bytes: 0 }]);
    }
    let alone = named.len() == 1 && args.models_dir.is_none();
    let mut all = vec![];
    for path in named {
        let short = load::short_name(Some(path));
        let name = short.strip_suffix(".gguf").unwrap_or(&short).to_owned();
        // Of several models none is loaded now: what is wrong with one is said all the same.
        let bytes = if alone { 0 } else { load::open(Some(path))?.file_bytes() };
        let name = args.name.clone().filter(|_| alone).unwrap_or(name);
        all.push(Wanted { name, path: Some(path.clone()), bytes });
    }
    if let Some(folder) = &args.models_dir {
        if !folder.is_dir() {
            return Err(Failure::new(format!("--models-dir: there is no folder {}", folder.display())));
        }
        for found in Places::in_folder(folder) {
            if !all.iter().any(|w| w.name == found.name) {
                all.push(Wanted { name: found.name, path: Some(found.path), bytes: found.bytes });
            }
        }
        if all.is_empty() {
            return Err(Failure::new(format!("there is no model in {}", folder.display()))
                .hint("models are .gguf files and folders with config.json and *.safetensors"));
        }
    }
    if !args.lora.lora.is_empty() && !alone {
        return Err(Failure::new("--lora changes one model, and there are several").hint("serve that model alone"));
    }
    if args.name.is_some() && !alone {
        return Err(Failure::new("--name is the name of one model, and there are several").hint("leave it out"));
    }
    Ok(all)
}

/// What the texts of a server take beside the weights.
pub fn room(args: &ServeArgs) -> load::Room {
    load::Room::new(args.ctx, &args.context).times(args.sequences as usize)
}

/// What serves several models.
pub fn fleet(args: &ServeArgs, options: ServeOptions, wanted: &[Wanted]) -> Outcome<Fleet> {
    let gib = |n: f64| (n * f64::from(1 << 30)) as u64;
    let build = model::Options { trace_router: true };
    let place = load::load_options(args.place.backend, &args.place.device, room(args), build)?;
    let limits = FleetOptions {
        memory: args.models_memory.map(gib).or_else(|| free_memory(&place.backend)),
        idle: args.models_idle.map(Duration::from_secs),
    };
    // The memory for earlier requests' texts is one for all models.
    let mut options = options;
    options.engine.prefix_bytes /= wanted.len().max(1) as u64;
    let mut sources = vec![];
    for w in wanted {
        let Some(path) = &w.path else { continue };
        let path = names::resolved(path)?;
        let (args, options, name, how) = (args.clone(), options.clone(), w.name.clone(), place.clone());
        let load = move |metrics: Arc<Metrics>| {
            let model = Model::from_checkpoint(&file::open(&path)?, &how, &mut |_| {})?;
            App::counting(&model, of_model(&args, &options, &name, &model), metrics)
        };
        sources.push(Source { name: w.name.clone(), bytes: w.bytes, load: Arc::new(load) });
    }
    Ok(Fleet::new(options, limits, sources)?)
}

/// Bytes that the device has left that models go to; `None` where its driver says nothing: then they are loaded until it refuses one.
fn free_memory(backend: &BackendChoice) -> Option<u64> {
    let named = match backend {
        BackendChoice::Cpu(_) | BackendChoice::Reference => return memory::available(),
        BackendChoice::Gpu(gpu) => return gpu.free_memory(),
        BackendChoice::Wgpu(options) | BackendChoice::Prefer(options, _) => options.device.as_deref(),
        // A model on several devices fits or not when it is loaded.
        BackendChoice::Split(_) => return None,
        BackendChoice::Auto => None,
    };
    match wgpu::DeviceInfo::find(named) {
        Ok(device) => device.free_memory,
        // Without a GPU models run on the processor; where one is missing that was named, loading says so.
        Err(_) => memory::available(),
    }
}

/// What is the same for all models, made for one of them.
pub fn of_model(args: &ServeArgs, options: &ServeOptions, name: &str, model: &Model) -> ServeOptions {
    let mut options = ServeOptions { name: name.into(), ..options.clone() };
    let runner = &mut options.engine.runner;
    runner.ctx = args.ctx.map_or_else(|| load::trained_context(model).min(4096), |n| n as usize);
    // A step has a row for each sequence that generates, and room for prompts.
    runner.ubatch = runner.ubatch.max(runner.sequences + 1).min(runner.ctx * runner.sequences);
    options
}
