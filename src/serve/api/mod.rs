//! The APIs: requests read, jobs made of them, answers written. One file an API; `options` is what they share.

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod facts;
pub mod messages;
pub mod messages_in;
pub mod options;
pub mod responses;
pub mod responses_out;
pub mod slots;
