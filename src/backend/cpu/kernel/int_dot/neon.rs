//! NEON with the dot product instructions of ARMv8.2 (`sdot`).
//!
//! Quants are multiplied as signed numbers: those below 128 as they are, those of 8 bits less 128.

use super::{IntDot, kernels};
use crate::quant::unpack::{InBlock, Portable, SignedWords, Unpack, Words};
use std::arch::{aarch64::*, asm};

/// NEON with `dotprod`.
#[derive(Clone, Copy)]
pub struct Neon(());

kernels!(
    /// NEON with dot products.
    dotprod, super::Neon, "neon,dotprod");

/// `sum + ` sums of four neighbouring products. Rust's own intrinsic is not stable yet.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the processor has the instruction by the contract of `IntDot`; it changes `sum` only.
    unsafe {
        asm!(".arch_extension dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// Functions whose body is an expression over intrinsics; the contract of `IntDot` holds.
macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        // SAFETY: as the contract of `IntDot` says: the features are there, pointers are valid.
        unsafe fn $name($($arg: $ty),*) $(-> $ret)? { unsafe { $body } }
    )*};
}

type Bytes = (uint8x16_t, uint8x16_t);
type Floats = (float32x4_t, float32x4_t);

/// The address of the `N` bytes from `at` on.
#[inline(always)]
fn part<const N: usize>(b: &[u8], at: usize) -> *const u8 {
    b[at..at + N].as_ptr()
}

impl Unpack for Neon {
    type Bytes = Bytes;
    type Groups<'a> = InBlock<'a>;

    #[inline(always)]
    fn groups<'a>(self, first: InBlock<'a>, _: InBlock<'a>) -> InBlock<'a> {
        first
    }

    #[inline(always)]
    fn load(self, (b, g): InBlock<'_>, at: impl Fn(usize) -> usize) -> Bytes {
        let p = part::<32>(b, at(g));
        // SAFETY: a value of this type means that the features are there, here and below.
        unsafe { (vld1q_u8(p), vld1q_u8(p.add(16))) }
    }

    #[inline(always)]
    fn nibbles(self, (b, g): InBlock<'_>, at: impl Fn(usize) -> usize) -> Bytes {
        // SAFETY: as above.
        unsafe {
            let v = vld1q_u8(part::<16>(b, at(g)));
            (vandq_u8(v, vdupq_n_u8(15)), vshrq_n_u8::<4>(v))
        }
    }

    #[inline(always)]
    fn field(self, (_, g): InBlock<'_>, v: Bytes, shift: impl Fn(usize) -> usize, mask: u8) -> Bytes {
        // SAFETY: as above.
        unsafe {
            let (by, m) = (vdupq_n_s8(-(shift(g) as i8)), vdupq_n_u8(mask));
            (vandq_u8(vshlq_u8(v.0, by), m), vandq_u8(vshlq_u8(v.1, by), m))
        }
    }

    #[inline(always)]
    fn join<const S: i32>(self, low: Bytes, high: Bytes) -> Bytes {
        // SAFETY: as above.
        unsafe { (vsliq_n_u8::<S>(low.0, high.0), vsliq_n_u8::<S>(low.1, high.1)) }
    }

    #[inline(always)]
    fn lookup(self, table: &[u8; 16], indices: Bytes) -> Bytes {
        // SAFETY: as above.
        unsafe {
            let t = vld1q_u8(table.as_ptr());
            (vqtbl1q_u8(t, indices.0), vqtbl1q_u8(t, indices.1))
        }
    }

    #[inline(always)]
    fn fifth_bits(self, (b, g): InBlock<'_>, v: Bytes, bits: impl Fn(&[u8], usize) -> u32) -> Bytes {
        let [a, b, c, d] = bits(b, g).to_le_bytes();
        // SAFETY: as above.
        unsafe {
            let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let of = |a: u8, b: u8| {
                let set = vtstq_u8(vcombine_u8(vdup_n_u8(a), vdup_n_u8(b)), bit);
                vandq_u8(set, vdupq_n_u8(16))
            };
            (vorrq_u8(v.0, of(a, b)), vorrq_u8(v.1, of(c, d)))
        }
    }

    #[inline(always)]
    fn flip(self, v: Bytes) -> Bytes {
        // SAFETY: as above.
        unsafe { (veorq_u8(v.0, vdupq_n_u8(128)), veorq_u8(v.1, vdupq_n_u8(128))) }
    }

    #[inline(always)]
    fn words<W: Words>(self, (b, g): InBlock<'_>) -> Bytes {
        // SAFETY: as above.
        unsafe { vectors(W::words(b, g)) }
    }

    #[inline(always)]
    fn signed<W: SignedWords>(self, (b, g): InBlock<'_>) -> Bytes {
        let (v, signs) = W::signed(b, g);
        let [a, b, c, d] = signs.to_le_bytes();
        // SAFETY: as above.
        unsafe {
            let v = vectors(v);
            let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let of = |v: uint8x16_t, a: u8, b: u8| {
                let set = vtstq_u8(vcombine_u8(vdup_n_u8(a), vdup_n_u8(b)), bit);
                vsubq_u8(veorq_u8(v, set), set)
            };
            self.flip((of(v.0, a, b), of(v.1, c, d)))
        }
    }

    #[inline(always)]
    fn half(self, b: &[u8], at: usize) -> f32 {
        let bits = u16::from_le_bytes([b[at], b[at + 1]]);
        // SAFETY: as above.
        unsafe { crate::backend::cpu::simd::half_neon(bits) }
    }

