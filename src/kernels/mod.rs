//! Kernels: the WGSL files under `shaders/`, a catalogue of them, and a linker.
//!
//! A kernel is linked of a few fragments of WGSL, the last of which has its name and its entry point; `moeray inspect --shader
//! LABEL` prints the text. What varies is of four kinds, and all of it is in a [`Variant`]:
//! - *numbers* that shape the code (workgroup size, lanes a row, rows an invocation) are `const`s that the linker
//!   prepends: [`Kernel::consts`] names them with their defaults, [`Kernel::fixed`] those that its fragments ask for and
//!   that it has one answer to;
//! - *weight formats* are fragments (`shaders/quant/q4_k.wgsl`, ...) linked once for each weight slot of the kernel; the
//!   fragment's prefix `W_` becomes the slot's name (`w_dequant` reads `w_data`, `gate_dequant` reads `gate_data`);
//! - *KV storage* is a fragment of a few functions (`shaders/kv/f16.wgsl`), and `KV_SCALES` says whether rows end in scales;
//! - *tiles* in workgroup memory are a fragment that stores and multiplies them (`shaders/tiles/int8.wgsl`, ...): see [`tiles`].
//!
//! Everything that differs from dispatch to dispatch is a uniform: `p`, a struct of [`params`], and `frame`
//! ([`params::Frame`]), written once a step. Their WGSL is made from the Rust, and so are the named constants that both
//! sides use ([`numbers`]). `reflect` reads bindings, access and workgroup size back from the text, so
//! that the runtime binds by name and cannot disagree with the shader.
//!
//! # Conventions of every kernel
//!
//! - `@group(0)`; `frame` and `p` are uniforms, all else is storage. A binding that a flag turns off (a bias, say) is
//!   never read: bind any buffer that the dispatch does not write.
//! - A value is f32 (ids: u32), row-major, addressed by `*_offset` and `*_stride` in elements. Offsets and strides of
//!   values are multiples of 4, so that several kernels may read them as `vec4`.
//! - A weight segment is some whole rows `row0 .. row0 + rows` of a matrix (of the flattened `[E * out, in]` rows for
//!   experts) as [`crate::quant`] packs it, `groups` groups of 32 weights a row. One dispatch reads one segment.
//! - The grid is `(ceil(items / tile[0]), ceil(rows / tile[1]), 1)` with [`Kernel::tile`]; the kernel's entry in
//!   [`catalogue`] says what items and rows are. Workgroups beyond the end do nothing; no rows at all is harmless.
//! - Accumulation is in f32.
//! - A name in capitals is a constant: a number of the kernel, one of [`numbers`], or a `const` of a fragment. The linker refuses
//!   every other.
//!
//! Deliberately absent: a device.

pub mod catalogue;
mod fragment;
mod lines;
mod link;
pub mod numbers;
pub mod params;
mod proven;
mod reflect;
pub mod tiles;

pub use catalogue::{Kernel, Number, Reduction, TRAINING};
pub use fragment::Fragment;
pub use link::{Linked, dequantizer, link};
pub use proven::{is_proven, proven};
pub use reflect::{Access, Binding, Reflection, diagnose, reflect};
pub use tiles::Tiles;

use crate::{
    error::{Error, Result},
    quant::{DType, KvType},
};
use fragment::wgsl;

/// The name of a storage of keys and values in labels, and its fragment. The layout of a row in u32 words is in the fragment;
/// its size is [`KvType::gpu_row_bytes`].
fn kv_fragment(kv: KvType) -> (&'static str, Fragment) {
    match kv {
        KvType::F32 => ("f32", wgsl!("kv/f32.wgsl")),
        KvType::F16 => ("f16", wgsl!("kv/f16.wgsl")),
        KvType::Q8_0 => ("q8_0", wgsl!("kv/q8_0.wgsl")),
    }
}

