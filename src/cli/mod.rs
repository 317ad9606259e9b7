//! The `moeray` program: a person's words into calls of the library. One file a verb; `args` holds what may be said.
//!
//! Results go to standard output, everything about them (progress, speed, warnings) to standard error.
//!
//! Deliberately absent: logic that another program could want.

mod args;
mod bench;
mod bench_batch;
mod bench_tokens;
mod chat;
mod devices;
mod facts;
mod failure;
mod form;
mod inspect;
mod inspect_memory;
mod interrupt;
mod known;
mod launched;
mod llama_cpp;
mod load;
mod logits;
mod names;
mod output;
mod perplexity;
mod place;
mod pull;
mod quantize;
mod ranks;
mod report;
mod routing;
mod run;
mod score;
#[cfg(feature = "serve")]
mod serve;
#[cfg(feature = "serve")]
mod serve_models;
mod shaders;
mod simulate;
mod stream;
mod tensors;
mod train;
mod units;
mod words;

use args::Verb;
use failure::Failure;
use std::process::ExitCode;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, format::Writer};

/// Runs the program on the process's arguments.
pub fn main() -> ExitCode {
    let arguments = match llama_cpp::translated(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(failure) => return failure.report(),
    };
    let cli = match words::parsed(arguments) {
        Ok(cli) => cli,
        // Text that is no text is bad input, as it is in a file; what a person typed wrongly is clap's to explain.
        Err(e) if e.kind() == clap::error::ErrorKind::InvalidUtf8 => {
            return Failure::new("an argument is not valid UTF-8").hint("give the text in a file: -f FILE").report();
        }
        Err(e) => {
            // Where nobody reads, nothing can be said.
            let _ = e.print();
            return if e.use_stderr() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
        }
    };
    quiet_drivers();
    messages(cli.verbose);
    let quiet = cli.quiet;
    let outcome = match cli.verb {
        Verb::Run(a) => run::run(&a, cli.verbose > 0, quiet),
        Verb::Chat(a) => chat::chat(&a, cli.verbose > 0, quiet),
        #[cfg(feature = "serve")]
        Verb::Serve(a) => serve::serve(&a, quiet),
        Verb::Bench(a) => bench::bench(&a, quiet),
        Verb::Perplexity(a) => perplexity::perplexity(&a, quiet),
        Verb::Logits(a) => logits::logits(&a, quiet),
        Verb::Inspect(a) => inspect::inspect(&a),
        Verb::Routing(a) => simulate::simulate(&a),
        Verb::List(a) => names::list(&a),
        Verb::Pull(a) => pull::pull(&a, quiet),
        Verb::Rm(a) => pull::remove(&a, quiet),
        Verb::Devices(a) => devices::devices(&a),
        Verb::Quantize(a) => quantize::quantize(&a, quiet),
        Verb::Completions(a) => words::completions(&a),
        Verb::Man(a) => words::man(&a),
        Verb::Train(a) => train::train::train(&a, quiet),
        Verb::Finetune(a) => train::finetune::finetune(&a, quiet),
        Verb::Merge(a) => train::merge::merge(&a, quiet),
        Verb::Upcycle(a) => train::upcycle::upcycle(&a, quiet),
    };
    shaders::save();
    ranks::settle();
    let status = match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    };
    // Launchers end all processes with the first that fails: none may be gone before the one that speaks for all has spoken.
    ranks::end();
    status
}

/// Mesa's device-selection layer complains on stderr where there is no desktop session, on every run. It sorts devices for
/// programs that take the first; this one looks at all of them.
fn quiet_drivers() {
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: the program has one thread so far, so nobody else reads the environment now.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// Sends the library's messages to stderr: warnings, and more for `-v` or as `RUST_LOG` says.
fn messages(verbose: u8) {
    let default = match verbose {
        // What there is to be said of a model, rank 0 says.
        0 if launched::follower().is_some() => "error",
        0 => "warn,wgpu_core=error,wgpu_hal=error,naga=error",
        1 => "info,wgpu_core=warn,wgpu_hal=warn,naga=warn",
        2 => "debug,wgpu_core=info,wgpu_hal=info,naga=info",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).event_format(Words);
    // Somebody else's subscriber is as good.
    let _ = log.try_init();
}

/// A message of the library as a person reads it: `warning: ...`, and where it comes from only for those who want more than
/// that.
struct Words;

impl<S, N> FormatEvent<S, N> for Words
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &tracing::Event<'_>,
    ) -> std::fmt::Result {
        let about = event.metadata();
        match *about.level() {
            tracing::Level::ERROR => write!(writer, "error: ")?,
            tracing::Level::WARN => write!(writer, "warning: ")?,
            tracing::Level::INFO => write!(writer, "info: ")?,
            level => write!(writer, "{level} {}: ", about.target())?,
        }
        ctx.field_format().format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
