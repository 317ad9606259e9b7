//! Block formats: how weights are stored, and f32 from and to blocks. One file per format.
//!
//! A format is described once, by its `impl BlockFormat` (`format.rs`): the layout of a block, its quants and scales, the GPU's
//! planes. Dequantisation, the CPU's kernels and the repacking for the GPU derive from that. A new format is its file, its
//! WGSL in `shaders/quant`, and a line in the table below.
//!
//! A row of a weight is a whole number of blocks; a block is a fixed number of weights in a fixed number of bytes. The
//! formats and their numbers are ggml's (`ggml-common.h`, and the numpy twins in the PyPI package `gguf`), and
//! dequantisation equals ggml's bit for bit.
//!
//! [`dequantize`] and [`quantize`] turn blocks into f32 and back; [`gpu`] rearranges blocks for the GPU, where
//! `shaders/quant/<format>.wgsl` reads them; [`mix`] chooses a format for every tensor of a model. [`KvType`] says how a
//! cache stores keys and values.
//!
//! Deliberately absent: matrix products (see `backend/`), file layout (see `file/`).

mod affine;
pub(crate) mod bits;
pub(crate) mod codec;
mod encode;
mod fit;
mod float;
pub(crate) mod format;
pub mod gpu;
mod grids;
mod iq1_m;
mod iq1_s;
mod iq2_s;
mod iq2_xs;
mod iq2_xxs;
mod iq3_s;
mod iq3_xxs;
mod iq4_nl;
mod iq4_xs;
pub(crate) mod kv;
pub mod mix;
mod mxfp4;
mod nvfp4;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod tq1_0;
mod tq2_0;
pub(crate) mod unpack;

use crate::error::Error;
use codec::Codec;
pub use encode::{quantize, quantize_rows, quantize_weighted};
pub use float::f8_e4m3;
use format::{BlockFormat, WithFormat};
pub use kv::KvType;

/// The formats: the floats, and one line for every block format with the module of its page. All else that differs between
/// block formats stands on that page, in its `impl BlockFormat`.
macro_rules! formats {
    ($($name:ident: $module:ident,)*) => {
        /// The type of a weight's elements, as GGUF names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[allow(missing_docs)]
        pub enum DType {
            F32,
            F16,
            BF16,
            $($name,)*
        }

        impl DType {
            /// Every format, in the order of the enum.
            pub const ALL: [DType; 3 + [$(DType::$name),*].len()] =
                [DType::F32, DType::F16, DType::BF16, $(DType::$name),*];

            /// Name, number and block size.
            pub const fn layout(self) -> Layout {
                match self {
                    DType::F32 => Layout { name: "F32", ggml_id: 0, block: 1, bytes: 4 },
                    DType::F16 => Layout { name: "F16", ggml_id: 1, block: 1, bytes: 2 },
                    DType::BF16 => Layout { name: "BF16", ggml_id: 30, block: 1, bytes: 2 },
                    $(DType::$name => <$module::$name as BlockFormat>::LAYOUT,)*
                }
            }

            /// What code that is not generic over formats needs of a block format; or which float it is.
            pub(crate) fn codec(self) -> Result<&'static Codec, Float> {
                match self {
                    DType::F32 => Err(Float::F32),
                    DType::F16 => Err(Float::F16),
                    DType::BF16 => Err(Float::BF16),
                    $(DType::$name => Ok(const { &Codec::of::<$module::$name>() }),)*
                }
            }

            /// Runs generic code for a block format; or says which float it is.
            pub(crate) fn with_format<W: WithFormat>(self, f: W) -> Result<W::Output, Float> {
                match self {
                    DType::F32 => Err(Float::F32),
                    DType::F16 => Err(Float::F16),
                    DType::BF16 => Err(Float::BF16),
                    $(DType::$name => Ok(f.run::<$module::$name>()),)*
                }
            }
        }
    };
}

formats! {
    Q4_0: q4_0,
    Q4_1: q4_1,
    Q5_0: q5_0,
    Q5_1: q5_1,
    Q8_0: q8_0,
    Q2K: q2_k,
    Q3K: q3_k,
    Q4K: q4_k,
    Q5K: q5_k,
    Q6K: q6_k,
    IQ4NL: iq4_nl,
    IQ4XS: iq4_xs,
    MXFP4: mxfp4,
    IQ1S: iq1_s,
    IQ1M: iq1_m,
    IQ2XXS: iq2_xxs,
    IQ2XS: iq2_xs,
    IQ2S: iq2_s,
    IQ3XXS: iq3_xxs,
    IQ3S: iq3_s,
    TQ1_0: tq1_0,
    TQ2_0: tq2_0,
    NVFP4: nvfp4,
}

/// The types that store weights as numbers, not in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    F16,
    BF16,
}

/// What [`DType::layout`] tells: name, ggml's type number, weights a block, bytes a block.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// ggml's name, upper case, as `moeray inspect` prints it and `--type` takes it.
    pub name: &'static str,
    /// The number in a GGUF tensor header (`enum ggml_type`).
    pub ggml_id: u32,
    /// Weights in a block; a row is a whole number of blocks.
    pub block: usize,
    /// Bytes in a block.
    pub bytes: usize,
}

impl DType {
    /// The format with ggml's number `id`.
    pub fn from_ggml_id(id: u32) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.layout().ggml_id == id)
    }

    /// The format called `name`, upper or lower case.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.layout().name.eq_ignore_ascii_case(name))
    }

    /// Bytes of a row of `cols` weights; `None` where `cols` is no whole number of blocks.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        let l = self.layout();
        cols.is_multiple_of(l.block).then(|| (cols / l.block).checked_mul(l.bytes)).flatten()
    }

    /// Why [`quantize`] refuses to make this format, if it does.
    pub fn no_quantiser(self) -> Option<&'static str> {
        self.codec().ok()?.quantize.err()
    }

    /// F32, F16 and BF16: stored as numbers, not blocks.
    pub fn is_float(self) -> bool {
        self.codec().is_err()
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.layout().name)
    }
}

/// The f32 values of `bytes`, whole blocks of `dtype`, equal to ggml's bit for bit (the payload of a NaN excepted).
///
/// # Errors
/// [`Error::Invalid`] where `bytes` are no whole number of blocks, or `out` has another length than their weights.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> crate::error::Result<()> {
    let l = dtype.layout();
    if !bytes.len().is_multiple_of(l.bytes)
        || !out.len().is_multiple_of(l.block)
        || bytes.len() / l.bytes != out.len() / l.block
    {
        return Err(Error::Invalid(format!(
            "{} bytes of {dtype} are not {} weights: a block of {} has {} bytes",
            bytes.len(),
            out.len(),
            l.block,
            l.bytes
        )));
    }
    match dtype.codec() {
        Ok(codec) => (codec.dequantize)(bytes, out),
        Err(Float::F32) => each(bytes, out, float::dequantize_f32),
        Err(Float::F16) => each(bytes, out, float::dequantize_f16),
        Err(Float::BF16) => each(bytes, out, float::dequantize_bf16),
    }
    Ok(())
}

/// `f` for every number of `N` bytes.
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn(&[u8; N], &mut [f32; 1])) {
    for (number, y) in bytes.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<1>().0) {
        f(number, y);
    }
}
