//! Pieces of WGSL: the files under `shaders/`, compiled in.

/// A file of `shaders/`.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    /// Its path, for messages.
    pub file: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// The [`Fragment`] of a file under `shaders/`.
macro_rules! wgsl {
    ($file:literal) => {
        crate::kernels::fragment::Fragment {
            file: concat!("shaders/", $file),
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $file)),
        }
    };
}
pub(super) use wgsl;
