//! Sums that the kernel before them makes: of a residual and a matrix's result, of two parts of a gradient.

use crate::ir::{Grad, Graph, Math, Op};

/// For each node whether it is the sum of some value and of the result of the node before it, which no one else reads, so that the
/// kernel of that node adds.
pub fn folded(g: &Graph) -> Vec<bool> {
    let mut users = vec![0usize; g.values.len()];
    g.nodes.iter().flat_map(|n| &n.inputs).for_each(|v| users[v.0 as usize] += 1);
    g.outputs.iter().for_each(|(_, v)| users[v.0 as usize] += 1);
    let mut all = vec![false; g.nodes.len()];
    for (i, pair) in g.nodes.windows(2).enumerate() {
        let ([made], [a, b]) = (&pair[0].outputs[..], &pair[1].inputs[..]) else { continue };
        all[i + 1] = pair[1].op == Op::Add
            && (a == made || b == made)
            && users[made.0 as usize] == 1
            && makes_each(&pair[0].op)
            && !all[i];
    }
    all
}

/// Whether an op has a last kernel in which each result is made in one place.
fn makes_each(op: &Op) -> bool {
    matches!(
        op,
        Op::Linear(_)
            | Op::SigmoidGate
            | Op::ExpertCombine
            | Op::Scale(_)
            | Op::Math(Math::SumSlots { .. } | Math::ScaleSlots { .. } | Math::Rotate(_))
            | Op::Grad(Grad::LinearInput { .. } | Grad::ExpertInput { .. })
    )
}
