//! `moeray serve`: a model behind HTTP.

use super::{
    args::{MetricsStyle, ServeArgs},
    failure::{Failure, Outcome, say},
    load,
};
use crate::{
    backend::runner::RunnerOptions,
    model,
    serve::{self, App, ServeOptions, engine::EngineOptions, metrics::Style},
    session::Model,
    tokenizer::DateTime,
};
use std::{fs, net::TcpListener, path::Path, sync::Arc, time::Duration};

/// Runs the verb.
pub fn serve(args: &ServeArgs, quiet: bool) -> Outcome {
    let keys = keys(args)?;
    let chat_template = args.chat_template.as_deref().map(read).transpose()?;
    // Taken before the model is loaded, which may take minutes.
    let listener = TcpListener::bind((args.host, args.port)).map_err(|e| {
        Failure::new(format!("cannot listen on {}:{}: {e}", args.host, args.port)).hint("--port N takes another port")
    })?;
    let address = listener.local_addr().map_err(|e| Failure::new(format!("cannot listen: {e}")))?;
    if !args.host.is_loopback() && keys.is_empty() {
        tracing::warn!("everybody who reaches {address} can use this server: --api-key-file FILE asks for keys");
    }
    let path = args.model.path();
    let model = load::load(path, &args.lora, &args.place, model::Options::default(), quiet)?;
    let app = Arc::new(App::new(&model, options(args, &model, keys, chat_template))?);
    if !quiet {
        let name = &app.options.name;
        say(format_args!("{name} on {}", model.describe()));
        let (n, ctx) = (args.sequences, app.engine.ctx());
        say(format_args!("listening on http://{address} for {n} texts of up to {ctx} tokens at once"));
    }
    Ok(serve::serve(app, listener, told_to_end())?)
}

fn options(args: &ServeArgs, model: &Model, keys: Vec<String>, chat_template: Option<String>) -> ServeOptions {
    let ctx = args.ctx.map_or_else(|| load::trained_context(model).min(4096), |n| n as usize);
    let sequences = args.sequences as usize;
    // A step has a row for each sequence that generates, and room for prompts.
    let ubatch = (args.context.ubatch_size as usize).max(sequences + 1).min(ctx * sequences);
    let runner = RunnerOptions { ctx, sequences, ubatch, kv: load::kv(&args.context) };
    ServeOptions {
        engine: EngineOptions { runner, queue: args.queue as usize, step_micros: 250_000 },
        name: args.name.clone().unwrap_or_else(|| name(args)),
        keys,
        chat_template,
        cors: args.cors.clone(),
        body_limit: 32 << 20,
        connections: 4096,
        read_timeout: Duration::from_secs(75),
        ping: Duration::from_secs(15),
        grace: Duration::from_secs(args.grace),
        metrics: match args.metrics_style {
            MetricsStyle::Moeray => Style::Moeray,
            MetricsStyle::LlamaCpp => Style::LlamaCpp,
        },
        now: || Some(now()),
    }
}

/// The model's name: that of its file or folder.
fn name(args: &ServeArgs) -> String {
    let Some(path) = args.model.path() else { return "demo".into() };
    let file = load::short_name(Some(path));
    file.strip_suffix(".gguf").map_or(file.clone(), str::to_owned)
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
