//! The structs that the host fills and the shaders read, each described once: here, in Rust. The linker writes the WGSL
//! from it, so that no shader has a declaration of its own that could differ.
//!
//! Every kernel has two uniforms: `frame`, of type [`Frame`], and `p`, the struct named after the kernel, which a shader
//! calls `Params`. Offsets and strides of values are in elements (4 bytes, f32 or u32), `*_offset` from the start of the
//! binding.

mod attention;
mod matrix;
mod simple;

pub use attention::*;
pub use matrix::*;
pub use simple::*;

pub use super::numbers::{ACCUMULATE, BIAS, FACTOR, GATE, RESIDUAL};

/// A field of a struct that shaders read.
#[derive(Debug)]
pub struct Field {
    /// Its name, in Rust and in WGSL.
    pub name: &'static str,
    /// Its type, `u32` or `f32` in both languages.
    pub ty: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Bytes of the field.
    pub size: usize,
    /// What it is, with its unit.
    pub doc: &'static str,
}

/// WGSL of a struct, called `name` there, of these fields in order. `tail` is the WGSL of an array of any length at its
/// end, or empty.
pub fn declaration(name: &str, fields: &[Field], tail: &str) -> String {
    let mut text = format!("struct {name} {{\n");
    for f in fields {
        text.push_str(&format!("    {}: {},  //{}\n", f.name, f.ty, f.doc));
    }
    if !tail.is_empty() {
        text.push_str(&format!("    {tail},\n"));
    }
    text.push_str("}\n");
    text
}

/// Makes structs of plain numbers, and of each the list of its fields.
macro_rules! uniforms {
    ($($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $field_doc:literal])* $field:ident : $ty:ident,)* })*) => { $(
        $(#[doc = $doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $($(#[doc = $field_doc])* pub $field: $ty,)* }
        impl $name {
            /// The fields, in order.
            pub const FIELDS: &'static [crate::kernels::params::Field] = &[$(crate::kernels::params::Field {
                name: stringify!($field),
                ty: stringify!($ty),
                offset: std::mem::offset_of!($name, $field),
                size: std::mem::size_of::<$ty>(),
                doc: concat!($($field_doc),*),
            },)*];
        }
    )* };
}
use uniforms;

uniforms! {
    /// Sizes of this step, written once a step.
    Frame {
        /// Tokens of the step (T).
        tokens: u32,
        /// Positions in the cache before the step (P); of several sequences so many that P + T is not before any row's end.
        past: u32,
        /// Rows whose outputs are wanted (O): the last of the T.
        outputs: u32,
        /// First row whose output is wanted, T - O.
        first_output: u32,
        /// Workgroups in y before the first of a dispatch of attention that was cut.
        first_block: u32,
        /// Not used; keeps the size a multiple of 16 bytes.
        reserved_1: u32,
        /// Not used; keeps the size a multiple of 16 bytes.
        reserved_2: u32,
        /// Not used; keeps the size a multiple of 16 bytes.
        reserved_3: u32,
    }

    /// The rows of one sequence in a step, and the slots of its recurrent states.
    Span {
        /// Slot that the states are read from; `STATE_FRESH`: they are zeros.
        source: u32,
        /// Slot that the states are written to.
        target_slot: u32,
        /// Where the sequence's rows begin in the list behind the spans, in u32 words of the buffer.
        first: u32,
        /// Rows of the sequence in the step.
        count: u32,
    }

    /// One token to be chosen after a row of the step.
    Choice {
        /// Sequence whose settings and recent tokens count.
        sequence: u32,
        /// Output row whose logits are looked at.
        row: u32,
        /// Random word in [0, 2^32) that decides which token is sampled.
        random: u32,
        /// 1: only tokens whose bits are set in the choice's mask can be chosen.
        masked: u32,
    }

    /// What a generation wants of the GPU sampler, for one sequence. In the buffer, [`crate::kernels::numbers::FORBIDDEN`] u32 ids of
    /// forbidden tokens follow.
    Settings {
        /// Reciprocal of the temperature; 0: the best token is taken.
        inverse_temperature: f32,
        /// Natural logarithm of min-p: tokens whose logits lie this far below the best one's, or less far, stay.
        log_min_p: f32,
        /// Repetition penalty; 1: none.
        penalty: f32,
        /// Tokens that stay at most; 0: all.
        top_k: u32,
        /// Part of the probability that stays, times 2^32; 0: all of it.
        top_p: u32,
        /// Recent tokens that the penalty looks at, at most `RING`; the length of the ring that is in use.
        window: u32,
        /// 1: the tokens are gone through by id until their probabilities reach the random word, 0: from the best down.
        by_id: u32,
        /// Forbidden ids in the list that follows.
        forbidden: u32,
    }
}
