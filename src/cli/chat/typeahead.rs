//! What is typed while an answer is written: it waits for the next prompt, and does not show in the middle of the answer.
//!
//! The terminal keeps what it got: during an answer it neither echoes nor waits for whole lines, so that the line editor finds
//! every key as it was pressed. Ctrl-C goes on to interrupt. On Windows a console keeps keys by itself.

#[cfg(unix)]
use rustix::termios::{InputModes, LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use std::io::Write;
#[cfg(unix)]
use std::sync::{Mutex, PoisonError};

/// The terminal's mode before an answer.
#[cfg(unix)]
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// An answer is written: see the [module](self).
pub struct Waiting(());

impl Waiting {
    /// From now on what is typed waits.
    pub fn new() -> Self {
        #[cfg(unix)]
        if let Ok(before) = tcgetattr(std::io::stdin()) {
            let mut mode = before.clone();
            mode.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            // Ctrl-C would throw away what waits.
            mode.local_modes.insert(LocalModes::NOFLSH);
            mode.input_modes.remove(InputModes::ICRNL);
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            // Where it cannot be set, keys show as they always did.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &mode);
        }
        marks(true);
        Waiting(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        restore();
    }
}

/// Brings the terminal back to what it was, where an answer has changed it.
pub fn restore() {
    #[cfg(unix)]
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        marks(false);
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
    }
}

/// Whether the terminal marks what is pasted, so that several lines stay one message.
fn marks(on: bool) {
    if cfg!(unix) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(if on { b"\x1b[?2004h" } else { b"\x1b[?2004l" }).and_then(|()| out.flush());
    }
}