/// A kernel with everything fixed that makes a pipeline: the key of a pipeline cache.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Which kernel.
    pub kernel: &'static Kernel,
    /// One format for each of the kernel's slots.
    pub formats: Vec<DType>,
    /// Storage of the cache, where the kernel has one.
    pub kv: Option<KvType>,
    /// How its tiles are stored and multiplied, where the kernel has such.
    pub tiles: Option<Tiles>,
    /// Numbers that differ from the kernel's defaults, by name.
    pub consts: Vec<(&'static str, u32)>,
    /// Whether halves of weights are decoded without the device's own conversion, which takes subnormal ones for zeros.
    pub flushes_halves: bool,
}

impl Variant {
    /// `kernel` with its default numbers.
    pub fn new(kernel: &'static Kernel) -> Self {
        Variant { kernel, formats: Vec::new(), kv: None, tiles: None, consts: Vec::new(), flushes_halves: false }
    }

    /// With the formats of the kernel's slots, in order.
    #[must_use]
    pub fn formats(mut self, formats: &[DType]) -> Self {
        self.formats = formats.to_vec();
        self
    }

    /// With a cache of this storage.
    #[must_use]
    pub fn kv(mut self, kv: KvType) -> Self {
        self.kv = Some(kv);
        self
    }

    /// With tiles stored and multiplied in this way, by a workgroup that suits subgroups of this size.
    #[must_use]
    pub fn tiles(self, tiles: Tiles, subgroup: Option<u32>) -> Self {
        let row = tiles.row();
        let v = self.with("TM", row.size[0]).with("COLS", row.size[1]).with("WG", (row.workgroup)(subgroup));
        Variant { tiles: Some(tiles), ..v }
    }

    /// With `name` set to `value`, whatever it was.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: u32) -> Self {
        match self.consts.iter_mut().find(|c| c.0 == name) {
            Some(c) => c.1 = value,
            None => self.consts.push((name, value)),
        }
        self
    }

    /// The value of a number: what was set, else the kernel's default. `KV_SCALES`, which every kernel with a cache has,
    /// is 1 where the cache's rows end in scales.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a number that the kernel does not have.
    pub fn get(&self, name: &str) -> Result<u32> {
        let kernel = self.kernel.name;
        self.number(name).ok_or_else(|| Error::Unsupported(format!("kernel {kernel} has no number {name}")))
    }

    /// As [`Variant::get`]; `None` for a number that the kernel does not have.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.numbers().find(|n| n.0 == name).map(|n| n.1)
    }

    /// Every number of the kernel with its value: those that may vary, then the fixed ones.
    pub fn numbers(&self) -> impl Iterator<Item = Number> {
        let set = |name: &str| self.consts.iter().find(|c| c.0 == name).map(|c| c.1);
        let varying = self.kernel.consts().map(move |(name, default)| (name, set(name).unwrap_or(default)));
        let scales = self.kv.map(|kv| ("KV_SCALES", u32::from(kv == KvType::Q8_0)));
        varying.chain(self.kernel.fixed()).chain(scales)
    }

    /// Items and rows of one workgroup: see the conventions in [`crate::kernels`].
    ///
    /// # Errors
    /// As [`Variant::get`].
    pub fn tile(&self) -> Result<[u32; 2]> {
        (self.kernel.tile)(self)
    }

    /// A name for messages and a key for caches: kernel, formats, numbers.
    pub fn label(&self) -> String {
        let mut s = self.kernel.name.to_string();
        for f in &self.formats {
            s.push('-');
            s.push_str(&f.layout().name.to_lowercase());
        }
        if let Some(kv) = self.kv {
            s.push_str("-kv_");
            s.push_str(kv_fragment(kv).0);
        }
        if let Some(tiles) = self.tiles {
            s.push('-');
            s.push_str(tiles.row().name);
        }
        for (name, value) in self.numbers().take(self.kernel.consts().count()) {
            s.push_str(&format!("-{}{value}", name.to_lowercase()));
        }
        if self.flushes_halves {
            s.push_str("-halves");
        }
        s
    }
}
