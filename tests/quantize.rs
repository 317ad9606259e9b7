//! f32 to blocks: errors against ggml's on real weights, bounds on any weights, bad input.

use crate::quant::{Truth, dequantized};
use moeray::{
    Error,
    quant::{self, DType},
};
use proptest::prelude::*;

/// Mean squared error after quantisation.
fn mse(dtype: DType, x: &[f32]) -> f64 {
    let y = dequantized(dtype, &quantized(dtype, x));
    x.iter().zip(&y).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>() / x.len() as f64
}

fn quantized(dtype: DType, x: &[f32]) -> Vec<u8> {
    let mut out = vec![7];
    quant::quantize(dtype, x, &mut out).unwrap();
    assert_eq!(out[0], 7, "quantize appends");
    out.split_off(1)
}

/// The formats that can be made.
fn made() -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(|d| d.no_quantiser().is_none())
}

/// Rows of a real model, in a file that [`Truth`] reads.
fn sample(truth: &Truth) -> Vec<f32> {
    let bytes = truth.bytes("weights");
    bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)).collect()
}

#[test]
#[allow(clippy::print_stdout)]
fn errors_on_real_weights_are_at_most_ggmls() {
    let truth = Truth::open("sample.safetensors");
    let x = sample(&truth);
    for dtype in made() {
        let ggml = f64::from_le_bytes(truth.bytes(&format!("{dtype}.mse")).try_into().unwrap());
        let ours = mse(dtype, &x);
        println!("{dtype}: {ours:.3e}, ggml {ggml:.3e}");
        assert!(ours <= ggml * 1.0001, "{dtype}: {ours:e} against ggml's {ggml:e}");
        // Neither is zero by accident: the formats are lossy.
        assert!(dtype == DType::F32 || dtype == DType::BF16 || ours > ggml / 4.0, "{dtype}: {ours:e} is too good");
    }
}

#[test]
fn alarm_a_shifted_block_is_no_longer_as_good_as_ggml() {
    let truth = Truth::open("sample.safetensors");
    let x = sample(&truth);
    for dtype in made().filter(|d| !d.is_float()) {
        let l = dtype.layout();
        let mut blocks = quantized(dtype, &x);
        let second = blocks[l.bytes..2 * l.bytes].to_vec();
        blocks[..l.bytes].copy_from_slice(&second);
        let y = dequantized(dtype, &blocks);
        let sum: f64 = x.iter().zip(&y).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let ggml = f64::from_le_bytes(truth.bytes(&format!("{dtype}.mse")).try_into().unwrap());
        assert!(sum / x.len() as f64 > ggml, "{dtype}");
    }
}

/// Largest error of a weight over its block's largest magnitude, which no input may exceed: half a step of the levels,
/// and what fitting to the squared error may cut off at the ends (measured on normal, uniform, sparse and spiked data,
/// with a margin).
fn bound(dtype: DType) -> f32 {
    match dtype {
        DType::F32 => 0.0,
        DType::F16 => 1.0 / 2048.0,
        DType::BF16 => 1.0 / 256.0,
        DType::Q8_0 => 0.006,
        DType::Q6K => 0.06,
        DType::Q5_0 | DType::Q5_1 | DType::Q5K => 0.12,
        DType::Q4_0 | DType::Q4_1 | DType::Q4K | DType::IQ4NL | DType::IQ4XS => 0.25,
        DType::MXFP4 => 0.4,
        DType::Q2K | DType::Q3K => 0.7,
        DType::IQ3S => 0.5,
        DType::TQ1_0 | DType::TQ2_0 => 0.501,
        DType::IQ1S | DType::IQ1M | DType::IQ2XXS | DType::IQ2XS | DType::IQ2S | DType::IQ3XXS | DType::NVFP4 => {
            unreachable!("not made")
        }
    }
}

