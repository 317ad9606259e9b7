//! The CPU backend by itself: every format's products at every SIMD level, the thread pool (`cpu/pool.rs`), and independence of
//! the number of threads. Parity of ops with the reference is in `parity`, at every SIMD level.

mod pool;
mod program;

use crate::quant::dequantized;
use moeray::{
    backend::cpu::{self, SimdLevel, pool::Pool},
    file::{Bytes, Tensor},
    ops::linear::Activations,
    quant::DType,
};
use proptest::prelude::*;

/// splitmix64.
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in -1 .. 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// Random blocks of a format: all bits random, but the scales are numbers of a sensible size.
pub fn blocks(dtype: DType, weights: usize, rng: &mut Rng) -> Vec<u8> {
    let l = dtype.layout();
    let bytes = (0..weights / l.block * l.bytes).map(|_| rng.next() as u8).collect();
    with_scales(dtype, bytes, rng)
}

/// Blocks of these bytes, but for the scales, which become numbers of a sensible size.
fn with_scales(dtype: DType, mut bytes: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    let l = dtype.layout();
    let scales: &[usize] = match dtype {
        DType::F32 | DType::F16 | DType::BF16 | DType::MXFP4 => &[],
        DType::Q4_1 | DType::Q5_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        DType::TQ1_0 => &[52],
        DType::TQ2_0 => &[64],
        DType::IQ1M | DType::NVFP4 => &[],
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 | DType::IQ4NL | DType::IQ4XS => &[0],
        DType::IQ1S | DType::IQ2XXS | DType::IQ2XS | DType::IQ2S | DType::IQ3XXS | DType::IQ3S => &[0],
    };
    for block in bytes.chunks_exact_mut(l.bytes) {
        let x = rng.unit() * 0.05;
        match dtype {
            DType::F32 => block.copy_from_slice(&x.to_le_bytes()),
            DType::F16 => block.copy_from_slice(&half::f16::from_f32(x).to_le_bytes()),
            DType::BF16 => block.copy_from_slice(&half::bf16::from_f32(x).to_le_bytes()),
            DType::MXFP4 => block[0] = 118 + block[0] % 8,
            // Its d is in the upper four bits of four words.
            DType::IQ1M => {
                let d = half::f16::from_f32(rng.unit() * 0.01).to_bits();
                (0..4).for_each(|i| block[49 + 2 * i] = block[49 + 2 * i] & 15 | ((d >> (4 * i) & 15) as u8) << 4);
            }
            DType::NVFP4 => block[..4].iter_mut().for_each(|s| *s &= 0x3f),
            _ => {}
        }
        for at in scales {
            block[*at..at + 2].copy_from_slice(&half::f16::from_f32(rng.unit() * 0.01).to_le_bytes());
        }
    }
    bytes
}

fn matrix(dtype: DType, rows: usize, cols: usize, rng: &mut Rng) -> Tensor {
    let bytes = Bytes::from_vec(blocks(dtype, rows * cols, rng));
    Tensor::new(dtype, vec![rows, cols], vec![bytes]).unwrap()
}

/// Activations with an outlier of a hundred times the others' size in one of fifty places, and a stretch of zeros.
fn activations(n: usize, rng: &mut Rng) -> Vec<f32> {
    (0..n)
        .map(|i| match rng.next() % 50 {
            _ if i % 512 >= 448 && i % 512 < 480 => 0.0,
            0 => rng.unit() * 100.0,
            _ => rng.unit(),
        })
        .collect()
}

/// The activations as the backend is documented to round them: to a 127th of the largest of 32 neighbours.
fn rounded(x: &[f32]) -> Vec<f64> {
    x.chunks(32)
        .flat_map(|g| {
            let top = g.iter().fold(0f32, |a, v| a.max(v.abs()));
            let inverse = if top > 0.0 { 127.0 / top } else { 0.0 };
            g.iter().map(move |v| f64::from((v * inverse).round_ties_even()) * f64::from(top / 127.0))
        })
        .collect()
}

/// Checks `W x` of one matrix against f64 arithmetic on the dequantised weights:
/// - with the activations rounded as documented: up to f32 rounding, 2e-6 of Σ (|w| + 128 steps) |x|, where 128 steps are
///   bounded by the row's largest weight (formats whose codes have an offset sum it apart and subtract it);
/// - with the true activations (quantised formats): within the bound of the rounding, half a step of each activation,
///   Σ |w| · largest of its 32 / 254.
fn check_product(
    level: SimdLevel,
    dtype: DType,
    rows: usize,
    cols: usize,
    tokens: usize,
    pool: &Pool,
) -> Result<(), String> {
    [false, true].into_iter().try_for_each(|repack| check_form(level, dtype, rows, cols, tokens, repack, pool))
}

