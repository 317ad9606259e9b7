//! Text as it comes to standard output, and the closing line on standard error.

use super::{
    facts,
    failure::{Outcome, say_dim},
    interrupt,
    load::Bar,
    units,
};
use crate::{
    backend::Progress,
    generate::{CancelToken, FinishReason, GenerateOptions, Polled, Stats, generate},
    session::{Model, Session},
    tokenizer::Tokenizer,
};
use std::{
    io::Write,
    time::{Duration, Instant},
};

/// Changes the logits before a token is chosen.
pub type Hook = Box<dyn FnMut(&[u32], &mut [f32]) + Send>;

/// A finished generation.
pub struct Answer {
    /// Its text.
    pub text: String,
    /// Its tokens, an end-of-generation token not included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Counts and times.
    pub stats: Stats,
    /// Every token that was sampled after the prompt, whether shown or not; the context holds all but the last.
    pub sampled: Vec<u32>,
}

/// How far a long prompt is, as a bar: until the first text something moves.
pub struct Reading {
    wanted: bool,
    began: Instant,
    bar: Option<Bar>,
}

impl Reading {
    /// A bar that appears when a prompt takes its time.
    pub fn new(quiet: bool) -> Self {
        Reading { wanted: !quiet, began: Instant::now(), bar: None }
    }

    /// Shows how many tokens are read, as long as none is generated.
    pub fn show(&mut self, generated: usize, done: usize, total: usize) {
        if generated > 0 {
            self.clear();
        } else if self.wanted && self.began.elapsed() > Duration::from_millis(400) {
            let bar = self.bar.get_or_insert_with(|| Bar::new(false));
            bar.show(Progress { phase: "reading", done: done.min(total) as u64, total: total as u64 });
        }
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        self.bar = None;
    }
}

/// Counts and times of an answer, and why it ended.
pub struct Figures {
    /// Counts and times.
    pub stats: Stats,
    /// Why it ended.
    pub reason: FinishReason,
}

impl Figures {
    /// One short line: speeds, and what else is to be said.
    pub fn short(&self, more: &str) -> String {
        let speed = |s: Option<f64>| s.map_or(String::new(), |s| format!(", {s:.1}/s"));
        let s = &self.stats;
        let (prompt, answer) = (speed(s.prompt_speed()), speed(s.generation_speed()));
        let ended = if self.reason == FinishReason::Cancelled { " | interrupted" } else { "" };
        format!("prompt {} tokens{prompt} | answer {}{answer} | {more}{ended}", s.prompt_tokens, s.generated_tokens)
    }
}

/// Generates after `prompt`, and writes `echo` and then the text to `out` as it comes. Ctrl-C ends it early. What is wrong
/// with the options is said before anything is written. `hook` may forbid tokens.
pub fn stream(
    session: &mut Session,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    echo: &str,
    options: GenerateOptions,
    hook: Option<Hook>,
    mut out: Option<&mut dyn Write>,
    mut reading: Reading,
) -> Outcome<Answer> {
    let cancel = CancelToken::new();
    let _guard = interrupt::Guard::new(&cancel);
    let known = options.history.len() + prompt.len();
    let mut generation = generate(session, tokenizer, prompt, options, cancel)?;
    if let Some(hook) = hook {
        generation = generation.with_logits_hook(hook);
    }
    let (mut text, mut ids) = (String::new(), Vec::new());
    if let Some(out) = out.as_mut() {
        out.write_all(echo.as_bytes())?;
        out.flush()?;
    }
    let total = generation.tokens().len();
    loop {
        let piece = match generation.poll(generation.blocking_slice())? {
            Polled::Piece(piece) => piece,
            Polled::Finished => break,
            state @ (Polled::Pending | Polled::Waiting) => {
                reading.show(generation.stats().generated_tokens, generation.context().0, total);
                if state == Polled::Waiting {
                    generation.wait()?;
                }
                continue;
            }
        };
        reading.clear();
        if let Some(out) = out.as_mut().filter(|_| !piece.text.is_empty()) {
            out.write_all(piece.text.as_bytes())?;
            out.flush()?;
        }
        text.push_str(&piece.text);
        ids.push(piece.id);
    }
    let reason = generation.finish_reason().unwrap_or(FinishReason::Failed);
    let sampled = generation.tokens()[known..].to_vec();
    Ok(Answer { text, ids, reason, stats: generation.stats(), sampled })
}

/// The closing line that `--verbose` asks for: speeds, time to first token, memory, place.
pub fn closing(answer: &Figures, model: &Model, session: &Session, note: &str) {
    let speed = |s: Option<f64>| s.map_or("-".into(), |s| format!("{s:.1} tokens/s"));
    let s = &answer.stats;
    let (held, file) =
        (model.weight_bytes() + session.memory_bytes(), facts::weight_bytes(&model.definition().program));
    // Backends that hold no weights of their own read them from the file's memory map.
    let mapped = if model.weight_bytes() == 0 { format!(" + {} mapped", units::bytes(file)) } else { String::new() };
    say_dim(&format!(
        "[prompt {} tokens, {} | generation {} tokens, {} | first token {:.0} ms | memory {}{mapped} | {}{note}{}]",
        s.prompt_tokens,
        speed(s.prompt_speed()),
        s.generated_tokens,
        speed(s.generation_speed()),
        s.time_to_first_token.as_secs_f64() * 1e3,
        units::bytes(held),
        model.describe(),
        match answer.reason {
            FinishReason::ContextFull => " | ended: the context is full (--ctx)",
            FinishReason::Cancelled => " | ended: interrupted",
            _ => "",
        }
    ));
}
