//! Products with packed weights with AVX-512 VNNI: a chunk a vector, sixteen rows in sixteen lanes.
//!
//! Integer sums of 16 or 32 products start at minus the format's offset times the sum of the activations' codes, so the offset
//! costs nothing and loses nothing; they are scaled in f32. Minima meet the activations' sums.

use super::{
    super::{
        by_format,
        formats::{FP4, IQ4},
    },
    Form, GROUP, Job, Kernels, ROWS, SUPER, Scales,
};
use crate::{backend::cpu::act::Line, quant::DType};
use std::arch::x86_64::*;

pub fn kernels(dtype: DType) -> Kernels {
    by_format!(dtype, types, of)
}

fn of<F: Format>() -> Kernels {
    Kernels { by: [multiply::<F, 1>, multiply::<F, 2>, multiply::<F, 4>, multiply::<F, 8>] }
}

/// What the kernel needs to know of a format at compile time.
trait Format {
    const FORM: Form;
    /// What codes of 4 bits stand for.
    const TABLE: Option<&'static [u8; 16]>;
    /// Subtracted from every code.
    const OFFSET: i32;
}

mod types {
    use super::*;

    macro_rules! format {
        ($name:ident, $dtype:ident, $offset:literal, $table:expr) => {
            pub struct $name;
            impl Format for $name {
                const FORM: Form = match Form::of(DType::$dtype) {
                    Some(form) => form,
                    None => unreachable!(),
                };
                const TABLE: Option<&'static [u8; 16]> = $table;
                const OFFSET: i32 = $offset;
            }
        };
    }

    format!(Q4_0, Q4_0, 8, None);
    format!(Q4_1, Q4_1, 0, None);
    format!(Q5_0, Q5_0, 16, None);
    format!(Q5_1, Q5_1, 0, None);
    format!(Q8_0, Q8_0, 128, None);
    format!(Q2K, Q2K, 0, None);
    format!(Q3K, Q3K, 4, None);
    format!(Q4K, Q4K, 0, None);
    format!(Q5K, Q5K, 0, None);
    format!(Q6K, Q6K, 32, None);
    format!(Iq4Nl, IQ4NL, 128, Some(&IQ4));
    format!(Iq4Xs, IQ4XS, 128, Some(&IQ4));
    format!(Mxfp4, MXFP4, 12, Some(&FP4));
}

/// Safety: see [`super::Kernel`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn multiply<F: Format, const T: usize>(job: &Job) {
    // SAFETY: every read is within the panel or an activation row, by the contract; the prefetch may name any address.
    unsafe {
        let acts: [*const Line; T] = std::array::from_fn(|t| (*job.acts.add(t)).lines);
        let mut sums = [_mm512_setzero_ps(); T];
        let groups = job.cols / GROUP;
        let (mut p, mut done) = (job.panel, 0);
        while done + SUPER <= groups {
            one_super::<F, T>(job, p, done, SUPER, &acts, &mut sums);
            p = p.add(F::FORM.super_bytes(SUPER));
            done += SUPER;
        }
        if done < groups {
            one_super::<F, T>(job, p, done, groups - done, &acts, &mut sums);
        }
        let mask = (0xffffu32 >> (ROWS - job.rows)) as u16;
        for t in 0..T {
            _mm512_mask_storeu_ps(job.out.add(t * job.stride), mask, sums[t]);
        }
    }
}

