//! F32, F16 and BF16: one number a weight.
//!
//! On the GPU a group of 32 weights lies in 128 (F32) or 64 bytes, rows padded with zeros to whole groups.

use super::bits::f16_to_f32;
use crate::error::{Error, Result};

/// f32 from little-endian f32.
pub fn dequantize_f32(b: &[u8; 4], y: &mut [f32; 1]) {
    y[0] = f32::from_le_bytes(*b);
}

/// f32 from IEEE halves.
pub fn dequantize_f16(b: &[u8; 2], y: &mut [f32; 1]) {
    y[0] = f16_to_f32(u16::from_le_bytes(*b));
}

/// f32 from bfloat16, the upper half of an f32.
pub fn dequantize_bf16(b: &[u8; 2], y: &mut [f32; 1]) {
    y[0] = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
}

/// Little-endian f32.
pub fn quantize_f32(x: &[f32], out: &mut Vec<u8>) {
    out.extend(x.iter().flat_map(|v| v.to_le_bytes()));
}

/// The nearest halves, ties to even.
///
/// # Errors
/// [`Error::Model`] where a weight is beyond the largest half, 65504, once rounded.
pub fn quantize_f16(x: &[f32], out: &mut Vec<u8>) -> Result<()> {
    // 65520 and more round to infinity.
    if let Some((i, v)) = x.iter().enumerate().find(|(_, v)| v.abs() >= 65520.0) {
        return Err(Error::Model(format!("weight {i} is {v}, beyond F16's range of ±65504; use BF16 or F32")));
    }
    out.extend(x.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()));
    Ok(())
}

/// The nearest bfloat16, ties to even.
///
/// # Errors
/// [`Error::Model`] where a weight rounds to infinity.
pub fn quantize_bf16(x: &[f32], out: &mut Vec<u8>) -> Result<()> {
    if let Some((i, v)) = x.iter().enumerate().find(|(_, v)| v.to_bits() & 0x7fff_ffff >= 0x7f7f_8000) {
        return Err(Error::Model(format!("weight {i} is {v}, beyond BF16's range; use F32")));
    }
    out.extend(x.iter().flat_map(|&v| {
        let n = v.to_bits();
        (((n + 0x7fff + ((n >> 16) & 1)) >> 16) as u16).to_le_bytes()
    }));
    Ok(())
}
