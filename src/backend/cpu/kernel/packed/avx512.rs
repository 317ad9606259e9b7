//! Products with packed weights with AVX-512 VNNI: a chunk a vector, sixteen rows in sixteen lanes.
//!
//! Integer sums of 16 or 32 products start at minus the format's offset times the sum of the activations' quants, so the offset
//! costs nothing and loses nothing; they are scaled in f32. Minima meet the activations' sums.

use super::{GROUP, Job, Kernels, PackLayout, Packing, ROWS, SUPERBLOCK, pack};
use crate::{
    backend::cpu::{act::ActBlock, simd_level::SimdLevel},
    quant::{
        DType,
        format::{BlockFormat, PackedScales, WithFormat},
    },
};
use std::arch::x86_64::*;

/// How a format is packed; `None` for floats and for formats that are not.
pub fn packing(dtype: DType) -> Option<Packing> {
    dtype.with_format(Of).ok().flatten()
}

struct Of;

impl WithFormat for Of {
    type Output = Option<Packing>;

    fn run<F: BlockFormat>(self) -> Option<Packing> {
        let layout = PackLayout::of::<F>()?;
        let kernels = Kernels { by: [multiply::<F, 1>, multiply::<F, 2>, multiply::<F, 4>, multiply::<F, 8>] };
        // SAFETY: the caller of `pack` says that the processor has this SIMD level.
        Some(Packing { layout, pack: |job| unsafe { pack::pack::<F>(SimdLevel::Avx512Vnni, job) }, kernels })
    }
}

/// The layout of a format as a constant, which the compiler folds before it decides what to unroll and to inline.
struct Of512<F>(std::marker::PhantomData<F>);

impl<F: BlockFormat> Of512<F> {
    /// For a format that is not packed, whose kernels nobody gets, an empty one.
    const LAYOUT: PackLayout = match PackLayout::of::<F>() {
        Some(layout) => layout,
        None => PackLayout { bits: (2, 0), sub16: false, scales: PackedScales::Half },
    };
}

/// Safety: see [`super::Kernel`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn multiply<F: BlockFormat, const T: usize>(job: &Job) {
    // SAFETY: every read is within the panel or an activation row, by the contract; the prefetch may name any address.
    unsafe {
        let acts: [*const ActBlock; T] = std::array::from_fn(|t| (*job.acts.add(t)).blocks);
        let mut sums = [_mm512_setzero_ps(); T];
        let groups = job.cols / GROUP;
        let (mut p, mut done) = (job.panel, 0);
        while done + SUPERBLOCK <= groups {
            one_superblock::<F, T>(job, p, done, SUPERBLOCK, &acts, &mut sums);
            p = p.add(Of512::<F>::LAYOUT.superblock_bytes(SUPERBLOCK));
            done += SUPERBLOCK;
        }
        if done < groups {
            one_superblock::<F, T>(job, p, done, groups - done, &acts, &mut sums);
        }
        let mask = (0xffffu32 >> (ROWS - job.rows)) as u16;
        for t in 0..T {
            _mm512_mask_storeu_ps(job.out.add(t * job.stride), mask, sums[t]);
        }
    }
}

/// `groups` groups at `p`, the first of which is group `first` of the row.
#[inline(always)]
unsafe fn one_superblock<F: BlockFormat, const T: usize>(
    job: &Job,
    p: *const u8,
    first: usize,
    groups: usize,
    acts: &[*const ActBlock; T],
    sums: &mut [__m512; T],
) {
    // SAFETY: as `multiply`.
    unsafe {
        let scales = p.add(groups * Of512::<F>::LAYOUT.quant_bytes());
        let once = scales.add(groups * Of512::<F>::LAYOUT.scale_bytes());
        let (d, dmin) = match Of512::<F>::LAYOUT.scales {
            PackedScales::ByteMin | PackedScales::Nibble => (halves(once), halves(once.add(2 * ROWS))),
            PackedScales::Byte => (halves(once), _mm512_setzero_ps()),
            PackedScales::Half | PackedScales::HalfMin | PackedScales::Power => {
                (_mm512_setzero_ps(), _mm512_setzero_ps())
            }
        };
        for i in 0..groups {
            let (quants, s) =
                (p.add(i * Of512::<F>::LAYOUT.quant_bytes()), scales.add(i * Of512::<F>::LAYOUT.scale_bytes()));
            // Every line of a superblock, scales too, shared out among its groups.
            let lines = const { Of512::<F>::LAYOUT.superblock_bytes(SUPERBLOCK).div_ceil(64 * SUPERBLOCK) };
            job.prefetch(p.wrapping_add(64 * i * lines), lines);
            if Of512::<F>::LAYOUT.sub16 {
                sub_blocks_of_16::<F, T>(quants, s, (d, dmin), first + i, acts, sums);
            } else {
                one_scale::<F, T>(quants, s, (d, dmin), first + i, acts, sums);
            }
        }
    }
}