/// `groups` groups at `p`, the first of which is group `first` of the row.
#[inline(always)]
unsafe fn one_super<F: Format, const T: usize>(
    job: &Job,
    p: *const u8,
    first: usize,
    groups: usize,
    acts: &[*const Line; T],
    sums: &mut [__m512; T],
) {
    // SAFETY: as `multiply`.
    unsafe {
        let scales = p.add(groups * F::FORM.code_bytes());
        let once = scales.add(groups * F::FORM.scale_bytes());
        let (d, dmin) = match F::FORM.scales {
            Scales::ByteMin | Scales::Nibble => (halves(once), halves(once.add(2 * ROWS))),
            Scales::Byte => (halves(once), _mm512_setzero_ps()),
            _ => (_mm512_setzero_ps(), _mm512_setzero_ps()),
        };
        for i in 0..groups {
            let (codes, s) = (p.add(i * F::FORM.code_bytes()), scales.add(i * F::FORM.scale_bytes()));
            // Every line of a super, scales too, shared out among its groups.
            let lines = const { F::FORM.super_bytes(SUPER).div_ceil(64 * SUPER) };
            job.ask(p.wrapping_add(64 * i * lines), lines);
            if F::FORM.fine {
                fine::<F, T>(codes, s, (d, dmin), first + i, acts, sums);
            } else {
                coarse::<F, T>(codes, s, (d, dmin), first + i, acts, sums);
            }
        }
    }
}

/// One group with one scale a row.
#[inline(always)]
unsafe fn coarse<F: Format, const T: usize>(
    codes: *const u8,
    s: *const u8,
    (d, dmin): (__m512, __m512),
    g: usize,
    acts: &[*const Line; T],
    sums: &mut [__m512; T],
) {
    // SAFETY: as `multiply`.
    unsafe {
        let scale = match F::FORM.scales {
            Scales::Half | Scales::HalfMin => halves(s),
            Scales::ByteMin => _mm512_mul_ps(whole(s), d),
            Scales::Power => powers(s),
            _ => _mm512_mul_ps(signed(s), d),
        };
        let mut dots: [__m512i; T] = std::array::from_fn(|t| {
            if F::OFFSET == 0 {
                return _mm512_setzero_si512();
            }
            _mm512_set1_epi32(-F::OFFSET * (*acts[t].add(g)).isum)
        });
        for k in 0..8 {
            let w = step::<F>(codes, k);
            for t in 0..T {
                dots[t] = _mm512_dpbusd_epi32(dots[t], w, four(acts[t].add(g), k));
            }
        }
        for t in 0..T {
            let x = _mm512_mul_ps(scale, _mm512_set1_ps((*acts[t].add(g)).scale));
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), x, sums[t]);
        }
        let low = |t: usize| _mm512_set1_ps((*acts[t].add(g)).sum);
        match F::FORM.scales {
            Scales::HalfMin => {
                let m = halves(s.add(2 * ROWS));
                (0..T).for_each(|t| sums[t] = _mm512_fmadd_ps(m, low(t), sums[t]));
            }
            Scales::ByteMin => {
                let m = _mm512_mul_ps(whole(s.add(ROWS)), dmin);
                (0..T).for_each(|t| sums[t] = _mm512_fnmadd_ps(m, low(t), sums[t]));
            }
            _ => {}
        }
    }
}

/// One group with two scales a row.
#[inline(always)]
unsafe fn fine<F: Format, const T: usize>(
    codes: *const u8,
    s: *const u8,
    (d, dmin): (__m512, __m512),
    g: usize,
    acts: &[*const Line; T],
    sums: &mut [__m512; T],
) {
    // SAFETY: as `multiply`.
    unsafe {
        let mut both = [_mm512_setzero_ps(); T];
        for h in 0..2 {
            let of = s.add(ROWS * h);
            let scale = match F::FORM.scales {
                Scales::Nibble => _mm512_mul_ps(nibbles(of, 0), d),
                _ => _mm512_mul_ps(signed(of), d),
            };
            let mut dots: [__m512i; T] = std::array::from_fn(|t| {
                if F::OFFSET == 0 {
                    return _mm512_setzero_si512();
                }
                _mm512_set1_epi32(-F::OFFSET * (*acts[t].add(g)).isums16[h])
            });
            for k in 4 * h..4 * h + 4 {
                let w = step::<F>(codes, k);
                for t in 0..T {
                    dots[t] = _mm512_dpbusd_epi32(dots[t], w, four(acts[t].add(g), k));
                }
            }
            for t in 0..T {
                both[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, both[t]);
            }
            if F::FORM.scales == Scales::Nibble {
                let m = _mm512_mul_ps(nibbles(of, 4), dmin);
                for t in 0..T {
                    sums[t] = _mm512_fnmadd_ps(m, _mm512_set1_ps((*acts[t].add(g)).sums16[h]), sums[t]);
                }
            }
        }
        for t in 0..T {
            sums[t] = _mm512_fmadd_ps(both[t], _mm512_set1_ps((*acts[t].add(g)).scale), sums[t]);
        }
    }
}

