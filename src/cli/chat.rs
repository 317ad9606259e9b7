//! `moeray chat`: a conversation with the model's own chat template, kept in the KV cache.

use super::{
    args::ChatArgs,
    failure::{Failure, Outcome, say},
    interrupt, load,
    stream::{self, Answer},
};
use crate::{
    generate::GenerateOptions,
    model,
    sampler::SamplerOptions,
    session::{Model, Session},
    tokenizer::{ChatTemplate, DateTime, Message, RenderOptions, Tokenizer},
};
use chrono::{Datelike, Timelike};
use std::io::{self, BufRead, IsTerminal, Write};

/// Runs the verb.
pub fn chat(args: &ChatArgs, quiet: bool) -> Outcome {
    let model = load::load(args.model.path(), &args.place, model::Options::default(), quiet)?;
    let tokenizer = load::tokenizer(&model)?;
    let template = tokenizer.chat_template()?.ok_or_else(|| {
        Failure::new("this model has no chat template")
            .hint("it was not made for conversations; `moeray run` continues a text")
    })?;
    let ctx = args.ctx.map_or_else(|| load::trained_context(&model).min(4096), |c| c as usize);
    let mut chat = Chat {
        session: load::session(&model, ctx, &args.context)?,
        model: &model,
        tokenizer,
        template,
        cached: Vec::new(),
        messages: Vec::new(),
        options: GenerateOptions {
            max_tokens: args.tokens.unwrap_or(usize::MAX),
            stop: load::stops(&args.stop),
            ignore_eos: args.stop.ignore_eos,
            sampler: load::sampler(&args.sample),
            history: Vec::new(),
        },
        system: args.system.as_ref().map(|s| if args.stop.escape { load::unescape(s) } else { s.clone() }),
        parse_special: args.parse_special,
        quiet,
    };
    chat.reset();
    let person = io::stdin().is_terminal();
    if person && !quiet {
        say(format_args!("{}, context {ctx}. /reset forgets, /quit ends, Ctrl-C stops an answer.", model.describe()));
    }
    interrupt::install();
    converse(&mut chat, person)
}

/// A turn a line (a backslash at its end continues it) until the input ends.
fn converse(chat: &mut Chat<'_>, person: bool) -> Outcome {
    let mut out = io::stdout().lock();
    loop {
        if person {
            write!(out, "> ")?;
            out.flush()?;
        }
        let Some(line) = read_turn(person)? else {
            if person {
                writeln!(out)?;
            }
            return Ok(());
        };
        match line.trim() {
            "" => {}
            "/quit" | "/exit" => return Ok(()),
            "/reset" => chat.reset(),
            command if command.starts_with('/') && !command.contains(' ') && person => {
                say(format_args!("no such command: {command} (there are /reset and /quit)"));
            }
            _ => match chat.turn(&line, &mut out) {
                // A person can go on after what a script must hear of.
                Err(failure @ Failure::Said { .. }) if person => {
                    failure.report();
                }
                other => other?,
            },
        }
    }
}

/// The next message; `None` at the end of the input.
fn read_turn(person: bool) -> Outcome<Option<String>> {
    let mut text = String::new();
    loop {
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        if read.map_err(|e| Failure::new(format!("cannot read standard input: {e}")))? == 0 {
            return Ok((!text.is_empty()).then_some(text));
        }
        text.push_str(line.trim_end_matches(['\n', '\r']));
        if !text.ends_with('\\') {
            return Ok(Some(text));
        }
        text.pop();
        text.push('\n');
        if person {
            say(format_args!("..."));
        }
    }
}

/// A conversation, and what of it is in the cache.
struct Chat<'a> {
    session: Session,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    /// The tokens in the session, in order.
    cached: Vec<u32>,
    messages: Vec<Message>,
    options: GenerateOptions,
    system: Option<String>,
    /// Whether marks of the chat format in messages count.
    parse_special: bool,
    quiet: bool,
}

impl Chat<'_> {
    /// Back to the system message.
    fn reset(&mut self) {
        self.messages = self.system.iter().map(|s| Message::new("system", s.clone())).collect();
    }

    /// A message of the person and the model's answer.
    fn turn(&mut self, text: &str, out: &mut dyn Write) -> Outcome {
        self.messages.push(Message::new("user", text));
        let answer = match self.answer(out) {
            Ok(answer) => answer,
            Err(e) => {
                self.messages.pop();
                return Err(e);
            }
        };
        if !answer.text.ends_with('\n') {
            writeln!(out)?;
        }
        out.flush()?;
        if !self.quiet {
            let note = format!(" | context {} of {}", self.session.position(), self.session.ctx());
            stream::closing(&answer, self.model, &self.session, &note);
        }
        self.messages.push(Message::new("assistant", answer.text));
        Ok(())
    }

    /// Feeds what the cache does not hold yet, and generates.
    fn answer(&mut self, out: &mut dyn Write) -> Outcome<Answer> {
        let options = RenderOptions { add_generation_prompt: true, now: Some(now()), ..RenderOptions::default() };
        let mut prompt = self.template.prompt(&self.messages, &options)?;
        if self.parse_special {
            prompt.foreign.clear();
        }
        let ids = self.tokenizer.encode_prompt(&prompt)?;
        let known = keep(&self.cached, &ids);
        if ids.len() > self.session.ctx() {
            let (needed, ctx) = (ids.len(), self.session.ctx());
            return Err(Failure::new(format!("the conversation has {needed} tokens, and the context only {ctx}"))
                .hint("/reset forgets it; --ctx makes room for more"));
        }
        tracing::info!("{known} of {} tokens are in the cache", ids.len());
        self.session.truncate(known);
        self.cached.truncate(known);
        let sampler = SamplerOptions {
            // Another answer to the same question in another turn, and the same conversation for the same seed.
            seed: self.options.sampler.seed.wrapping_add(self.messages.len() as u64),
            ..self.options.sampler
        };
        let options = GenerateOptions { history: ids[..known].to_vec(), sampler, ..self.options.clone() };
        let answer = stream::stream(&mut self.session, Some(self.tokenizer), &ids[known..], "", options, Some(out));
        match &answer {
            Ok(a) => self.cached = [&ids[..], &a.sampled].concat(),
            // What was fed before the error is not known to the token: feed all again next time.
            Err(_) => self.session.truncate(0),
        }
        self.cached.truncate(self.session.position());
        answer
    }
}

/// How many of the cached tokens can stay: the common beginning, without the last token, whose logits are needed.
fn keep(cached: &[u32], wanted: &[u32]) -> usize {
    let common = cached.iter().zip(wanted).take_while(|(a, b)| a == b).count();
    common.min(wanted.len().saturating_sub(1))
}

/// The time where the person is.
fn now() -> DateTime {
    let t = chrono::Local::now();
    DateTime { year: t.year(), month: t.month(), day: t.day(), hour: t.hour(), minute: t.minute(), second: t.second() }
}

#[cfg(test)]
mod tests {
    use super::keep;

    #[test]
    fn the_common_beginning_stays_but_for_the_last_token() {
        assert_eq!(keep(&[], &[1, 2]), 0);
        assert_eq!(keep(&[1, 2, 3], &[1, 2, 4, 5]), 2);
        assert_eq!(keep(&[1, 2, 3], &[1, 2, 3, 4]), 3);
        assert_eq!(keep(&[1, 2, 3], &[1, 2, 3]), 2);
        assert_eq!(keep(&[1, 2, 3], &[1]), 0);
    }
}
