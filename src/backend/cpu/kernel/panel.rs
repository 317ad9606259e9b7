//! Panels: 16 rows of a quantised weight unpacked once and multiplied with many tokens.
//!
//! The codes of 16 rows lie interleaved, four of a row after four of the next, so that one `vpdpbusd` adds four products for
//! each of 16 rows and a token's four activations are one broadcast: no sum across a register, one scale a row in a lane.
//! A panel of 16 × K bytes stays in the first or second cache while the tokens pass by.

use super::super::{act::ActRow, buffer::Aligned};

/// Rows of a panel.
pub const ROWS: usize = 16;

/// From how many tokens on unpacking pays, for scales per 32 weights: measured on Zen 5, 4 tokens at a time by rows do as well.
pub const WORTH: usize = 6;

/// The same for scales per 16 weights.
pub const WORTH_FINE: usize = 9;

/// How a format fills panels.
#[derive(Clone, Copy)]
pub struct Fill {
    /// Unpacks the rows. Safety: the processor has the SIMD level, and a valid job.
    pub fill: unsafe fn(&FillJob),
    /// Multiplies what this fill made. Safety: the processor has the SIMD level, and a valid job.
    pub multiply: unsafe fn(&MultiplyJob<'_>),
    /// Scales are per 16 weights, not 32.
    pub fine: bool,
}

/// What a fill works on.
pub struct FillJob {
    /// First row.
    pub weights: *const u8,
    /// Bytes from row to row.
    pub row_bytes: usize,
    /// Rows, 1 to 16; the others are filled with a scale of 0.
    pub rows: usize,
    /// Weights of a row, a multiple of 32.
    pub cols: usize,
    /// `[cols / 4][16][4]`, with `cols` rounded up to whole 64s.
    pub codes: *mut u8,
    /// `[cols / 16 or 32][16]`, with `cols` rounded up to whole 256s.
    pub scales: *mut f32,
    /// As scales.
    pub mins: *mut f32,
    /// Room for the codes of 16 rows, `[16][cols rounded up to whole 64s]`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only the AVX-512 fill turns whole rows"))]
    pub rows_codes: *mut u8,
}

/// What a multiplication works on: a filled panel and rows of activations.
pub struct MultiplyJob<'a> {
    /// As [`FillJob::codes`].
    pub codes: *const u8,
    /// As [`FillJob::scales`].
    pub scales: *const f32,
    /// As scales.
    pub mins: *const f32,
    /// Weights of a row by 32.
    pub groups: usize,
    /// Rows that are wanted, 1 to 16.
    pub rows: usize,
    /// The tokens' activations.
    pub acts: &'a [ActRow],
    /// Row r of token t goes to `out[t * stride + r]`.
    pub out: *mut f32,
    /// See `out`.
    pub stride: usize,
}

/// A panel's memory.
#[derive(Default)]
pub struct Panel {
    codes: Aligned<u8>,
    rows_codes: Aligned<u8>,
    scales: Aligned<f32>,
    mins: Aligned<f32>,
}

impl Panel {
    /// Room for rows of `cols` weights.
    pub fn reserve(&mut self, cols: usize) {
        let n = cols.next_multiple_of(256);
        self.codes.grow(n * ROWS);
        self.rows_codes.grow(n * ROWS);
        self.scales.grow(n / 16 * ROWS);
        self.mins.grow(n / 16 * ROWS);
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.codes.bytes() + self.rows_codes.bytes() + self.scales.bytes() + self.mins.bytes()
    }

    /// Unpacks `rows` rows of `cols` weights.
    ///
    /// # Safety
    /// The processor has the fill's SIMD level; the rows lie one behind the other from `weights` on, of the fill's format.
    pub unsafe fn fill(&mut self, fill: Fill, weights: *const u8, row_bytes: usize, rows: usize, cols: usize) {
        self.reserve(cols);
        let job = FillJob {
            weights,
            row_bytes,
            rows,
            cols,
            codes: self.codes.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            mins: self.mins.as_mut_ptr(),
            rows_codes: self.rows_codes.as_mut_ptr(),
        };
        // SAFETY: the buffers have the sizes that the job states; the rest is the caller's.
        unsafe { (fill.fill)(&job) }
    }

