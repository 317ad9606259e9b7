//! Slots of experts in a model of real sizes: bit for bit what all experts in the device's memory give.

use super::cache::{bits, load, numbers};
use crate::{proven, support::gpu};
use moeray::{
    backend::{
        Loaded, Program,
        runner::{self, Row, RunnerOptions},
        wgpu::RunOptions,
    },
    file::synth::{Shape, Synthetic},
    graph::{Eviction, ExpertSlots},
    model,
    quant::{KvType, mix::Mix},
};

/// One layer of `moe-1b-a400m` in the formats that Q4_K_M gives it (Q4_K, and Q6_K where experts go down): 32 experts of width 512, of which
/// a token uses 8, 1024 columns, 16 heads. Its 24 layers would take minutes on a device in software, and most of the vocabulary adds nothing
/// but time.
fn model_of_real_sizes() -> Program {
    let shape = Shape { vocab: 512, ..Shape::preset("moe-1b-a400m").unwrap() }.with_layers(1);
    assert_eq!((shape.experts, shape.used, shape.expert_width, shape.hidden), (32, 8, 512, 1024));
    let made = Synthetic::new(&shape, 5, |name, dims| proven::format(&shape, Mix::Q4_K_M, name, dims)).unwrap();
    model::build(&made.checkpoint(&mut |_, _| Ok(())).unwrap(), &Default::default()).unwrap().program
}

/// The logits of eight sequences side by side, and of one alone in between.
fn batches(loaded: &dyn Loaded) -> Vec<u32> {
    let options = RunnerOptions { ctx: 16, sequences: 8, ubatch: 16, kv: KvType::F32 };
    let (mut runner, mut all) = (loaded.runner(options).unwrap(), vec![]);
    for position in 0..3 {
        let who = if position == 1 { 3..4 } else { 0..8 };
        let row =
            |s: usize| Row { logits: true, ..Row::fed(((61 * s + 37 * position) % 500) as u32, s, runner.len(s)) };
        let rows: Vec<Row> = who.map(row).collect();
        let out = runner.step(&runner::Step { rows: &rows, ..Default::default() }).unwrap();
        all.extend(out.outputs[0].f32.iter().map(|x| x.to_bits()));
    }
    all
}

/// With slots for as many experts as a token uses, half as many again, 25 %, 50 % and 100 %: token by token, a prompt and then tokens, batches
/// of eight.
#[test]
fn real_sizes_bit_for_bit() {
    let Some(gpu) = gpu() else { return };
    let program = model_of_real_sizes();
    let ids: Vec<u32> = (0..13).map(|i| (i * 97 + 11) % 500).collect();
    let of = |loaded: &dyn Loaded| {
        let forms: [(&str, &[usize]); 2] = [("token by token", &[1; 5]), ("a prompt", &[11, 1, 1])];
        let fed = |chunks: &[usize]| bits(loaded, &ids[..chunks.iter().sum()], chunks);
        let mut all = forms.map(|(what, chunks)| (what, fed(chunks))).to_vec();
        all.push(("batches of eight", batches(loaded)));
        all
    };
    let sizes = numbers(32, 8);
    assert_eq!(sizes.iter().copied().collect::<Vec<_>>(), [8, 12, 16, 32], "25 % are the 8 of a token");
    let want = of(&*load(&gpu, &program, RunOptions::default()));
    for slots in sizes {
        // Who goes changes no bit.
        let eviction = if slots == 12 { Eviction::PinnedLru } else { Eviction::Lru };
        let expert_slots = Some(ExpertSlots { slots, eviction });
        let got = of(&*load(&gpu, &program, RunOptions { expert_slots, ..RunOptions::default() }));
        for ((what, want), (_, got)) in want.iter().zip(&got) {
            assert!(want.len() >= 5 * 512 && got == want, "{what}, {slots} slots of 32");
        }
    }
}