/// A row of 512 weights of some kind and some size.
fn row() -> impl Strategy<Value = Vec<f32>> {
    let kind = prop_oneof![
        // even, sparse, one-sided, mostly equal
        prop::collection::vec(-1.0f32..1.0, 512),
        prop::collection::vec(prop_oneof![9 => Just(0.0f32), 1 => -1.0f32..1.0], 512),
        prop::collection::vec(0.5f32..1.0, 512),
        prop::collection::vec(prop_oneof![30 => Just(-0.25f32), 1 => -1.0f32..1.0], 512),
    ];
    (kind, -24..14i32).prop_map(|(x, e)| x.into_iter().map(|v| v * 2f32.powi(e)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn weights_come_back_within_a_bound(x in row()) {
        for dtype in made() {
            let y = dequantized(dtype, &quantized(dtype, &x));
            let block = dtype.layout().block;
            for (x, y) in x.chunks_exact(block).zip(y.chunks_exact(block)) {
                let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
                for (x, y) in x.iter().zip(y) {
                    // Scales are halves, whose steps end at 6e-8; a block multiplies them by up to 127 or 63 * 31.
                    let tiny = 6e-8 * if block == 256 { 2100.0 } else { 128.0 };
                    let slack = bound(dtype) * largest + if dtype.is_float() { 6e-8 } else { tiny };
                    prop_assert!((x - y).abs() <= slack, "{}: {} became {} (largest {})", dtype, x, y, largest);
                }
            }
        }
    }

    #[test]
    fn no_finite_bits_make_garbage(bits in prop::collection::vec(any::<u32>(), 256), small in any::<bool>()) {
        // Without the exponent's upper bit all numbers are below 2, down to denormals.
        let mask = if small { !(1 << 30) } else { !0 };
        let float = |b: u32| Some(f32::from_bits(b & mask)).filter(|v| v.is_finite()).unwrap_or(0.0);
        let x: Vec<f32> = bits.into_iter().map(float).collect();
        for dtype in made() {
            let mut out = Vec::new();
            // Numbers beyond the format are an error; anything else comes back finite.
            if quant::quantize(dtype, &x, &mut out).is_ok() {
                prop_assert!(dequantized(dtype, &out).iter().all(|v| v.is_finite()), "{}", dtype);
            } else {
                prop_assert!(out.is_empty() && !small, "{}", dtype);
            }
        }
    }
}

#[test]
fn whole_numbers_of_levels_come_back_exactly() {
    // Weights that a format can hold exactly must come back so: zeros, constants, a full ramp of levels.
    for dtype in made() {
        assert!(dequantized(dtype, &quantized(dtype, &[0.0; 512])).iter().all(|v| *v == 0.0), "{dtype}");
        let constant = dequantized(dtype, &quantized(dtype, &[0.75; 512]));
        assert!(constant.iter().all(|v| (v - 0.75).abs() < 0.75 * 0.02), "{dtype}: {:?}", &constant[..4]);
    }
    let ramp = |n: i32, low: i32| (0..512).map(|i| (low + i % n) as f32 * 0.125).collect::<Vec<f32>>();
    for (dtype, x) in [
        (DType::Q4_0, ramp(16, -8)),
        (DType::Q4_1, ramp(16, 3)),
        (DType::Q5_0, ramp(32, -16)),
        (DType::Q5_1, ramp(32, -40)),
        (DType::Q4K, ramp(16, -8)),
        (DType::Q5K, ramp(32, -16)),
        (DType::Q2K, ramp(4, -2)),
        (DType::Q3K, ramp(8, -4)),
    ] {
        assert!(mse(dtype, &x) < 1e-6, "{dtype}: {}", mse(dtype, &x));
    }
}

#[test]
fn importances_move_the_error_away_from_important_columns() {
    let truth = Truth::open("sample.safetensors");
    let x = sample(&truth);
    let importance: Vec<f32> = (0..256).map(|c| if c % 8 == 0 { 50.0 } else { 1.0 }).collect();
    for dtype in [DType::Q4_0, DType::Q4_1, DType::Q2K, DType::Q3K, DType::Q4K, DType::Q6K, DType::IQ4XS, DType::MXFP4]
    {
        let mut blocks = Vec::new();
        quant::quantize_weighted(dtype, &x, Some(&importance), &mut blocks).unwrap();
        let important = |y: &[f32]| -> f64 { (0..x.len()).step_by(8).map(|i| f64::from(x[i] - y[i]).powi(2)).sum() };
        let (with, without) =
            (important(&dequantized(dtype, &blocks)), important(&dequantized(dtype, &quantized(dtype, &x))));
        // MXFP4 has little to choose: a power of two a block.
        let part = if dtype == DType::MXFP4 { 1.0 } else { 0.95 };
        assert!(with < part * without, "{dtype}: {with} against {without}");
    }
}

#[test]
fn formats_that_are_not_made_are_refused_by_name() {
    let refused: Vec<DType> = DType::ALL.into_iter().filter(|d| d.no_quantiser().is_some()).collect();
    assert_eq!(
        refused.iter().map(|d| d.layout().name).collect::<Vec<_>>(),
        ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "NVFP4"]
    );
    for dtype in refused {
        let mut out = vec![1];
        let e = quant::quantize(dtype, &[0.5; 256], &mut out).unwrap_err();
        assert!(matches!(&e, Error::Unsupported(m) if m.contains(dtype.layout().name)), "{e}");
        assert_eq!(out, [1]);
    }
}

#[test]
fn bad_weights_are_named() {
    for dtype in made() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![0.5; 512];
            x[300] = bad;
            let mut out = vec![1, 2];
            let e = quant::quantize(dtype, &x, &mut out).unwrap_err();
            assert!(matches!(&e, Error::Model(m) if m.contains("weight 300")), "{dtype}: {e}");
            assert_eq!(out, [1, 2]);
        }
        let too_large = quant::quantize(dtype, &[1e6; 256], &mut Vec::new());
        assert_eq!(too_large.is_ok(), matches!(dtype, DType::F32 | DType::BF16 | DType::MXFP4), "{dtype}");
        if dtype.layout().block > 1 {
            assert!(quant::quantize(dtype, &[0.0; 33], &mut Vec::new()).is_err());
        }
    }
    assert!(quant::quantize(DType::BF16, &[f32::MAX], &mut Vec::new()).is_err());
    let weigh = |w: &[f32]| quant::quantize_weighted(DType::Q4_0, &[1.0; 64], Some(w), &mut Vec::new());
    assert!(weigh(&[1.0; 32]).is_ok() && weigh(&[0.0; 64]).is_ok());
    assert!(weigh(&[]).is_err() && weigh(&[1.0; 48]).is_err());
    assert!(weigh(&[-1.0; 32]).is_err() && weigh(&[f32::NAN; 32]).is_err());
}

#[test]
fn threads_give_the_same_bytes() {
    let truth = Truth::open("sample.safetensors");
    let x = sample(&truth);
    let rows = x.len() / 256;
    for dtype in [DType::Q4K, DType::Q8_0, DType::F16] {
        let one = quantized(dtype, &x);
        for threads in [0, 1, 2, 3, 7, 10_000] {
            assert!(quant::quantize_rows(dtype, rows, 256, &x, threads).unwrap() == one, "{dtype}, {threads}");
        }
        assert!(quant::quantize_rows(dtype, rows, 255, &x, 2).is_err());
        assert!(quant::quantize_rows(dtype, 0, 256, &[], 2).unwrap().is_empty());
        let mut bad = x.clone();
        bad[x.len() - 1] = f32::NAN;
        let e = quant::quantize_rows(dtype, rows, 256, &bad, 2).unwrap_err().to_string();
        assert!(e.contains("row") && e.contains("NaN"), "{e}");
    }
}
