//! HTTP at the edge: connections and their limits, routes, keys, origins.

mod body;
mod gate;
mod read;
mod route;
mod routes;
mod server;

pub use body::Writer;
pub use server::run;
