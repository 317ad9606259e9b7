//! What kernels are chosen by: the device, the options, the phase.

use super::{Caps, Options, Phase};
use crate::{
    ir::{Norm, NormKind},
    kernels::{Kernel, Reduction, Tiles, Variant, catalogue},
    quant::DType,
};

/// The kernels of a product with experts' matrices: slot by slot, sorted, and sorted by tiles.
pub(super) struct ExpertKernels {
    pub slots: &'static Kernel,
    pub grouped: &'static Kernel,
    pub tiles: &'static Kernel,
}

pub(super) static EXPERT_LINEAR: ExpertKernels = ExpertKernels {
    slots: &catalogue::EXPERT_LINEAR,
    grouped: &catalogue::EXPERT_LINEAR_GROUPED,
    tiles: &catalogue::EXPERT_LINEAR_TILES,
};

pub(super) static EXPERT_GLU: ExpertKernels = ExpertKernels {
    slots: &catalogue::EXPERT_GLU,
    grouped: &catalogue::EXPERT_GLU_GROUPED,
    tiles: &catalogue::EXPERT_GLU_TILES,
};

/// The device, the options and the phase of a schedule.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub caps: &'a Caps,
    pub options: &'a Options,
    pub phase: Phase,
    pub reduction: Reduction,
}

impl<'a> Target<'a> {
    pub fn new(caps: &'a Caps, options: &'a Options, phase: Phase) -> Self {
        Target { caps, options, phase, reduction: options.reduction.unwrap_or_else(|| caps.reduction()) }
    }

    /// Whether a step is one token.
    pub fn decode(&self) -> bool {
        self.phase == Phase::Decode
    }

    /// Whether a norm can be computed inside the product that follows it: each workgroup of a GPU sums the squares of the
    /// one row anew, which costs less than a dispatch. A processor has no use for that.
    /// The weight of a root-mean-square norm goes with x and its factor with the sum; a layer norm's mean and bias do not.
    pub fn folds_norm(&self, norm: &Norm) -> bool {
        self.decode() && self.reduction == Reduction::Workgroup && norm.kind == NormKind::Rms && norm.bias.is_none()
    }

    /// A product of many rows: by tiles where that suits the device, else as [`Target::matrix_variant`] has it.
    pub fn product_variant(
        &self,
        lanes: &'static Kernel,
        tiles: &'static Kernel,
        cols: usize,
        formats: &[DType],
    ) -> Variant {
        let by_tiles = self.phase == Phase::Prefill && self.reduction == Reduction::Workgroup;
        let variant =
            if by_tiles { self.tiled(tiles, formats) } else { self.matrix_variant(lanes, cols, !self.decode()) };
        variant.formats(formats)
    }

    fn tiled(&self, kernel: &'static Kernel, formats: &[DType]) -> Variant {
        let features = &self.caps.features;
        let wanted = self.options.tiles.unwrap_or(self.caps.tiles).for_formats(formats);
        let tiles = if (wanted.row().runs)(features) { wanted } else { Tiles::F32 };
        Variant::new(kernel).tiles(tiles, features.subgroup_size)
    }

    /// Numbers for a matrix kernel with `cols` columns, those that the kernel has.
    pub fn matrix_variant(&self, kernel: &'static Kernel, cols: usize, many: bool) -> Variant {
        self.with_subgroups(self.reduction.matrix(kernel, cols, many))
    }

    /// Invocations of a workgroup that chooses experts by itself, for the product with matrices of so many rows: wide ones choose less
    /// often.
    pub fn choice_workgroup(&self, rows: usize) -> u32 {
        if self.caps.max_invocations >= 256 && rows >= 256 { 256 } else { 64 }
    }

    /// With sums that meet within subgroups first, where the device can.
    pub fn with_subgroups(&self, v: Variant) -> Variant {
        let able = self.reduction == Reduction::Workgroup && self.caps.features.subgroup_size.is_some();
        if able && self.options.subgroups.unwrap_or(true) { v.with("SUBGROUPS", 1) } else { v }
    }
}
