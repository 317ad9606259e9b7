//! GGUF as a second form of the same models. A family's [`GgufForm`] says what llama.cpp calls it, which keys it has, what an
//! absent key means there, and what its graph takes for granted; reading goes by it, and so does writing.

mod check;
mod form;
pub(super) mod keys;

pub use form::GgufForm;
pub(super) use form::{Graph, Renormalises, Rows, SharedForm, refused};
