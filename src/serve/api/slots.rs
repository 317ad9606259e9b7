//! `/slots/{id}?action=save|restore|erase`, as llama-server has it: a sequence's text in a file, for another day.
//!
//! Files lie in one folder that the operator has named. A request brings the name of a file in it, never a path.

use crate::{
    error::Error,
    file::write_whole,
    serve::{
        app::App,
        engine::{Done, OrderKind},
        error::{ApiError, ApiResult},
        fields::Fields,
    },
};
use serde_json::{Value, json};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Instant,
};

/// Most bytes of a file's name.
const NAME: usize = 128;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Save,
    Restore,
    Erase,
}

impl Action {
    /// By its word in the query.
    ///
    /// # Errors
    /// 400 for another word, or none.
    pub fn of(word: Option<&str>) -> ApiResult<Action> {
        match word {
            Some("save") => Ok(Action::Save),
            Some("restore") => Ok(Action::Restore),
            Some("erase") => Ok(Action::Erase),
            other => {
                let message = format!("{:?} is none of save, restore, erase", other.unwrap_or_default());
                Err(ApiError::field("action", message))
            }
        }
    }
}

/// The folder and the file's name.
fn file(app: &App, body: &Value) -> ApiResult<(PathBuf, String)> {
    let Some(folder) = &app.options.slot_folder else {
        let message = "this server keeps no slots in files: it was started without --slot-save-path";
        return Err(ApiError { code: Some("not_supported"), ..ApiError::new(400, message) });
    };
    let name = Fields::of(body)?.require_string("filename")?;
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME || name.starts_with('.') || !name.bytes().all(plain) {
        let message = format!("a name of letters, digits, '-', '_' and '.', at most {NAME} of them and no '.' first");
        return Err(ApiError::field("filename", message));
    }
    Ok((folder.clone(), name.to_owned()))
}

/// Does it.
///
/// # Errors
/// 400 for what is not there or cannot be, 404 for a file that does not exist, 409 for a slot in use, 500 where the folder cannot be
/// written.
pub async fn act(app: &App, id: usize, action: Action, body: &Value) -> ApiResult<Value> {
    let begin = Instant::now();
    let ms = |begin: Instant| 1e3 * begin.elapsed().as_secs_f64();
    match action {
        Action::Erase => {
            let done = order(app, id, OrderKind::Erase).await?;
            Ok(json!({"id_slot": id, "n_erased": done.tokens}))
        }
        Action::Save => {
            let (folder, name) = file(app, body)?;
            let Done { tokens, bytes } = order(app, id, OrderKind::Save).await?;
            let (written, to) = (bytes.len(), name.clone());
            // The answer names the file, not the folder that it lies in.
            let refused = |to: &str, e| match e {
                Error::Write { source, .. } => failed("written", to, &source),
                e => e.into(),
            };
            elsewhere(move || write_whole(&folder.join(&to), &bytes).map_err(|e| refused(&to, e))).await?;
            let timings = json!({"save_ms": ms(begin)});
            Ok(json!({"id_slot": id, "filename": name, "n_saved": tokens, "n_written": written, "timings": timings}))
        }
        Action::Restore => {
            let (folder, name) = file(app, body)?;
            let from = name.clone();
            let bytes = elsewhere(move || read(&folder, &from).map_err(|e| failed("read", &from, &e))).await?;
            let read = bytes.len();
            let done = order(app, id, OrderKind::Restore(bytes)).await?;
            let timings = json!({"restore_ms": ms(begin)});
            Ok(json!({"id_slot": id, "filename": name, "n_restored": done.tokens, "n_read": read, "timings": timings}))
        }
    }
}

async fn order(app: &App, id: usize, kind: OrderKind) -> ApiResult<Done> {
    let busy = kind != OrderKind::Save && app.engine.status().slots.get(id).is_some_and(|s| s.busy);
    if busy {
        let message = format!("slot {id} is in use: try again when it is idle");
        return Err(ApiError { code: Some("slot_in_use"), ..ApiError::new(409, message) });
    }
    let done = app.engine.order(id, kind)?.await;
    let ended = |_| ApiError { retry_after: Some(5), ..ApiError::new(503, "the server is shutting down") };
    done.map_err(ended)?.map_err(|e| match e {
        Error::ContextFull { needed, capacity } => {
            let message = format!("the saved text has {needed} tokens, and the context of a slot is {capacity} tokens");
            ApiError { code: Some("context_length_exceeded"), ..ApiError::new(400, message) }
        }
        e => e.into(),
    })
}

async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> ApiResult<T> + Send + 'static) -> ApiResult<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(ApiError::new(500, format!("a file could not be looked at: {e}"))))
}

fn failed(what: &str, name: &str, e: &io::Error) -> ApiError {
    match e.kind() {
        io::ErrorKind::NotFound => {
            ApiError { code: Some("file_not_found"), ..ApiError::new(404, format!("there is no saved slot {name:?}")) }
        }
        io::ErrorKind::InvalidInput => ApiError::field("filename", format!("{name:?} is no plain file")),
        _ => ApiError::new(500, format!("{name:?} could not be {what}: {}", e.kind())),
    }
}

/// Reads a plain file: links, which lead elsewhere, and devices are none.
fn read(folder: &Path, name: &str) -> io::Result<Vec<u8>> {
    let path = folder.join(name);
    if !fs::symlink_metadata(&path)?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    fs::read(path)
}
