//! A generation that runs ahead of the host ends exactly where one step by step does.

use crate::{alloc, goldens::folder, support::gpu};
use moeray::{
    Result,
    backend::wgpu,
    generate::{CancelToken, Decoder, FinishReason, GenerateOptions, Generation, TextStream},
    generate::{SamplerOptions, Sampling},
    quant::KvType,
    session::{BackendChoice, Budget, LoadOptions, Model, Session, SessionOptions, Status},
};
use std::path::Path;

/// A session whose tokens the host chooses.
struct StepByStep(Session);

impl Decoder for StepByStep {
    fn set_sampler(&mut self, sampling: &Sampling<'_>) -> Result<()> {
        assert!(!self.0.set_sampler(&Sampling { on_host: true, ..*sampling })?);
        Ok(())
    }
    fn begin_choice(&mut self, ids: &[u32], random: u64) -> Result<()> {
        self.0.begin_choice(ids, random)
    }
    fn begin_logits(&mut self, ids: &[u32]) -> Result<()> {
        self.0.begin_prefill(ids)
    }
    fn last_logits(&self) -> &[f32] {
        self.0.last_logits()
    }
    fn begin_next(&mut self, random: u64) -> Result<()> {
        self.0.begin_next(random)
    }
    fn poll(&mut self, budget: Budget) -> Result<Status> {
        self.0.poll(budget)
    }
    fn wait(&mut self) -> Result<()> {
        self.0.wait()
    }
    fn chosen(&self) -> Result<u32> {
        self.0.chosen()
    }
    fn choices_queued(&self) -> usize {
        self.0.choices_queued()
    }
    fn cancel(&mut self) {
        self.0.cancel();
    }
    fn position(&self) -> usize {
        self.0.position()
    }
    fn position_queued(&self) -> usize {
        self.0.position_queued()
    }
    fn capacity(&self) -> usize {
        self.0.ctx()
    }
}

/// A letter a token.
struct Letters;

impl TextStream for Letters {
    fn push(&mut self, id: u32) -> String {
        char::from(b'a' + (id % 26) as u8).to_string()
    }
}

fn model(path: &Path) -> Option<Model> {
    let name = gpu()?.name().split(" (").next().unwrap().to_string();
    let backend = BackendChoice::Wgpu(wgpu::Options { device: Some(name), ..Default::default() });
    Some(Model::load(path, &LoadOptions { backend, ..Default::default() }, &mut |_| {}).unwrap())
}

/// Everything that a caller sees of a generation, and the position after it.
type Seen = (Vec<u32>, String, FinishReason, Vec<u32>, usize);

fn see<D: Decoder>(d: &mut D, eos: &[u32], prompt: &[u32], o: &GenerateOptions, most: usize) -> Seen {
    let mut g = Generation::new(&mut *d, Some(Box::new(Letters)), eos, prompt, o.clone(), CancelToken::new()).unwrap();
    let pieces: Vec<_> = g.by_ref().take(most).map(|p| p.unwrap()).collect();
    let reason = g.finish_reason().unwrap_or(FinishReason::Cancelled);
    let tokens = g.tokens().to_vec();
    drop(g);
    let text = pieces.iter().map(|p| p.text.as_str()).collect();
    (pieces.iter().map(|p| p.id).collect(), text, reason, tokens, d.position())
}

#[test]
fn a_generation_that_runs_ahead_ends_where_it_should() {
    runs_ahead("qwen3_moe");
}

/// The step behind the end of a text is undone: recurrent states go back to where the text ends.
#[test]
fn a_generation_with_recurrent_states_runs_ahead_too() {
    runs_ahead("qwen3_next");
}

fn runs_ahead(name: &str) {
    let Some(model) = model(&folder(name)) else { return };
    let size = SessionOptions { ctx: 40, ubatch: 5, kv: KvType::F32 };
    let mut ahead = Session::new(&model, size).unwrap();
    let mut slow = StepByStep(Session::new(&model, size).unwrap());
    let prompt: Vec<u32> = (1..13).collect();
    let base = |seed| GenerateOptions {
        max_tokens: 12,
        sampler: SamplerOptions { seed, temperature: 1.0, repeat_penalty: 1.2, ..Default::default() },
        history: vec![9, 9, 8],
        ..Default::default()
    };
    let mut compare = |eos: &[u32], o: &GenerateOptions, most: usize| {
        ahead.truncate(0);
        slow.0.truncate(0);
        let (a, s) = (see(&mut ahead, eos, &prompt, o, most), see(&mut slow, eos, &prompt, o, most));
        assert_eq!(a, s, "{o:?}");
        ahead.truncate(25);
        slow.0.truncate(25);
        // What was fed beyond the end does not show in what follows.
        let (a2, s2) = (see(&mut ahead, &[], &[3, 4], &base(77), 4), see(&mut slow, &[], &[3, 4], &base(77), 4));
        assert_eq!(a2, s2, "after {o:?}");
        a
    };
    let all = compare(&[], &base(1), 99);
    assert_eq!((all.2, all.4), (FinishReason::MaxTokens, 12 + 11));
    compare(&[], &GenerateOptions { sampler: SamplerOptions::greedy(), ..base(1) }, 99);
    // Each token in turn as the end of the text, and its letter and the next as a stop string.
    for i in 0..5 {
        let end = compare(&[all.0[i]], &base(1), 99);
        assert_eq!(end.2, FinishReason::EndOfText(all.0[i]));
        let stop = all.1[i..i + 2].to_string();
        let end = compare(&[], &GenerateOptions { stop: vec![stop], ..base(1) }, 99);
        assert_eq!(end.2, FinishReason::StopString(0));
    }
    compare(&[all.0[0]], &GenerateOptions { ignore_eos: true, ..base(1) }, 99);
    assert_eq!(compare(&[], &GenerateOptions { max_tokens: 0, ..base(1) }, 99).4, 0);
    assert_eq!(compare(&[], &GenerateOptions { max_tokens: 1, ..base(1) }, 99).4, 12);
    assert_eq!(compare(&[], &GenerateOptions { max_tokens: 99, ..base(2) }, 99).2, FinishReason::ContextFull);
    // A caller that loses interest.
    compare(&[], &base(3), 5);
}

#[test]
fn running_ahead_needs_no_growing_memory() {
    let Some(model) = model(&folder("qwen3_moe")) else { return };
    let mut s = Session::new(&model, SessionOptions { ctx: 400, ubatch: 8, kv: KvType::F16 }).unwrap();
    let recent = [1];
    assert!(s.set_sampler(&Sampling { recent: &recent, ..Sampling::default() }).unwrap());
    s.begin_choice(&[1, 2, 3], 1 << 63).unwrap();
    let mut run = |n: usize| {
        for i in 0..n {
            while s.choices_queued() < 2 {
                s.begin_next((i as u64) << 56).unwrap();
            }
            finish(&mut s);
        }
        // How much of a step the device still has in hand is chance, so the end waits for all of it.
        while s.choices_queued() > 0 {
            finish(&mut s);
        }
    };
    run(20);
    // wgpu allocates while it encodes and gives back: at the peak stand as many steps as happen to be in flight, and its
    // tables grow now and then. What every token leaves behind is left behind by every run.
    let left: Vec<isize> = (0..6).map(|_| alloc::left(|| run(50))).collect();
    assert!(left.iter().any(|&bytes| bytes <= 0), "bytes left behind by 50 tokens, six times: {left:?}");
}

/// Waits for the oldest choice that is queued.
fn finish(s: &mut Session) {
    while s.poll(Budget::UNLIMITED).unwrap() != Status::Done {
        s.wait().unwrap();
    }
}
