//! The variants that may run without the checks of wgpu (bounds of buffers, ends of loops): exactly those that the test suite ran
//! on a device with every check on, on poisoned buffers with canaries behind them, and whose numbers it compared.
//!
//! `proven.txt` has their [`Variant::label`](super::Variant::label)s, one a line, sorted. The tests fail where it has a label that
//! nothing ran; `MOERAY_WRITE_PROVEN=1 cargo test -- proven` writes it anew. A label that it lacks still runs everywhere, with the
//! checks on: so do those that no software device can run (cooperative matrices).

use std::{collections::HashSet, sync::LazyLock};

static LABELS: LazyLock<HashSet<&str>> = LazyLock::new(|| proven().collect());

/// The labels, sorted.
pub fn proven() -> impl Iterator<Item = &'static str> {
    include_str!("proven.txt").lines()
}

/// Whether the variant of this label was run with every check on.
pub fn is_proven(label: &str) -> bool {
    LABELS.contains(label)
}