    /// Multiplies the panel with tokens: row r of token t goes to `out[t * stride + r]`, for `rows` rows.
    ///
    /// # Safety
    /// The panel was filled with rows of `cols` weights by `fill`; the processor has its SIMD level; `acts` are rows of `cols`
    /// activations.
    pub unsafe fn multiply(
        &self,
        fill: Fill,
        cols: usize,
        rows: usize,
        acts: &[ActRow],
        out: &mut [f32],
        stride: usize,
    ) {
        assert!(rows <= ROWS && (acts.is_empty() || out.len() >= (acts.len() - 1) * stride + rows));
        let job = MultiplyJob {
            codes: self.codes.as_ptr(),
            scales: self.scales.as_ptr(),
            mins: self.mins.as_ptr(),
            groups: cols / 32,
            rows,
            acts,
            out: out.as_mut_ptr(),
            stride,
        };
        // SAFETY: the panel holds what the caller says; `out` has the room, as asserted.
        unsafe { (fill.multiply)(&job) }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{fill, multiply};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{super::avx512::Codes, ActRow, FillJob, MultiplyJob, ROWS};
    use std::arch::x86_64::*;

    struct Multiply {
        codes: *const u8,
        scales: *const f32,
        mins: *const f32,
        groups: usize,
        mask: u16,
        stride: usize,
    }

    /// Multiplies a panel. Safety: AVX-512 VNNI, and a valid job.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub unsafe fn multiply<const FINE: bool>(job: &MultiplyJob<'_>) {
        let p = Multiply {
            codes: job.codes,
            scales: job.scales,
            mins: job.mins,
            groups: job.groups,
            mask: (0xffffu32 >> (16 - job.rows)) as u16,
            stride: job.stride,
        };
        let mut done = 0;
        while done < job.acts.len() {
            // SAFETY: the panel and the activations are what the job says, `out` has room for every token.
            unsafe {
                let (a, o) = (job.acts.as_ptr().add(done), job.out.add(done * p.stride));
                done += match job.acts.len() - done {
                    8.. => tokens::<8, FINE>(&p, a, o),
                    4.. => tokens::<4, FINE>(&p, a, o),
                    2.. => tokens::<2, FINE>(&p, a, o),
                    _ => tokens::<1, FINE>(&p, a, o),
                };
            }
        }
    }

