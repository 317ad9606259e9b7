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

/// f32 from FP8 with four bits of exponent and three of mantissa (`float8_e4m3fn`; Micikevicius et al. 2022, *FP8 Formats
/// for Deep Learning*): bias 7, no infinities, largest 448, `0x7f` and `0xff` not-a-number. A format of Hugging Face files,
/// not of GGUF.
pub fn f8_e4m3(b: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(b >> 3 & 15), f32::from(b & 7));
    let size = match exponent {
        0 => mantissa * 2f32.powi(-9),
        15 if b & 7 == 7 => f32::NAN,
        e => (8.0 + mantissa) * 2f32.powi(e - 10),
    };
    if b & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f8_numbers() {
        let known =
            [(0x00, 0.0), (0x01, 2f32.powi(-9)), (0x08, 2f32.powi(-6)), (0x38, 1.0), (0x7e, 448.0), (0xc4, -3.0)];
        known.iter().for_each(|(b, x)| assert_eq!(f8_e4m3(*b), *x, "{b:#x}"));
        assert!(f8_e4m3(0x7f).is_nan() && f8_e4m3(0xff).is_nan());
        // Every number is larger than the one before it.
        assert!((1..0x7f).all(|b| f8_e4m3(b) > f8_e4m3(b - 1)));
    }
}
