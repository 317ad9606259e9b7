//! Block formats: how weights are stored, and f32 from and to blocks. One file per format.
//!
//! A row of a weight is a whole number of blocks; a block is a fixed number of weights in a fixed number of bytes. The
//! formats and their numbers are ggml's (`ggml-common.h`, and the numpy twins in the PyPI package `gguf`), and
//! dequantisation equals ggml's bit for bit.
//!
//! Deliberately absent: matrix products (see `backend/`), file layout (see `file/`).

/// The type of a weight's elements, as GGUF names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ4NL,
    IQ4XS,
    MXFP4,
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
    /// Every format, in the order of the enum.
    pub const ALL: [DType; 16] = [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q8_0,
        DType::Q2K,
        DType::Q3K,
        DType::Q4K,
        DType::Q5K,
        DType::Q6K,
        DType::IQ4NL,
        DType::IQ4XS,
        DType::MXFP4,
    ];

    /// Name, number and block size.
    pub const fn layout(self) -> Layout {
        const fn l(name: &'static str, ggml_id: u32, block: usize, bytes: usize) -> Layout {
            Layout { name, ggml_id, block, bytes }
        }
        match self {
            DType::F32 => l("F32", 0, 1, 4),
            DType::F16 => l("F16", 1, 1, 2),
            DType::BF16 => l("BF16", 30, 1, 2),
            DType::Q4_0 => l("Q4_0", 2, 32, 18),
            DType::Q4_1 => l("Q4_1", 3, 32, 20),
            DType::Q5_0 => l("Q5_0", 6, 32, 22),
            DType::Q5_1 => l("Q5_1", 7, 32, 24),
            DType::Q8_0 => l("Q8_0", 8, 32, 34),
            DType::Q2K => l("Q2_K", 10, 256, 84),
            DType::Q3K => l("Q3_K", 11, 256, 110),
            DType::Q4K => l("Q4_K", 12, 256, 144),
            DType::Q5K => l("Q5_K", 13, 256, 176),
            DType::Q6K => l("Q6_K", 14, 256, 210),
            DType::IQ4NL => l("IQ4_NL", 20, 32, 18),
            DType::IQ4XS => l("IQ4_XS", 23, 256, 136),
            DType::MXFP4 => l("MXFP4", 39, 32, 17),
        }
    }

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
        (cols % l.block == 0).then(|| (cols / l.block).checked_mul(l.bytes)).flatten()
    }

    /// F32, F16 and BF16: stored as numbers, not blocks.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.layout().name)
    }
}

/// Temporary.
pub fn dequantize(dtype: DType, bytes: &[u8], out: &mut [f32]) -> crate::Result<()> {
    match dtype {
        DType::F32 => out
            .iter_mut()
            .zip(bytes.chunks_exact(4))
            .for_each(|(o, b)| *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        DType::BF16 => out
            .iter_mut()
            .zip(bytes.chunks_exact(2))
            .for_each(|(o, b)| *o = half::bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        _ => return Err(crate::Error::Unsupported(format!("{dtype}"))),
    }
    Ok(())
}
