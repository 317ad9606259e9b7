//! How products of many rows store and multiply the tiles that go through workgroup memory: one row of a table each, with
//! what it needs of a device and which formats it takes. Whoever plans asks for one; a matrix whose format it does not take
//! falls back to [`Tiles::F32`], which runs everywhere.
//!
//! Cooperative matrices are an experimental feature of wgpu. No software device has them, so the tests validate and translate
//! those rows but cannot run them: nothing chooses them before their numbers were compared with the base's on the device, and they
//! keep bounds checks (see [`super::is_proven`]).

use super::fragment::{Fragment, wgsl};
use crate::quant::DType;

/// Storage and arithmetic of tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tiles {
    /// Single precision.
    F32,
    /// Stored as halves, multiplied and summed in single precision.
    F16,
    /// Signed bytes, four products at a time (`dot4I8Packed`), scales and sums in single precision. The rows of x are rounded
    /// to 8 bits, a scale for each group of 32.
    Int8,
    /// Halves, multiplied 16 by 16 by 16 by a subgroup (cooperative matrices), summed in single precision.
    Coop16,
    /// Single precision, multiplied 8 by 8 by 8 by a subgroup.
    Coop8,
}

/// What kernels may use beyond WebGPU's base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceFeatures {
    /// Half precision in shaders.
    pub f16: bool,
    /// Subgroup operations in shaders.
    pub subgroups: bool,
    /// Invocations of a subgroup, as a kernel saw it. Where a device has several sizes another kernel may see another one: none
    /// relies on this, it only helps to choose. `None`: sums are not left to subgroups.
    pub subgroup_size: Option<u32>,
    /// Cooperative matrices of 16 by 16 by 16: halves with sums in single precision.
    pub coop16: bool,
    /// Cooperative matrices of 8 by 8 by 8 in single precision.
    pub coop8: bool,
    /// Whether the conversion from halves takes subnormal ones for zeros.
    pub flushes_halves: bool,
}

/// A row of the table.
pub struct Row {
    /// Which.
    pub tiles: Tiles,
    /// Its name, in labels, options and files.
    pub name: &'static str,
    /// Extensions that its text has to name.
    pub enable: &'static [&'static str],
    /// Its WGSL.
    pub parts: &'static [Fragment],
    /// Rows of weights and rows of x of a tile.
    pub size: [u32; 2],
    /// Invocations of a workgroup where the device has subgroups of this size.
    pub workgroup: fn(Option<u32>) -> u32,
    /// Whether a device can run it.
    pub runs: fn(&DeviceFeatures) -> bool,
    /// Whether it takes weights of a format.
    pub takes: fn(DType) -> bool,
}

const COMMON: Fragment = wgsl!("tiles/common.wgsl");
const THREADS: Fragment = wgsl!("tiles/threads.wgsl");
const COOP: Fragment = wgsl!("tiles/coop.wgsl");
const SCALE: Fragment = wgsl!("tiles/scale.wgsl");

/// Formats whose numbers halves hold: their own scales are halves. MXFP4's reach from 2^-128 to 2^127.
fn fits_halves(d: DType) -> bool {
    !matches!(d, DType::F32 | DType::BF16 | DType::MXFP4)
}

/// Invocations of the tiles that are multiplied invocation by invocation.
fn threads(_: Option<u32>) -> u32 {
    64
}

/// Invocations of the tiles that two subgroups multiply together.
fn two_subgroups(size: Option<u32>) -> u32 {
    2 * size.unwrap_or(32)
}

/// Every way to multiply tiles.
pub static ROWS: [Row; 5] = [
    Row {
        tiles: Tiles::F32,
        name: "f32",
        enable: &[],
        parts: &[COMMON, THREADS, wgsl!("tiles/f32.wgsl")],
        size: [64, 32],
        workgroup: threads,
        runs: |_| true,
        takes: |_| true,
    },
    Row {
        tiles: Tiles::F16,
        name: "f16",
        enable: &["f16"],
        parts: &[COMMON, THREADS, SCALE, wgsl!("tiles/f16.wgsl")],
        size: [64, 32],
        workgroup: threads,
        runs: |e| e.f16,
        takes: fits_halves,
    },
    Row {
        tiles: Tiles::Int8,
        name: "int8",
        enable: &[],
        parts: &[COMMON, THREADS, wgsl!("tiles/int8.wgsl")],
        size: [64, 32],
        workgroup: threads,
        runs: |_| true,
        takes: |d| !d.is_float(),
    },
    Row {
        tiles: Tiles::Coop16,
        name: "coop16",
        enable: &["f16", "wgpu_cooperative_matrix"],
        parts: &[COMMON, COOP, SCALE, wgsl!("tiles/coop16.wgsl")],
        size: [64, 32],
        workgroup: two_subgroups,
        runs: |e| e.f16 && e.coop16 && e.subgroup_size.is_some_and(|s| (16..=64).contains(&s)),
        takes: fits_halves,
    },
    Row {
        tiles: Tiles::Coop8,
        name: "coop8",
        enable: &["wgpu_cooperative_matrix"],
        parts: &[COMMON, COOP, wgsl!("tiles/coop8.wgsl")],
        size: [32, 16],
        workgroup: two_subgroups,
        runs: |e| e.coop8 && e.subgroup_size.is_some_and(|s| (16..=64).contains(&s)),
        takes: |_| true,
    },
];

/// PCI vendors (Apple's by the number that wgpu gives), in the order in which their tiles are tried where nothing was
/// measured: bytes where processors multiply four of them at a time, else halves. No order has a measurement on hardware
/// behind it yet; measuring decides better.
const VENDORS: [(u32, &[Tiles]); 5] = [
    (0x10de, &[Tiles::Int8]),
    (0x1002, &[Tiles::Int8]),
    (0x8086, &[Tiles::Int8]),
    (0x5143, &[Tiles::Int8]),
    (0x106b, &[Tiles::F16]),
];

/// What suits a vendor's devices; the base for those that are not known.
pub fn default_for(vendor: u32, features: &DeviceFeatures) -> Tiles {
    let list = VENDORS.iter().find(|v| v.0 == vendor).map_or(&[][..], |v| v.1);
    list.iter().copied().find(|t| (t.row().runs)(features)).unwrap_or(Tiles::F32)
}

impl Tiles {
    /// Its row.
    pub fn row(self) -> &'static Row {
        ROWS.iter().find(|r| r.tiles == self).unwrap_or(&ROWS[0])
    }

    /// By name.
    pub fn named(name: &str) -> Option<Tiles> {
        ROWS.iter().find(|r| r.name == name).map(|r| r.tiles)
    }

    /// This one where it takes all these formats, else the base.
    #[must_use]
    pub fn for_formats(self, formats: &[DType]) -> Tiles {
        if formats.iter().all(|d| (self.row().takes)(*d)) { self } else { Tiles::F32 }
    }
}
