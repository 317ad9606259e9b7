//! NEON with the dot product instructions of ARMv8.2 (`sdot`).
//!
//! Codes are multiplied as signed numbers: those below 128 as they are, those of 8 bits less 128.

use super::{Wide, kernels};
use std::arch::{aarch64::*, asm};

/// NEON with `dotprod`.
#[derive(Clone, Copy)]
pub struct Neon;

kernels!(
    /// NEON with dot products.
    dotprod, super::Neon, "neon,dotprod");

/// `sum + ` sums of four neighbouring products. Rust's own intrinsic is not stable yet.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the processor has the instruction by the contract of `Wide`; it changes `sum` only.
    unsafe {
        asm!(".arch_extension dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) sum, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// Functions whose body is an expression over intrinsics; the contract of `Wide` holds.
macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        // SAFETY: as the contract of `Wide` says: the features are there, pointers are valid.
        unsafe fn $name($($arg: $ty),*) $(-> $ret)? { unsafe { $body } }
    )*};
}

type Bytes = (uint8x16_t, uint8x16_t);
type Floats = (float32x4_t, float32x4_t);

impl Wide for Neon {
    type Bytes = Bytes;
    type Floats = Floats;

    const SIGNED: bool = true;

    functions! {
        fn load(p: *const u8) -> Bytes { (vld1q_u8(p), vld1q_u8(p.add(16))) }
        fn store(b: Bytes, p: *mut u8) {{ vst1q_u8(p, b.0); vst1q_u8(p.add(16), b.1) }}
        fn nibbles(p: *const u8) -> Bytes {{
            let v = vld1q_u8(p);
            (vandq_u8(v, vdupq_n_u8(15)), vshrq_n_u8::<4>(v))
        }}
        fn field(b: Bytes, shift: usize, mask: u8) -> Bytes {{
            let (by, m) = (vdupq_n_s8(-(shift as i8)), vdupq_n_u8(mask));
            (vandq_u8(vshlq_u8(b.0, by), m), vandq_u8(vshlq_u8(b.1, by), m))
        }}
        fn lookup(table: &[u8; 16], nibbles: Bytes) -> Bytes {{
            let t = vld1q_u8(table.as_ptr());
            (vqtbl1q_u8(t, nibbles.0), vqtbl1q_u8(t, nibbles.1))
        }}
        fn fifth(p: *const u8, codes: Bytes) -> Bytes {{
            let bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040_2010_0804_0201));
            let of = |a: u8, b: u8| {
                let set = vtstq_u8(vcombine_u8(vdup_n_u8(a), vdup_n_u8(b)), bit);
                vandq_u8(set, vdupq_n_u8(16))
            };
            (vorrq_u8(codes.0, of(*p, *p.add(1))), vorrq_u8(codes.1, of(*p.add(2), *p.add(3))))
        }}
        fn flip(b: Bytes) -> Bytes { (veorq_u8(b.0, vdupq_n_u8(128)), veorq_u8(b.1, vdupq_n_u8(128))) }
        fn half(p: *const u8) -> f32 { crate::backend::cpu::simd::half_neon(p.cast::<u16>().read_unaligned()) }
        fn splat(x: f32) -> Floats { (vdupq_n_f32(x), vdupq_n_f32(x)) }
        fn halves(a: f32, b: f32) -> Floats { (vdupq_n_f32(a), vdupq_n_f32(b)) }
        fn read(p: *const f32) -> Floats { (vld1q_f32(p), vld1q_f32(p.add(4))) }
        fn twice(p: *const f32) -> [Floats; 2] {{
            let (a, b) = Self::read(p);
            [(vzip1q_f32(a, a), vzip2q_f32(a, a)), (vzip1q_f32(b, b), vzip2q_f32(b, b))]
        }}
        fn write(x: Floats, p: *mut f32) {{ vst1q_f32(p, x.0); vst1q_f32(p.add(4), x.1) }}
        fn mul(a: Floats, b: Floats) -> Floats { (vmulq_f32(a.0, b.0), vmulq_f32(a.1, b.1)) }
        fn add(a: Floats, b: Floats) -> Floats { (vaddq_f32(a.0, b.0), vaddq_f32(a.1, b.1)) }
        fn fma(a: Floats, b: Floats, c: Floats) -> Floats { (vfmaq_f32(c.0, a.0, b.0), vfmaq_f32(c.1, a.1, b.1)) }
        fn fnma(a: Floats, b: Floats, c: Floats) -> Floats { (vfmsq_f32(c.0, a.0, b.0), vfmsq_f32(c.1, a.1, b.1)) }
        fn sum(x: Floats) -> f32 { vaddvq_f32(vaddq_f32(x.0, x.1)) }
    }

    #[inline(always)]
    unsafe fn join<const S: i32>(low: Bytes, high: Bytes) -> Bytes {
        // SAFETY: features by the contract of `Wide`.
        unsafe { (vsliq_n_u8::<S>(low.0, high.0), vsliq_n_u8::<S>(low.1, high.1)) }
    }

    #[inline(always)]
    unsafe fn dot<const EIGHT: bool>(codes: Bytes, x: Bytes) -> Floats {
        // SAFETY: features by the contract of `Wide`.
        unsafe {
            let of = |c, x| vcvtq_f32_s32(sdot(vdupq_n_s32(0), vreinterpretq_s8_u8(c), vreinterpretq_s8_u8(x)));
            (of(codes.0, x.0), of(codes.1, x.1))
        }
    }

    #[inline(always)]
    unsafe fn dots<const T: usize, const STEPS: usize, const SUMS: usize>(
        codes: *const u8,
        x: [*const i8; T],
    ) -> [Floats; T] {
        // SAFETY: by the contract of `Wide`.
        unsafe {
            let mut totals = [(vdupq_n_s32(0), vdupq_n_s32(0)); T];
            for i in 0..STEPS {
                let (a, b) = Self::load(codes.add(64 * i));
                let (a, b) = (vreinterpretq_s8_u8(a), vreinterpretq_s8_u8(b));
                for t in 0..T {
                    let four = vreinterpretq_s8_s32(vdupq_n_s32(x[t].add(4 * i).cast::<i32>().read_unaligned()));
                    totals[t] = (sdot(totals[t].0, a, four), sdot(totals[t].1, b, four));
                }
            }
            totals.map(|(a, b)| (vcvtq_f32_s32(a), vcvtq_f32_s32(b)))
        }
    }
}
