//! Text as it comes to standard output, and the closing line on standard error.

use super::{
    facts,
    failure::{Outcome, say},
    interrupt, load,
};
use crate::{
    generate::{CancelToken, FinishReason, GenerateOptions, Stats, generate},
    session::{Model, Session},
    tokenizer::Tokenizer,
};
use std::io::Write;

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

/// Generates after `prompt`, and writes `echo` and then the text to `out` as it comes. Ctrl-C ends it early. What is wrong
/// with the options is said before anything is written.
pub fn stream(
    session: &mut Session,
    tokenizer: Option<&Tokenizer>,
    prompt: &[u32],
    echo: &str,
    options: GenerateOptions,
    mut out: Option<&mut dyn Write>,
) -> Outcome<Answer> {
    let cancel = CancelToken::new();
    let _guard = interrupt::Guard::new(&cancel);
    let known = options.history.len() + prompt.len();
    let mut generation = generate(session, tokenizer, prompt, options, cancel)?;
    let (mut text, mut ids) = (String::new(), Vec::new());
    if let Some(out) = out.as_mut() {
        out.write_all(echo.as_bytes())?;
        out.flush()?;
    }
    for piece in generation.by_ref() {
        let piece = piece?;
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

/// The closing line: speeds, time to first token, memory, place.
pub fn closing(answer: &Answer, model: &Model, session: &Session, note: &str) {
    let speed = |s: Option<f64>| s.map_or("-".into(), |s| format!("{s:.1} tokens/s"));
    let s = &answer.stats;
    let (held, file) =
        (model.weight_bytes() + session.memory_bytes(), facts::weight_bytes(&model.definition().program));
    // Backends that hold no weights of their own read them from the file's memory map.
    let mapped = if model.weight_bytes() == 0 { format!(" + {} mapped", load::bytes(file)) } else { String::new() };
    say(format_args!(
        "[prompt {} tokens, {} | generation {} tokens, {} | first token {:.0} ms | memory {}{mapped} | {}{note}{}]",
        s.prompt_tokens,
        speed(s.prompt_speed()),
        s.generated_tokens,
        speed(s.generation_speed()),
        s.time_to_first_token.as_secs_f64() * 1e3,
        load::bytes(held),
        model.describe(),
        match answer.reason {
            FinishReason::ContextFull => " | ended: the context is full (--ctx)",
            FinishReason::Cancelled => " | ended: interrupted",
            _ => "",
        }
    ));
}
