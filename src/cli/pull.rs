//! `moeray pull` and `moeray rm`: models into Hugging Face's cache, and out of it.

use super::{
    args::{PullArgs, RmArgs},
    failure::{Failure, Outcome, say},
    names, units,
};
use std::io::{self, Write};

/// Runs the verb `pull`.
#[cfg(feature = "pull")]
pub fn pull(args: &PullArgs, quiet: bool) -> Outcome {
    use super::interrupt;
    use crate::{cancel::CancelToken, hub::PullOptions};
    let cache = names::places().hugging_face;
    let cache =
        cache.ok_or_else(|| Failure::new("there is no home folder").hint("HF_HOME names a folder for models"))?;
    let cancel = CancelToken::default();
    let options = PullOptions {
        endpoint: names::endpoint(),
        token: names::token(),
        cache,
        revision: args.revision.clone(),
        proxy_of_environment: true,
        cancel: cancel.clone(),
    };
    let guard = interrupt::Guard::new(&cancel);
    let mut bar = Bar::new(quiet);
    let pulled = options.pull(&args.name, &mut |p| bar.show(p))?;
    drop((bar, guard));
    if !quiet {
        match pulled.received {
            0 => say(format_args!("{} was there already, {}", args.name, units::bytes(pulled.bytes))),
            n => say(format_args!("{}: {} came, {} in all", args.name, units::bytes(n), units::bytes(pulled.bytes))),
        }
        say(format_args!("moeray run {0} and moeray serve {0} use it", args.name));
    }
    writeln!(io::stdout().lock(), "{}", pulled.path.display())?;
    Ok(())
}

/// Runs the verb `pull`.
#[cfg(not(feature = "pull"))]
pub fn pull(args: &PullArgs, _: bool) -> Outcome {
    let why = format!("this program was built without downloads, so {} at {} cannot be had", args.name, args.revision);
    Err(Failure::new(why)
        .hint("cargo install moeray --features pull builds one with them; `hf download` fills the same cache"))
}

/// Runs the verb `rm`.
pub fn remove(args: &RmArgs, quiet: bool) -> Outcome {
    let places = names::places();
    let removed = if args.dry_run { places.removal(&args.name) } else { places.remove(&args.name) };
    let (paths, bytes) = removed.map_err(|e| Failure::from(e).hint("`moeray list` says what there is"))?;
    if args.dry_run {
        let mut out = io::stdout().lock();
        for path in &paths {
            writeln!(out, "{}", path.display())?;
        }
    }
    if !quiet {
        let would = if args.dry_run { "would be" } else { "are" };
        say(format_args!("{}: {} {would} free", args.name, units::bytes(bytes)));
    }
    Ok(())
}

/// A progress bar on stderr, only where a person sees it.
#[cfg(feature = "pull")]
struct Bar {
    bar: indicatif::ProgressBar,
    begun: bool,
}

#[cfg(feature = "pull")]
impl Bar {
    fn new(quiet: bool) -> Self {
        use indicatif::ProgressBar;
        Bar { bar: if quiet { ProgressBar::hidden() } else { ProgressBar::new(0) }, begun: false }
    }

    fn show(&mut self, p: crate::hub::PullProgress<'_>) {
        use crate::hub::PullProgress;
        use indicatif::ProgressStyle;
        match p {
            PullProgress::Chosen { bytes, .. } => {
                let style =
                    "{msg:.dim} [{bar:24}] {binary_bytes} of {binary_total_bytes} {binary_bytes_per_sec} {eta:>4}";
                let style = ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
                self.bar.set_style(style.progress_chars("=> "));
                self.bar.set_length(bytes);
            }
            PullProgress::Waiting { file } => self.bar.set_message(format!("{file} (another program fetches it)")),
            PullProgress::Again { file } => self.bar.set_message(format!("{file} (connecting again)")),
            PullProgress::Received { file, bytes } => {
                self.bar.set_message(file.to_owned());
                // What an earlier download left says nothing of the speed of this one.
                if !std::mem::replace(&mut self.begun, true) {
                    self.bar.set_position(bytes);
                    self.bar.reset_eta();
                }
                self.bar.set_position(bytes);
            }
        }
    }
}

#[cfg(feature = "pull")]
impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