    #[inline(always)]
    fn numbers(self, v: [u8; 16]) -> [f32; 16] {
        Portable.numbers(v)
    }

    #[inline(always)]
    fn signed_numbers(self, v: [i8; 16]) -> [f32; 16] {
        Portable.signed_numbers(v)
    }
}

/// Words as two vectors.
#[inline(always)]
unsafe fn vectors(w: [u64; 4]) -> Bytes {
    // SAFETY: the caller has NEON.
    unsafe { (vcombine_u8(vcreate_u8(w[0]), vcreate_u8(w[1])), vcombine_u8(vcreate_u8(w[2]), vcreate_u8(w[3]))) }
}

impl IntDot for Neon {
    type Floats = Floats;
    type Scales = [f32; 16];

    const GROUPS: usize = 1;
    const TOKENS: usize = 4;
    const SIGNED: bool = true;

    functions! {
        fn new() -> Self { Neon(()) }
        fn store(b: Bytes, p: *mut u8) {{ vst1q_u8(p, b.0); vst1q_u8(p.add(16), b.1) }}
        fn activations(p: *const i8) -> Bytes { (vld1q_u8(p.cast()), vld1q_u8(p.add(16).cast())) }
        fn splat(x: f32) -> Floats { (vdupq_n_f32(x), vdupq_n_f32(x)) }
        fn read(p: *const f32) -> Floats { (vld1q_f32(p), vld1q_f32(p.add(4))) }
        fn write(x: Floats, p: *mut f32) {{ vst1q_f32(p, x.0); vst1q_f32(p.add(4), x.1) }}
        fn mul(a: Floats, b: Floats) -> Floats { (vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1)) }
        fn add(a: Floats, b: Floats) -> Floats { (vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1)) }
        fn fma(a: Floats, b: Floats, c: Floats) -> Floats { (vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
        fn fnma(a: Floats, b: Floats, c: Floats) -> Floats { (vfmsq_f32(c.0, a.0, b.0), vfmsq_f32(c.1, a.1, b.1)) }
        fn sum(x: Floats) -> f32 { vaddvq_f32(vaddq_f32(x.0, x.1)) }
    }

    #[inline(always)]
    unsafe fn dot<const EIGHT: bool>(quants: Bytes, x: Bytes) -> Floats {
        // SAFETY: features by the contract of `IntDot`.
        unsafe {
            let of = |c, x| vcvtq_f32_s32(sdot(vdupq_n_s32(0), vreinterpretq_s8_u8(c), vreinterpretq_s8_u8(x)));
            (of(quants.0, x.0), of(quants.1, x.1))
        }
    }

    #[inline(always)]
    unsafe fn dots<const T: usize, const STEPS: usize, const SUMS: usize>(
        quants: *const u8,
        x: [*const i8; T],
    ) -> [Floats; T] {
        // SAFETY: by the contract of `IntDot`.
        unsafe {
            let mut totals = [(vdupq_n_s32(0), vdupq_n_s32(0)); T];
            for i in 0..STEPS {
                let p = quants.add(64 * i).cast::<i8>();
                let (a, b) = (vld1q_s8(p), vld1q_s8(p.add(16)));
                for t in 0..T {
                    let four = vreinterpretq_s8_s32(vdupq_n_s32(x[t].add(4 * i).cast::<i32>().read_unaligned()));
                    totals[t] = (sdot(totals[t].0, a, four), sdot(totals[t].1, b, four));
                }
            }
            totals.map(|(a, b)| (vcvtq_f32_s32(a), vcvtq_f32_s32(b)))
        }
    }

    #[inline(always)]
    unsafe fn interleave(from: *const u8, to: *mut u8) {
        let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
        for r in 0..16 {
            for i in 0..8 {
                // SAFETY: both have 16 rows of eight words, by the contract.
                unsafe { to.add(16 * i + r).write_unaligned(from.add(8 * r + i).read_unaligned()) }
            }
        }
    }

    #[inline(always)]
    unsafe fn times<const SUB16: bool>(s: &[f32; 16], d: f32) -> [f32; 16] {
        let mut out = [0f32; 16];
        for j in 0..if SUB16 { 16 } else { 8 } {
            out[j] = s[j] * d;
        }
        out
    }

    #[inline(always)]
    unsafe fn scales<const SUB16: bool>(s: &[f32; 16], x: *const f32) -> [f32; 16] {
        // SAFETY: the caller's activations have 8 scales.
        let x: [f32; 8] = std::array::from_fn(|g| unsafe { *x.add(g) });
        std::array::from_fn(|j| s[j] * if SUB16 { x[j / 2] } else { x[j % 8] })
    }

    #[inline(always)]
    unsafe fn group_scales<const SUB16: bool>(s: &[f32; 16], g: usize) -> Floats {
        let (a, b) = if SUB16 { (s[2 * g], s[2 * g + 1]) } else { (s[g], s[g]) };
        // SAFETY: features by the contract of `IntDot`.
        unsafe { (vdupq_n_f32(a), vdupq_n_f32(b)) }
    }

    #[inline(always)]
    unsafe fn lows<const SUB16: bool>(m: &[f32; 16], x: *const f32, sum: Floats) -> Floats {
        let m = m.as_ptr();
        // SAFETY: the caller's numbers are readable; features by the contract of `IntDot`.
        unsafe {
            let sum = Self::fma(Self::read(m), Self::read(x), sum);
            if SUB16 { Self::fma(Self::read(m.add(8)), Self::read(x.add(8)), sum) } else { sum }
        }
    }
}