/// The same from the file's form or a packed copy (where the SIMD level has none: from the file's form again).
fn check_form(
    level: SimdLevel,
    dtype: DType,
    rows: usize,
    cols: usize,
    tokens: usize,
    repack: bool,
    pool: &Pool,
) -> Result<(), String> {
    let mut rng = Rng((rows * 1_000_003 + cols * 1009 + tokens) as u64);
    let weight = matrix(dtype, rows, cols, &mut rng);
    let x = activations(tokens * cols, &mut rng);
    let got = cpu::multiply(&weight, &x, level, Activations::Int8, repack, pool).unwrap();
    let form = if repack { "packed" } else { "mapped" };
    compare_product(&weight, &x, &got)
        .map_err(|e| format!("{dtype} {form} {rows}x{cols}, {tokens} tokens, {}: {e}", level.name()))
}

/// Compares `got`, `[tokens, rows]`, with `weight` times `x` in f64 arithmetic, within the bounds that [`check_product`]
/// states.
fn compare_product(weight: &Tensor, x: &[f32], got: &[f32]) -> Result<(), String> {
    let (dtype, rows, cols) = (weight.dtype(), weight.rows(), weight.cols());
    let tokens = x.len() / cols;
    assert_eq!(got.len(), tokens * rows);
    let at = |t: usize, r: usize| format!("[{t}, {r}]");
    for t in 0..tokens {
        let x = &x[t * cols..(t + 1) * cols];
        let near = if dtype.is_float() { x.iter().map(|v| f64::from(*v)).collect() } else { rounded(x) };
        for r in 0..rows {
            let w: Vec<f64> = dequantized(dtype, weight.row(r)).iter().map(|v| f64::from(*v)).collect();
            let dot = |x: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            let top = w.iter().fold(0.0, |a: f64, v| a.max(v.abs()));
            let size: f64 = w.iter().zip(&near).map(|(w, x)| (w.abs() + top) * x.abs()).sum();
            let y = f64::from(got[t * rows + r]);
            let error = (y - dot(&near)).abs();
            if error.is_nan() || error > 2e-6 * size + 1e-30 {
                return Err(format!("{} = {y}, not {} (error {error:e} of {size:e})", at(t, r), dot(&near)));
            }
            let exact: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let steps = x.chunks(32).flat_map(|g| {
                let top = g.iter().fold(0f32, |a, v| a.max(v.abs()));
                g.iter().map(move |_| f64::from(top) / 254.0)
            });
            let bound: f64 = w.iter().zip(steps).map(|(w, s)| w.abs() * s).sum::<f64>() * 1.001 + 2e-6 * size;
            let error = (y - dot(&exact)).abs();
            if error > bound {
                return Err(format!("{}: error {error:e} above the bound {bound:e}", at(t, r)));
            }
        }
    }
    Ok(())
}

/// Every format × SIMD level × shape × number of tokens (1, 2, 3, 4: rows kernels; 5 to 29: panels with every remainder).
#[test]
fn products() {
    let pool = Pool::new(2).unwrap();
    let levels = cpu::SimdLevel::available();
    println!("SIMD levels under test: {levels:?}");
    let mut ran = 0;
    for dtype in DType::ALL {
        for &level in &levels {
            for cols in [32, 64, 96, 256, 288, 512, 800] {
                if cols % dtype.layout().block != 0 {
                    continue;
                }
                for (rows, tokens) in
                    [(1, 1), (2, 1), (3, 2), (5, 3), (17, 4), (5, 5), (35, 6), (1, 7), (16, 21), (33, 15), (18, 29)]
                {
                    check_product(level, dtype, rows, cols, tokens, &pool).unwrap();
                    ran += 1;
                }
            }
        }
    }
    // 10 formats take all seven widths, one the three multiples of 64, 15 only the two multiples of 256.
    assert_eq!(ran, levels.len() * 11 * (10 * 7 + 3 + 15 * 2));
}

