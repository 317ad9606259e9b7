//! `moeray serve`: a model behind HTTP.

use super::{
    args::{MetricsStyle, PoolingName, ServeArgs},
    failure::{Failure, Outcome, say},
    launched, load, ranks, serve_models, units,
};
use crate::{
    backend::runner::RunnerOptions,
    model,
    serve::{self, App, Fleet, ServeOptions, engine::EngineOptions, metrics::Style},
    session::Pooling,
    tokenizer::DateTime,
};
use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Runs the verb.
pub fn serve(args: &ServeArgs, quiet: bool) -> Outcome {
    let keys = keys(args)?;
    let chat_template = args.chat_template.as_deref().map(read).transpose()?;
    let wanted = serve_models::wanted(args)?;
    let load_one = |path: Option<&PathBuf>| {
        let (build, room) = (model::Options { trace_router: true }, serve_models::room(args));
        load::load(path, &args.lora, &args.place, room, build, quiet)
    };
    if launched::follower().is_some() {
        // Rank 0 answers the clients.
        return match &wanted[..] {
            [one] if args.models_dir.is_none() => load_one(one.path.as_ref()).map(drop),
            _ => ranks::alone("a server of several models"),
        };
    }
    // Taken before the model is loaded, which may take minutes.
    let listener = TcpListener::bind((args.host, args.port)).map_err(|e| {
        Failure::new(format!("cannot listen on {}:{}: {e}", args.host, args.port)).hint("--port N takes another port")
    })?;
    let address = listener.local_addr().map_err(|e| Failure::new(format!("cannot listen: {e}")))?;
    if !args.host.is_loopback() && keys.is_empty() {
        tracing::warn!("everybody who reaches {address} can use this server: --api-key-file FILE asks for keys");
    }
    if let Some(folder) = args.slot_save_path.as_ref().filter(|f| !f.is_dir()) {
        return Err(Failure::new(format!("--slot-save-path: there is no folder {}", folder.display())));
    }
    let options = options(args, keys, chat_template);
    let fleet = match &wanted[..] {
        // One that was named is there from the beginning; those of a folder come when they are asked for.
        [one] if args.models_dir.is_none() => {
            let model = load_one(one.path.as_ref())?;
            let app = Arc::new(App::new(&model, serve_models::of_model(args, &options, &one.name, &model))?);
            if !quiet {
                say(format_args!("{} on {}", one.name, model.describe()));
                let (n, ctx) = (args.sequences, app.engine.ctx());
                say(format_args!("listening on http://{address} for {n} texts of up to {ctx} tokens at once"));
            }
            Fleet::of(app)
        }
        several => {
            ranks::alone("a server of several models")?;
            let fleet = serve_models::fleet(args, options, several)?;
            if !quiet {
                say(format_args!("listening on http://{address}; these are loaded when they are asked for:"));
                several.iter().for_each(|w| say(format_args!("  {} ({})", w.name, units::bytes(w.bytes))));
            }
            fleet
        }
    };
    Ok(serve::serve_models(Arc::new(fleet), listener, told_to_end())?)
}

/// What is the same for all models.
fn options(args: &ServeArgs, keys: Vec<String>, chat_template: Option<String>) -> ServeOptions {
    let runner = RunnerOptions {
        ctx: args.ctx.map_or(4096, |n| n as usize),
        sequences: args.sequences as usize,
        ubatch: args.context.ubatch_size as usize,
        kv: load::kv(&args.context),
    };
    ServeOptions {
        engine: EngineOptions {
            runner,
            queue: args.queue as usize,
            step_micros: 250_000,
            prefix_bytes: prefix_bytes(args),
        },
        name: String::new(),
        keys,
        chat_template,
        cors: args.cors.clone(),
        body_limit: 32 << 20,
        connections: 4096,
        read_timeout: Duration::from_secs(75),
        ping: Duration::from_secs(15),
        grace: Duration::from_secs(args.grace),
        pooling: args.pooling.map(|p| match p {
            PoolingName::Last => Pooling::Last,
            PoolingName::Mean => Pooling::Mean,
            PoolingName::Cls => Pooling::First,
        }),
        slot_folder: args.slot_save_path.clone(),
        metrics: match args.metrics_style {
            MetricsStyle::Moeray => Style::Moeray,
            MetricsStyle::LlamaCpp => Style::LlamaCpp,
        },
        now: || Some(now()),
    }
}

/// Bytes for texts that left their sequences: what the person says, else a quarter of the free memory, at most 8 GiB.
fn prefix_bytes(args: &ServeArgs) -> u64 {
    let quarter = crate::memory::available().map_or(1 << 30, |n| n / 4);
    args.cache_ram.map_or(quarter.min(8 << 30), |mib| u64::from(mib) << 20)
}

fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).map_err(|e| Failure::io("read", path, &e))
}

/// All keys, of the command line and of the file.
fn keys(args: &ServeArgs) -> Outcome<Vec<String>> {
    let mut keys = args.api_key.clone();
    if let Some(path) = &args.api_key_file {
        let text = read(path)?;
        keys.extend(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned));
        if keys.is_empty() {
            return Err(Failure::new(format!("{} holds no key", path.display())).hint("one key a line"));
        }
    }
    if keys.iter().any(|k| k.trim().is_empty()) {
        return Err(Failure::new("--api-key: the key is empty"));
    }
    Ok(keys)
}

/// Done at the first Ctrl-C or SIGTERM; the second ends the program.
async fn told_to_end() {
    signal().await;
    tokio::spawn(async {
        signal().await;
        std::process::exit(130);
    });
}

#[cfg(unix)]
async fn signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut term) = signal(SignalKind::terminate()) else { return interrupt().await };
    tokio::select! {
        () = interrupt() => {}
        _ = term.recv() => {}
    }
}

#[cfg(not(unix))]
async fn signal() {
    interrupt().await;
}

async fn interrupt() {
    if let Err(e) = tokio::signal::ctrl_c().await {
        tracing::warn!("no Ctrl-C handler: {e}");
        std::future::pending::<()>().await;
    }
}

fn now() -> DateTime {
    use chrono::{Datelike, Timelike};
    let t = chrono::Local::now();
    DateTime { year: t.year(), month: t.month(), day: t.day(), hour: t.hour(), minute: t.minute(), second: t.second() }
}