/// The codes of columns `4 k .. 4 k + 4` of a group, for 16 rows.
#[inline(always)]
unsafe fn step<F: Format>(codes: *const u8, k: usize) -> __m512i {
    // SAFETY: the group is readable, by the contract of `multiply`.
    unsafe {
        let chunk = |i: usize| _mm512_load_si512(codes.add(64 * i).cast());
        let (bits, more) = F::FORM.bits;
        let low = match bits {
            8 => chunk(k),
            4 => part(chunk(k / 2), 4 * (k % 2), 0, 15),
            _ => part(chunk(k / 4), 2 * (k % 4), 0, 3),
        };
        let low = match F::TABLE {
            Some(table) => _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), low),
            None => low,
        };
        match more {
            1 => _mm512_or_si512(low, part(chunk(bits), k, bits, 1)),
            2 => _mm512_or_si512(low, part(chunk(bits + k / 4), 2 * (k % 4), bits, 3)),
            _ => low,
        }
    }
}

/// The bits of each byte from `from` on, `mask` of them (as a number), moved to bit `to`.
#[inline(always)]
unsafe fn part(v: __m512i, from: usize, to: usize, mask: u8) -> __m512i {
    // SAFETY: features by the contract of `multiply`.
    unsafe {
        // Counts are known where this is inlined, so these become shifts by an immediate.
        let moved = match from.cmp(&to) {
            std::cmp::Ordering::Equal => v,
            std::cmp::Ordering::Greater => _mm512_srl_epi16(v, _mm_cvtsi32_si128((from - to) as i32)),
            std::cmp::Ordering::Less => _mm512_sll_epi16(v, _mm_cvtsi32_si128((to - from) as i32)),
        };
        _mm512_and_si512(moved, _mm512_set1_epi8((mask << to) as i8))
    }
}

/// Activations `4 k .. 4 k + 4` of a line, for every row.
#[inline(always)]
unsafe fn four(line: *const Line, k: usize) -> __m512i {
    // SAFETY: the row has this line, by the contract of `multiply`.
    unsafe { _mm512_set1_epi32(line.cast::<i32>().add(k).read()) }
}

/// Sixteen halves.
#[inline(always)]
unsafe fn halves(p: *const u8) -> __m512 {
    // SAFETY: readable by the contract of `multiply`.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
}

/// Sixteen bytes without sign.
#[inline(always)]
unsafe fn whole(p: *const u8) -> __m512 {
    // SAFETY: readable by the contract of `multiply`.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
}

/// Sixteen bytes with sign.
#[inline(always)]
unsafe fn signed(p: *const u8) -> __m512 {
    // SAFETY: readable by the contract of `multiply`.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
}

/// The nibbles of sixteen bytes: the low ones or those from bit 4 on.
#[inline(always)]
unsafe fn nibbles(p: *const u8, from: i32) -> __m512 {
    // SAFETY: readable by the contract of `multiply`.
    unsafe {
        let v = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        let v = _mm512_and_si512(_mm512_srl_epi32(v, _mm_cvtsi32_si128(from)), _mm512_set1_epi32(15));
        _mm512_cvtepi32_ps(v)
    }
}

/// Sixteen scales of MXFP4, as [`super::super::formats::e8m0_half`] says.
#[inline(always)]
unsafe fn powers(p: *const u8) -> __m512 {
    // SAFETY: readable by the contract of `multiply`.
    unsafe {
        let e = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
        let small = _mm512_sllv_epi32(_mm512_set1_epi32(0x0020_0000), e);
        let is_small = _mm512_cmplt_epu32_mask(e, _mm512_set1_epi32(2));
        _mm512_castsi512_ps(_mm512_mask_mov_epi32(normal, is_small, small))
    }
}