/// One group with one scale a row.
#[inline(always)]
unsafe fn one_scale<F: BlockFormat, const T: usize>(
    quants: *const u8,
    s: *const u8,
    (d, dmin): (__m512, __m512),
    g: usize,
    acts: &[*const ActBlock; T],
    sums: &mut [__m512; T],
) {
    // SAFETY: as `multiply`.
    unsafe {
        let scale = match Of512::<F>::LAYOUT.scales {
            PackedScales::Half | PackedScales::HalfMin => halves(s),
            PackedScales::ByteMin => _mm512_mul_ps(whole(s), d),
            PackedScales::Power => powers(s),
            PackedScales::Byte => _mm512_mul_ps(signed(s), d),
            // Scales of sub-blocks of 16: see `PackLayout::of`.
            PackedScales::Nibble => _mm512_setzero_ps(),
        };
        let mut dots = [_mm512_setzero_si512(); T];
        if F::OFFSET != 0 {
            for t in 0..T {
                dots[t] = _mm512_set1_epi32(-i32::from(F::OFFSET) * (*acts[t].add(g)).isum);
            }
        }
        for k in 0..8 {
            let w = step::<F>(quants, k);
            for t in 0..T {
                dots[t] = _mm512_dpbusd_epi32(dots[t], w, four(acts[t].add(g), k));
            }
        }
        for t in 0..T {
            let x = _mm512_mul_ps(scale, _mm512_set1_ps((*acts[t].add(g)).scale));
            sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), x, sums[t]);
        }
        // Plain loops: closures that go through the core library are compiled without these instructions where they are not inlined.
        match Of512::<F>::LAYOUT.scales {
            PackedScales::HalfMin => {
                let m = halves(s.add(2 * ROWS));
                for t in 0..T {
                    sums[t] = _mm512_fmadd_ps(m, _mm512_set1_ps((*acts[t].add(g)).sum), sums[t]);
                }
            }
            PackedScales::ByteMin => {
                let m = _mm512_mul_ps(whole(s.add(ROWS)), dmin);
                for t in 0..T {
                    sums[t] = _mm512_fnmadd_ps(m, _mm512_set1_ps((*acts[t].add(g)).sum), sums[t]);
                }
            }
            PackedScales::Half | PackedScales::Byte | PackedScales::Power | PackedScales::Nibble => {}
        }
    }
}

/// One group with two scales a row.
#[inline(always)]
unsafe fn sub_blocks_of_16<F: BlockFormat, const T: usize>(
    quants: *const u8,
    s: *const u8,
    (d, dmin): (__m512, __m512),
    g: usize,
    acts: &[*const ActBlock; T],
    sums: &mut [__m512; T],
) {
    // SAFETY: as `multiply`.
    unsafe {
        let mut both = [_mm512_setzero_ps(); T];
        for h in 0..2 {
            let of = s.add(ROWS * h);
            let scale = match Of512::<F>::LAYOUT.scales {
                PackedScales::Nibble => _mm512_mul_ps(nibbles(of, 0), d),
                PackedScales::Byte => _mm512_mul_ps(signed(of), d),
                // No layout of sub-blocks of 16 has these: see `PackLayout::of`.
                PackedScales::Half | PackedScales::HalfMin | PackedScales::ByteMin | PackedScales::Power => {
                    _mm512_setzero_ps()
                }
            };
            let mut dots = [_mm512_setzero_si512(); T];
            if F::OFFSET != 0 {
                for t in 0..T {
                    dots[t] = _mm512_set1_epi32(-i32::from(F::OFFSET) * (*acts[t].add(g)).isums16[h]);
                }
            }
            for k in 4 * h..4 * h + 4 {
                let w = step::<F>(quants, k);
                for t in 0..T {
                    dots[t] = _mm512_dpbusd_epi32(dots[t], w, four(acts[t].add(g), k));
                }
            }
            for t in 0..T {
                both[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, both[t]);
            }
            if Of512::<F>::LAYOUT.scales == PackedScales::Nibble {
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

/// The quants of columns `4 k .. 4 k + 4` of a group, for 16 rows.
#[inline(always)]
unsafe fn step<F: BlockFormat>(quants: *const u8, k: usize) -> __m512i {
    // SAFETY: the group is readable, by the contract of `multiply`.
    unsafe {
        let chunk = |i: usize| _mm512_load_si512(quants.add(64 * i).cast());
        let (bits, more) = Of512::<F>::LAYOUT.bits;
        // The numbers of bits that are told apart here: another one is no other's.
        const { assert!(matches!(Of512::<F>::LAYOUT.bits, (2 | 4 | 8, 0..=2))) }
        let low = match bits {
            8 => chunk(k),
            4 => part(chunk(k / 2), 4 * (k % 2), 0, 15),
            // 2.
            _ => part(chunk(k / 4), 2 * (k % 4), 0, 3),
        };
        let low = match F::TABLE {
            Some(table) => _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), low),
            None => low,
        };
        match more {
            1 => _mm512_or_si512(low, part(chunk(bits), k, bits, 1)),
            2 => _mm512_or_si512(low, part(chunk(bits + k / 4), 2 * (k % 4), bits, 3)),
            // 0.
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

/// Activations `4 k .. 4 k + 4` of a block, for every row.
#[inline(always)]
unsafe fn four(block: *const ActBlock, k: usize) -> __m512i {
    // SAFETY: the row has this block, by the contract of `multiply`.
    unsafe { _mm512_set1_epi32(block.cast::<i32>().add(k).read()) }
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

/// Sixteen scales of MXFP4, 2^(e - 128).
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
