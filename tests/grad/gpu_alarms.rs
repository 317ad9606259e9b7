//! Known mistakes, made in the texts of the GPU's kernels: the comparison with the reference must reject each.

use super::{
    alarms,
    net::{results, worst},
};
use crate::support;
use moeray::{
    backend::{
        reference::{self, Precision},
        wgpu::{self, Gpu, Options},
    },
    kernels::Reduction,
};
use std::sync::{Arc, Mutex};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    /// The gradient that comes from above is taken as 1.
    DroppedUpstream,
    /// The gradient of a matrix is stored transposed.
    TransposedOuter,
    /// Only the first slot of a token gives back to its input.
    MissingSumOverSlots,
    /// Every second query head is left out of the gradients of keys and values.
    HeadsLeftOut,
    /// The logarithm of the denominator is off.
    ShiftedLse,
    /// An expert's last pair of token and slot is lost.
    LostPair,
    /// The weights of the losses' terms are ignored.
    IgnoredWeights,
    /// The slots of an expert come in another order.
    Unstable,
}

impl Mistake {
    /// The kernel that is changed.
    fn kernel(self) -> &'static str {
        match self {
            Mistake::None => "",
            Mistake::DroppedUpstream => "unary_grad",
            Mistake::TransposedOuter => "outer_grad",
            Mistake::MissingSumOverSlots => "sum_slots",
            Mistake::HeadsLeftOut | Mistake::ShiftedLse => "self_attend_grad",
            Mistake::LostPair => "expert_outer_grad",
            Mistake::IgnoredWeights => "affine",
            Mistake::Unstable => "expert_sort",
        }
    }

    /// The text with the mistake; the text itself where the kernel's part that it is in is another.
    fn made(self, text: &str) -> String {
        match self {
            Mistake::None => text.to_string(),
            Mistake::DroppedUpstream => text.replace(" * b[i];", ";"),
            Mistake::TransposedOuter => {
                let (before, rest) = text.split_once("let at = ").unwrap();
                let (at, rest) = rest.split_once(';').unwrap();
                let swapped = at.replace("row", "other").replace("col", "row").replace("other", "col");
                format!("{before}let at = {swapped};{rest}")
            }
            Mistake::MissingSumOverSlots => text.replace("j++", "j += 1000u"),
            Mistake::HeadsLeftOut if text.contains("made_k") => {
                let (before, rest) = text.split_once("for (var o = 0u;").unwrap();
                format!("{before}for (var o = 0u;{}", rest.replacen("o++", "o += 2u", 1))
            }
            Mistake::HeadsLeftOut => text.to_string(),
            Mistake::ShiftedLse => text.replace("- h[2u * head])", "- h[2u * head] - 0.01)"),
            Mistake::LostPair => {
                text.replace("let count = c[2u * expert + 1u];", "let count = max(c[2u * expert + 1u], 1u) - 1u;")
            }
            Mistake::IgnoredWeights => {
                let (before, rest) = text.split_once("y[i] = ").unwrap();
                let (_, rest) = rest.split_once(" * a[i]").unwrap();
                format!("{before}y[i] = a[i]{rest}")
            }
            Mistake::Unstable => text.replace("z[at] = s;", "z[2u * first + count - 1u - at] = s;"),
        }
    }
}

/// The mistake that kernels have at the time, and how many texts it changed.
type Made = Arc<Mutex<(Mistake, usize)>>;

/// A device whose kernels have a mistake.
fn device() -> Option<(Gpu, Made)> {
    let options = Options { device: Some(support::gpu_number()?), checked: true, ..Options::default() };
    let gpu = Gpu::open(&options).unwrap();
    let made = Arc::new(Mutex::new((Mistake::None, 0)));
    let current = made.clone();
    gpu.edit_shaders(move |name, text| {
        let mut current = current.lock().unwrap();
        if name == current.0.kernel() {
            let changed = current.0.made(text);
            current.1 += usize::from(changed != *text);
            *text = changed;
        }
    });
    Some((gpu, made))
}

#[test]
fn the_comparison_on_the_gpu_rejects_every_known_mistake() {
    let Some((gpu, made)) = device() else { return };
    let (program, feed) = alarms::net();
    let want = results(&mut *reference::train(program.clone(), Precision::F64).unwrap(), &feed);
    let all = [
        Mistake::DroppedUpstream,
        Mistake::TransposedOuter,
        Mistake::MissingSumOverSlots,
        Mistake::HeadsLeftOut,
        Mistake::ShiftedLse,
        Mistake::LostPair,
        Mistake::IgnoredWeights,
    ];
    for reduction in [Reduction::Workgroup, Reduction::Invocation] {
        let judge = |mistake| {
            *made.lock().unwrap() = (mistake, 0);
            let found = results(&mut *wgpu::train_with(&gpu, program.clone(), Some(reduction)).unwrap(), &feed);
            assert!(mistake == Mistake::None || made.lock().unwrap().1 > 0, "{mistake:?} changes no kernel");
            worst(&found, &want)
        };
        let (error, name) = judge(Mistake::None);
        assert!(error <= 1e-10, "{reduction:?}: {name} is off by an NMSE of {error:.1e}");
        for mistake in all {
            // Shares of a hundredth are shifted: an NMSE of 10⁻⁵ and more, where 10⁻¹⁰ passes.
            let (error, _) = judge(mistake);
            assert!(error > 1e-6, "{mistake:?} passes with an NMSE of {error:.1e}, {reduction:?}");
        }
    }
}

#[test]
fn an_unstable_order_of_pairs_on_the_gpu_changes_bits() {
    let Some((gpu, made)) = device() else { return };
    let bits = |mistake| {
        *made.lock().unwrap() = (mistake, 0);
        let (program, feed) = alarms::net();
        let found = results(&mut *wgpu::train(&gpu, program).unwrap(), &feed);
        found.into_iter().flat_map(|(_, x)| x).map(f64::to_bits).collect::<Vec<u64>>()
    };
    assert_eq!(bits(Mistake::None), bits(Mistake::None));
    assert_ne!(bits(Mistake::None), bits(Mistake::Unstable));
}
