//! [`F32x16`] of four NEON registers.

use super::F32x16;
use std::arch::{aarch64::*, asm};

/// Four registers of four values.
#[derive(Clone, Copy)]
pub struct Neon([float32x4_t; 4]);

/// Four half-precision values as f32. Rust's own intrinsic needs the type `f16`, which is not stable yet.
#[inline(always)]
unsafe fn widen(half: uint16x4_t) -> float32x4_t {
    let out: float32x4_t;
    // SAFETY: `fcvtl` is in every ARMv8 with NEON; it changes `out` only.
    unsafe {
        asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) out, in(vreg) half, options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// Four f32 values rounded to half precision, ties to even (the rounding mode that programs start with).
#[inline(always)]
unsafe fn narrow(single: float32x4_t) -> uint16x4_t {
    let out: uint16x4_t;
    // SAFETY: `fcvtn` is in every ARMv8 with NEON; it changes `out` only.
    unsafe {
        asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) out, in(vreg) single, options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// One half-precision value as f32.
///
/// # Safety
/// The processor has NEON.
#[inline(always)]
pub unsafe fn half_neon(bits: u16) -> f32 {
    // SAFETY: by the contract.
    unsafe { vgetq_lane_f32::<0>(widen(vdup_n_u16(bits))) }
}

/// Methods whose body is an expression over intrinsics; the features are there by the contract of `F32x16`.
macro_rules! methods {
    ($(fn $name:ident(self $(, $arg:ident: $ty:ty)*) $(-> $ret:ty)? |$s:ident| { $body:expr })*) => {$(
        #[inline(always)]
        // SAFETY: as the contract of `F32x16` says: the features are there, pointers are valid.
        unsafe fn $name(self $(, $arg: $ty)*) $(-> $ret)? { let $s = self.0; unsafe { $body } }
    )*};
}

/// The same instruction on each of the four registers.
macro_rules! four {
    (|$i:ident| $body:expr) => {
        Neon([
            {
                let $i = 0;
                $body
            },
            {
                let $i = 1;
                $body
            },
            {
                let $i = 2;
                $body
            },
            {
                let $i = 3;
                $body
            },
        ])
    };
}

impl F32x16 for Neon {
    type Ints = [int32x4_t; 4];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: the processor has NEON by the contract.
        unsafe { Neon([vdupq_n_f32(x); 4]) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: as above; valid for sixteen values.
        unsafe { four!(|i| vld1q_f32(p.add(4 * i))) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: as above.
        unsafe { four!(|i| widen(vld1_u16(p.add(4 * i)))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: as above.
        unsafe { four!(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(4 * i))))) }
    }
    #[inline(always)]
    unsafe fn ints(x: i32) -> Self::Ints {
        // SAFETY: as above.
        unsafe { [vdupq_n_s32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load_ints(p: *const i32) -> Self::Ints {
        // SAFETY: as above.
        unsafe { [vld1q_s32(p), vld1q_s32(p.add(4)), vld1q_s32(p.add(8)), vld1q_s32(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn widen_i8(p: *const i8) -> Self::Ints {
        // SAFETY: as above.
        unsafe {
            let (a, b) = (vld1q_s8(p), vld1q_s8(p.add(16)));
            let (low, high) = (|x| vmovl_s8(vget_low_s8(x)), |x| vmovl_high_s8(x));
            [low(a), high(a), low(b), high(b)].map(|x| vreinterpretq_s32_s16(x))
        }
    }
    #[inline(always)]
    unsafe fn dot2(a: Self::Ints, b: Self::Ints, sum: Self::Ints) -> Self::Ints {
        // SAFETY: as above.
        std::array::from_fn(|i| unsafe {
            let (a, b) = (vreinterpretq_s16_s32(a[i]), vreinterpretq_s16_s32(b[i]));
            let (low, high) = (vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
            vaddq_s32(sum[i], vpaddq_s32(low, high))
        })
    }
    #[inline(always)]
    unsafe fn from_ints(x: Self::Ints) -> Self {
        // SAFETY: as above.
        Neon(x.map(|x| unsafe { vcvtq_f32_s32(x) }))
    }
    methods! {
        fn store_i16(self, p: *mut i16) |s| {{
            // The conversion makes 0 of not-a-number.
            for (i, x) in s.into_iter().enumerate() {
                vst1_s16(p.add(4 * i), vmovn_s32(vcvtq_s32_f32(x)));
            }
        }}
        fn store(self, p: *mut f32) |s| {{
            vst1q_f32(p, s[0]);
            vst1q_f32(p.add(4), s[1]);
            vst1q_f32(p.add(8), s[2]);
            vst1q_f32(p.add(12), s[3])
        }}
        fn store_f16(self, p: *mut u16) |s| {{
            for (i, x) in s.into_iter().enumerate() {
                vst1_u16(p.add(4 * i), narrow(x));
            }
        }}
        fn store_i8(self, p: *mut i8) |s| {{
            // The conversion makes 0 of not-a-number.
            let words = |i: usize| vcombine_s16(vmovn_s32(vcvtq_s32_f32(s[i])), vmovn_s32(vcvtq_s32_f32(s[i + 1])));
            vst1q_s8(p, vcombine_s8(vmovn_s16(words(0)), vmovn_s16(words(2))))
        }}
        fn add(self, o: Self) -> Self |s| { four!(|i| vaddq_f32(s[i], o.0[i])) }
        fn sub(self, o: Self) -> Self |s| { four!(|i| vsubq_f32(s[i], o.0[i])) }
        fn mul(self, o: Self) -> Self |s| { four!(|i| vmulq_f32(s[i], o.0[i])) }
        fn div(self, o: Self) -> Self |s| { four!(|i| vdivq_f32(s[i], o.0[i])) }
        // A comparison and a selection: `fmax` would drop what is not a number from either side.
        fn max(self, o: Self) -> Self |s| { four!(|i| vbslq_f32(vcgtq_f32(s[i], o.0[i]), s[i], o.0[i])) }
        fn min(self, o: Self) -> Self |s| { four!(|i| vbslq_f32(vcltq_f32(s[i], o.0[i]), s[i], o.0[i])) }
        fn fma(self, m: Self, a: Self) -> Self |s| { four!(|i| vfmaq_f32(a.0[i], s[i], m.0[i])) }
        fn round(self) -> Self |s| { four!(|i| vrndnq_f32(s[i])) }
        fn scale2(self, n: Self) -> Self |s| {
            four!(|i| {
                let e = vaddq_s32(vcvtq_s32_f32(n.0[i]), vdupq_n_s32(127));
                vmulq_f32(s[i], vreinterpretq_f32_s32(vshlq_n_s32::<23>(e)))
            })
        }
        fn sum(self) -> f32 |s| { vaddvq_f32(vaddq_f32(vaddq_f32(s[0], s[1]), vaddq_f32(s[2], s[3]))) }
        fn largest(self) -> f32 |s| { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(s[0], s[1]), vmaxnmq_f32(s[2], s[3]))) }
    }
}
