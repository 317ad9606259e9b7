//! Names of the ops of training.

use super::{Grad, Math, WeightId};

impl Math {
    /// The op's name.
    pub fn name(&self) -> &'static str {
        match self {
            Math::Numbers { .. } => "numbers",
            Math::Ids { .. } => "ids",
            Math::Constant { .. } => "constant",
            Math::Rotate(_) => "rotate",
            Math::SelfAttend(_) => "self_attend",
            Math::CrossEntropy => "cross_entropy",
            Math::Affine { .. } => "affine",
            Math::Unary(_) => "unary",
            Math::Binary(_) => "binary",
            Math::Reduce { .. } => "reduce",
            Math::Expand { .. } => "expand",
            Math::Softmax { .. } => "softmax",
            Math::LogSumExp => "log_sum_exp",
            Math::TopK { .. } => "top_k",
            Math::GatherSlots => "gather_slots",
            Math::ScatterSlots { .. } => "scatter_slots",
            Math::MultiHot { .. } => "multi_hot",
            Math::IdColumns { .. } => "id_columns",
            Math::Columns { .. } => "columns",
            Math::PadColumns { .. } => "pad_columns",
            Math::RepeatSlots { .. } => "repeat_slots",
            Math::SumSlots { .. } => "sum_slots",
            Math::ScaleSlots { .. } => "scale_slots",
            Math::SlotDots { .. } => "slot_dots",
            Math::ExpertSum { .. } => "expert_sum",
            Math::Capacity(_) => "capacity",
            Math::Dropout { .. } => "dropout",
            Math::Noise { .. } => "noise",
        }
    }

    /// The weight that the op reads.
    pub fn weight(&self) -> Option<WeightId> {
        match self {
            Math::SelfAttend(a) => a.sinks,
            Math::ExpertSum { weight, .. } => Some(*weight),
            Math::Numbers { .. }
            | Math::Ids { .. }
            | Math::Constant { .. }
            | Math::Rotate(_)
            | Math::CrossEntropy
            | Math::Affine { .. }
            | Math::Unary(_)
            | Math::Binary(_)
            | Math::Reduce { .. }
            | Math::Expand { .. }
            | Math::Softmax { .. }
            | Math::LogSumExp
            | Math::TopK { .. }
            | Math::GatherSlots
            | Math::ScatterSlots { .. }
            | Math::MultiHot { .. }
            | Math::IdColumns { .. }
            | Math::Columns { .. }
            | Math::PadColumns { .. }
            | Math::RepeatSlots { .. }
            | Math::SumSlots { .. }
            | Math::ScaleSlots { .. }
            | Math::SlotDots { .. }
            | Math::Capacity(_)
            | Math::Dropout { .. }
            | Math::Noise { .. } => None,
        }
    }
}

impl Grad {
    /// The op's name.
    pub fn name(&self) -> &'static str {
        match self {
            Grad::Embed { .. } => "embed_grad",
            Grad::Norm(_) => "norm_grad",
            Grad::NormWeight(_) => "norm_weight_grad",
            Grad::LinearInput { .. } => "linear_input_grad",
            Grad::Outer { .. } => "outer_grad",
            Grad::SumRows { .. } => "sum_rows_grad",
            Grad::ExpertInput { .. } => "expert_input_grad",
            Grad::ExpertOuter { .. } => "expert_outer_grad",
            Grad::ExpertSumRows { .. } => "expert_sum_rows_grad",
            Grad::SelfAttend(_) => "self_attend_grad",
            Grad::Sinks { .. } => "sinks_grad",
            Grad::SplitHeads { .. } => "split_heads",
            Grad::Glu(_) => "glu_grad",
            Grad::Act(_) => "act_grad",
            Grad::SigmoidGate => "sigmoid_gate_grad",
            Grad::Router(_) => "router_grad",
            Grad::CrossEntropy => "cross_entropy_grad",
            Grad::Unary(_) => "unary_grad",
            Grad::Softmax { .. } => "softmax_grad",
        }
    }

    /// The weights that the op reads or whose gradient it adds to.
    pub fn weights(&self) -> Vec<WeightId> {
        match self {
            Grad::Norm(n) => vec![n.weight],
            Grad::LinearInput { weight } | Grad::ExpertInput { weight } => vec![*weight],
            Grad::SelfAttend(a) => a.sinks.into_iter().collect(),
            Grad::Router(r) => r.selection_bias.into_iter().chain(r.expert_scale).collect(),
            Grad::Embed { .. }
            | Grad::NormWeight(_)
            | Grad::Outer { .. }
            | Grad::SumRows { .. }
            | Grad::ExpertOuter { .. }
            | Grad::ExpertSumRows { .. }
            | Grad::Sinks { .. } => self.adds_to().into_iter().collect(),
            Grad::SplitHeads { .. }
            | Grad::Glu(_)
            | Grad::Act(_)
            | Grad::SigmoidGate
            | Grad::CrossEntropy
            | Grad::Unary(_)
            | Grad::Softmax { .. } => vec![],
        }
    }
}
