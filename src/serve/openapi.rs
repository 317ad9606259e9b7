//! The description of the APIs, checked in and held to what the server does by a test.

/// The APIs in the form of OpenAPI 3.1.
pub const OPENAPI: &str = include_str!("openapi.json");