/// Float rows need not be whole vectors.
#[test]
fn float_rows_of_any_length() {
    let pool = Pool::new(1).unwrap();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for level in cpu::SimdLevel::available() {
            for cols in [1, 3, 15, 17, 63, 65, 100, 300] {
                for tokens in [1, 2, 5, 64, 77] {
                    check_product(level, dtype, 6, cols, tokens, &pool).unwrap();
                }
            }
        }
    }
}

/// The comparison of [`check_product`] rejects the product with a matrix of which one quant differs by one bit, at every SIMD
/// level, from the file's blocks and from a packed copy.
#[test]
fn alarm_one_quant_off_is_seen() {
    let pool = Pool::new(1).unwrap();
    for dtype in DType::ALL {
        let good = blocks(dtype, 512, &mut Rng(7));
        let weights = dequantized(dtype, &good);
        let top = weights.iter().fold(0f32, |a, w| a.max(w.abs()));
        let flipped = |at: usize| {
            let mut bad = good.clone();
            bad[at] ^= 1;
            bad
        };
        let errors =
            |bad: &[u8]| -> Vec<f32> { dequantized(dtype, bad).iter().zip(&weights).map(|(b, g)| b - g).collect() };
        // The first bit that changes few weights, each by more than rounding. (A bit of a scale changes all of a block.)
        let changes_a_quant = |at: &usize| {
            let errors = errors(&flipped(*at));
            let changed = errors.iter().filter(|e| **e != 0.0).count();
            (1..=8).contains(&changed) && errors.iter().all(|e| *e == 0.0 || (e.abs() > top / 300.0 && e.is_finite()))
        };
        let at = (dtype.layout().bytes / 2..good.len()).find(changes_a_quant).unwrap();
        // Half a thousand activations of 1 beside a large one whose weight is wrong; of several such weights, which are one point
        // of a grid, with signs such that their errors add up.
        let x: Vec<f32> =
            errors(&flipped(at)).iter().map(|e| if *e == 0.0 { 1.0 } else { 64f32.copysign(*e) }).collect();
        let tensor = |bytes: Vec<u8>| Tensor::new(dtype, vec![1, 512], vec![Bytes::from_vec(bytes)]).unwrap();
        let (right, wrong) = (tensor(good.clone()), tensor(flipped(at)));
        for level in cpu::SimdLevel::available() {
            for repack in [false, true] {
                let product = |w: &Tensor| cpu::multiply(w, &x, level, Activations::Int8, repack, &pool).unwrap();
                let what = format!("{dtype} {}, packed: {repack}", level.name());
                compare_product(&right, &x, &product(&right)).map_err(|e| format!("{what}: {e}")).unwrap();
                assert!(compare_product(&right, &x, &product(&wrong)).is_err(), "{what}: one quant off passed");
            }
        }
    }
}

/// Infinities and not-a-numbers in activations reach the result.
#[test]
fn bad_numbers_are_not_hidden() {
    let pool = Pool::new(1).unwrap();
    let mut rng = Rng(3);
    for dtype in DType::ALL {
        let w = matrix(dtype, 1, 256, &mut rng);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = activations(256, &mut rng);
            x[77] = bad;
            for level in cpu::SimdLevel::available() {
                let y = cpu::multiply(&w, &x, level, Activations::Int8, false, &pool).unwrap()[0];
                assert!(!y.is_finite(), "{dtype} {}: {bad} became {y}", level.name());
            }
        }
    }
}

#[test]
fn wrong_arguments_are_errors() {
    let pool = Pool::new(1).unwrap();
    let w = matrix(DType::F32, 1, 8, &mut Rng(1));
    assert!(cpu::multiply(&w, &[0.0; 9], SimdLevel::Scalar, Activations::Int8, false, &pool).is_err());
    assert!(Pool::new(0).is_err());
    assert!(Pool::new(100_000).is_err());
}

#[test]
fn bandwidth_is_a_number() {
    let b = cpu::measure_bandwidth(1).unwrap();
    assert!(b > 1e8 && b < 1e13, "{b}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Shapes that nobody thought of.
    #[test]
    fn products_of_any_shape(rows in 1usize..70, groups in 1usize..20, tokens in 1usize..40, format in 0usize..16) {
        let dtype = DType::ALL[format];
        let cols = groups * if dtype.layout().block == 256 { 256 } else { 32 };
        let pool = Pool::new(2).unwrap();
        for level in cpu::SimdLevel::available() {
            check_product(level, dtype, rows, cols.min(2048), tokens, &pool).map_err(TestCaseError::fail)?;
        }
    }
}