    /// Gives `T`. Safety: AVX-512 VNNI; `T` activation rows at `acts`, room for `T` rows at `out`, pointers of `p` valid.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn tokens<const T: usize, const FINE: bool>(p: &Multiply, acts: *const ActRow, out: *mut f32) -> usize {
        // SAFETY: every read is within the panel or an activation row, by the contract.
        unsafe {
            let act: [ActRow; T] = std::array::from_fn(|t| *acts.add(t));
            let x: [*const i8; T] = std::array::from_fn(|t| act[t].codes);
            let mut sums = [_mm512_setzero_ps(); T];
            for g in 0..p.groups {
                let codes = p.codes.add(g * 32 * ROWS);
                if FINE {
                    let mut both = [_mm512_setzero_ps(); T];
                    for h in 0..2 {
                        let s = _mm512_load_ps(p.scales.add((2 * g + h) * ROWS));
                        let m = _mm512_load_ps(p.mins.add((2 * g + h) * ROWS));
                        let dots = dots::<T, 4>(codes.add(h * 16 * ROWS), &x, 32 * g + 16 * h);
                        for t in 0..T {
                            both[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), s, both[t]);
                            let low = _mm512_set1_ps(*act[t].sums16.add(2 * g + h));
                            sums[t] = _mm512_fnmadd_ps(m, low, sums[t]);
                        }
                    }
                    for t in 0..T {
                        sums[t] = _mm512_fmadd_ps(both[t], _mm512_set1_ps(*act[t].scales.add(g)), sums[t]);
                    }
                } else {
                    let s = _mm512_load_ps(p.scales.add(g * ROWS));
                    let m = _mm512_load_ps(p.mins.add(g * ROWS));
                    let dots = dots::<T, 8>(codes, &x, 32 * g);
                    for t in 0..T {
                        let scale = _mm512_mul_ps(s, _mm512_set1_ps(*act[t].scales.add(g)));
                        sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, sums[t]);
                        sums[t] = _mm512_fnmadd_ps(m, _mm512_set1_ps(*act[t].sums32.add(g)), sums[t]);
                    }
                }
            }
            for t in 0..T {
                _mm512_mask_storeu_ps(out.add(t * p.stride), p.mask, sums[t]);
            }
        }
        T
    }

    /// Sums over `4 * STEPS` weights for 16 rows and `T` tokens.
    #[inline(always)]
    unsafe fn dots<const T: usize, const STEPS: usize>(
        codes: *const u8,
        x: &[*const i8; T],
        at: usize,
    ) -> [__m512i; T] {
        // SAFETY: as `multiply`.
        unsafe {
            let mut dots = [_mm512_setzero_si512(); T];
            for i in 0..STEPS {
                let w = _mm512_load_si512(codes.add(64 * i).cast());
                for t in 0..T {
                    let four = x[t].add(at + 4 * i).cast::<i32>().read_unaligned();
                    dots[t] = _mm512_dpbusd_epi32(dots[t], w, _mm512_set1_epi32(four));
                }
            }
            dots
        }
    }

    /// Unpacks 16 rows. Safety: AVX-512 VNNI and a valid job.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub unsafe fn fill<F: Codes>(job: &FillJob) {
        let stride = job.cols.next_multiple_of(64);
        let per = if F::FINE { 16 } else { 32 };
        let groups = job.cols.next_multiple_of(256) / per;
        for r in 0..ROWS {
            // SAFETY: rows below `job.rows` exist; the job's buffers have the sizes that it states.
            unsafe {
                if r >= job.rows {
                    for g in 0..groups {
                        *job.scales.add(g * ROWS + r) = 0.0;
                        *job.mins.add(g * ROWS + r) = 0.0;
                    }
                    continue;
                }
                row::<F>(job, r, job.rows_codes.add(r * stride));
            }
        }
        for c in (0..stride).step_by(64) {
            // SAFETY: both buffers hold 16 rows of `stride` codes.
            unsafe { interleave(job.rows_codes.add(c), stride, job.codes.add(c * ROWS)) }
        }
    }

    /// Unpacks one row: codes to `codes`, scales and minima to the panel.
    #[inline(always)]
    unsafe fn row<F: Codes>(job: &FillJob, r: usize, codes: *mut u8) {
        let turn_bytes = 256 / F::BLOCK * F::BYTES;
        let per_turn = if F::FINE { 16 } else { 8 };
        let whole = job.cols / 256;
        // SAFETY: the row has `cols` weights; the buffers have the sizes that the job states.
        unsafe {
            let row = job.weights.add(r * job.row_bytes);
            let factor = _mm512_set1_ps(F::OFFSET);
            for b in 0..whole {
                let p = row.add(b * turn_bytes);
                for (i, q) in F::codes(p).into_iter().enumerate() {
                    _mm512_storeu_si512(codes.add(256 * b + 64 * i).cast(), q);
                }
                let s = F::scales(p);
                let m = if F::MINIMA { F::minima(p) } else { _mm512_mul_ps(s, factor) };
                let (mut ss, mut mm) = ([0f32; 16], [0f32; 16]);
                _mm512_storeu_ps(ss.as_mut_ptr(), s);
                _mm512_storeu_ps(mm.as_mut_ptr(), m);
                for j in 0..per_turn {
                    *job.scales.add((b * per_turn + j) * ROWS + r) = ss[j];
                    *job.mins.add((b * per_turn + j) * ROWS + r) = mm[j];
                }
            }
            if F::BLOCK == 32 {
                let mut b = whole * 8;
                while b < job.cols / 32 {
                    let p = row.add(b * F::BYTES);
                    let second = b + 1 < job.cols / 32;
                    let q = if second { p.add(F::BYTES) } else { p };
                    _mm512_storeu_si512(codes.add(32 * b).cast(), F::pair(p, q));
                    for (i, block) in [p, q].into_iter().enumerate().take(1 + usize::from(second)) {
                        let (s, m) = F::one(block);
                        *job.scales.add((b + i) * ROWS + r) = s;
                        *job.mins.add((b + i) * ROWS + r) = if F::MINIMA { m } else { s * F::OFFSET };
                    }
                    b += 2;
                }
            }
        }
    }

    /// 16 rows of 64 codes, `stride` apart, to `[16][16][4]`: a transpose of 16 × 16 words.
    #[inline(always)]
    unsafe fn interleave(from: *const u8, stride: usize, to: *mut u8) {
        // SAFETY: by the caller: 16 readable rows of 64 bytes, 1024 writable bytes.
        unsafe {
            let mut a: [__m512i; 16] = [_mm512_setzero_si512(); 16];
            for r in 0..16 {
                a[r] = _mm512_loadu_si512(from.add(r * stride).cast());
            }
            // Words, then pairs of words, of four rows each: lane l of b[4 i + j] holds word 4 l + j of rows 4 i .. 4 i + 4.
            let mut b = a;
            for i in 0..4 {
                let [r0, r1, r2, r3] = [a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]];
                let (l01, h01) = (_mm512_unpacklo_epi32(r0, r1), _mm512_unpackhi_epi32(r0, r1));
                let (l23, h23) = (_mm512_unpacklo_epi32(r2, r3), _mm512_unpackhi_epi32(r2, r3));
                b[4 * i] = _mm512_unpacklo_epi64(l01, l23);
                b[4 * i + 1] = _mm512_unpackhi_epi64(l01, l23);
                b[4 * i + 2] = _mm512_unpacklo_epi64(h01, h23);
                b[4 * i + 3] = _mm512_unpackhi_epi64(h01, h23);
            }
            // Then a transpose of the 4 × 4 lanes: output word 4 l + j takes lane l of b[j], b[4 + j], b[8 + j], b[12 + j].
            for j in 0..4 {
                let (x, y, z, w) = (b[j], b[4 + j], b[8 + j], b[12 + j]);
                let (xy0, xy1) = (_mm512_shuffle_i32x4::<0x44>(x, y), _mm512_shuffle_i32x4::<0xee>(x, y));
                let (zw0, zw1) = (_mm512_shuffle_i32x4::<0x44>(z, w), _mm512_shuffle_i32x4::<0xee>(z, w));
                _mm512_storeu_si512(to.add(64 * j).cast(), _mm512_shuffle_i32x4::<0x88>(xy0, zw0));
                _mm512_storeu_si512(to.add(64 * (4 + j)).cast(), _mm512_shuffle_i32x4::<0xdd>(xy0, zw0));
                _mm512_storeu_si512(to.add(64 * (8 + j)).cast(), _mm512_shuffle_i32x4::<0x88>(xy1, zw1));
                _mm512_storeu_si512(to.add(64 * (12 + j)).cast(), _mm512_shuffle_i32x4::<0xdd>(xy1, zw1));
            }
        }
    }
}
