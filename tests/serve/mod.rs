//! The server: its scheduler, its engine, and what clients get over HTTP.

#[cfg(feature = "demo-model")]
mod apis;
#[cfg(feature = "demo-model")]
mod client;
#[cfg(feature = "demo-model")]
mod embeddings;
#[cfg(feature = "demo-model")]
mod forms;
#[cfg(feature = "demo-model")]
mod load;
#[cfg(feature = "demo-model")]
mod models;
#[cfg(feature = "demo-model")]
mod openapi;
mod prefix;
#[cfg(feature = "demo-model")]
mod reuse;
mod schedule;
