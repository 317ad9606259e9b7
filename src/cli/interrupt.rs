//! Ctrl-C: the first press stops what runs at the next step, the second ends the program.

use crate::generate::CancelToken;
use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

struct State {
    /// What a first press stops; `None` while nothing that can be stopped runs.
    running: Option<CancelToken>,
    /// A half-written file to remove when the program ends at once.
    unfinished: Option<PathBuf>,
}

static STATE: Mutex<State> = Mutex::new(State { running: None, unfinished: None });
static INSTALLED: OnceLock<()> = OnceLock::new();
static PRESSED: AtomicBool = AtomicBool::new(false);

/// Whether the program was told to stop, by a key or a signal.
#[cfg_attr(not(feature = "mpi"), expect(dead_code, reason = "who waits for other processes asks"))]
pub fn was_pressed() -> bool {
    PRESSED.load(Ordering::Relaxed)
}

fn with<T>(f: impl FnOnce(&mut State) -> T) -> T {
    f(&mut STATE.lock().unwrap_or_else(PoisonError::into_inner))
}

fn pressed() {
    PRESSED.store(true, Ordering::Relaxed);
    let stop = with(|s| match &s.running {
        Some(token) if !token.is_cancelled() => {
            token.cancel();
            false
        }
        _ => {
            if let Some(path) = s.unfinished.take() {
                let _ = std::fs::remove_file(path);
            }
            true
        }
    });
    if stop {
        super::chat::typeahead::restore();
        std::process::exit(130);
    }
}

/// Installs the handler, once. Without one (no such thing on this platform) Ctrl-C ends the program as usual.
pub fn install() {
    INSTALLED.get_or_init(|| {
        if let Err(e) = ctrlc::set_handler(pressed) {
            tracing::warn!("no Ctrl-C handler: {e}");
        }
    });
}

/// While it lives, a first press cancels its token instead of ending the program.
pub struct Guard;

impl Guard {
    /// From now on Ctrl-C cancels `token`.
    pub fn new(token: &CancelToken) -> Self {
        install();
        with(|s| s.running = Some(token.clone()));
        Guard
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        with(|s| s.running = None);
    }
}

/// Names the file to remove when the program ends at once; `None` when it is finished or gone.
pub fn unfinished(path: Option<&Path>) {
    install();
    with(|s| s.unfinished = path.map(Path::to_path_buf));
}
