//! The server: many clients on one runner, behind the APIs of OpenAI and Anthropic.
//!
//! ```text
//! HTTP ─ request ─→ job ─ queue ─→ engine thread: schedule ─ rows ─→ runner
//!   ↑                                   │
//!   └── events: text, calls, usage ←────┘
//! ```
//!
//! One thread owns the runner and knows nothing of HTTP or of asynchronous tasks. Between two steps it takes in new jobs, drops
//! those whose clients have gone, and asks [`schedule`], a pure function, which rows come next.
//!
//! Deliberately absent: kernels, rules of sampling.

mod answer;
mod api;
mod app;
pub mod engine;
mod error;
mod fields;
mod fleet;
mod form;
mod http;
mod ids;
pub mod metrics;
mod openapi;
mod page;
pub mod prefix;
mod prompt;
pub mod schedule;

pub use app::{App, ServeOptions};
pub use fleet::{Fleet, FleetOptions, Load, Source, Standing};
pub use openapi::OPENAPI;

use crate::error::{Error, Result};
use std::{net::TcpListener, sync::Arc};

/// Serves a model on a listening socket until `end` is done, and lets running answers finish then.
///
/// # Errors
/// [`Error::Device`] where the system gives no threads, or not this socket.
pub fn serve(app: Arc<App>, listener: TcpListener, end: impl Future<Output = ()>) -> Result<()> {
    serve_models(Arc::new(Fleet::of(app)), listener, end)
}

/// The same with several models, which are loaded when they are asked for.
///
/// # Errors
/// As [`serve`].
pub fn serve_models(fleet: Arc<Fleet>, listener: TcpListener, end: impl Future<Output = ()>) -> Result<()> {
    let refused = |e: std::io::Error| Error::Device(format!("the server cannot run: {e}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // What it does for a token is little, and each thread more is in the way of those that compute.
        .worker_threads(1)
        .max_blocking_threads(8)
        .thread_name("moeray http")
        .enable_all()
        .build()
        .map_err(refused)?;
    listener.set_nonblocking(true).map_err(refused)?;
    let served = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).map_err(refused)?;
        http::run(listener, fleet, end).await;
        Ok(())
    });
    // A model that is still being loaded is not waited for.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    served
}
