//! `moeray chat`: a conversation with the model's own chat template, kept in the KV cache.

mod command;
mod input;
mod screen;
pub mod typeahead;

use super::{
    args::{ChatArgs, ThinkingName},
    failure::{Failure, Outcome, say, say_dim},
    interrupt, load,
    output::{claim_standard_input, read_text},
    stream::{self, Figures, Reading},
};
use crate::{
    chat::{Chat, Turn, TurnState},
    generate::{CancelToken, FinishReason, GenerateOptions},
    model,
    session::{Model, Session},
    tokenizer::{AnswerPart, DateTime, Tokenizer},
};
use chrono::{Datelike, Timelike};
use command::Next;
use input::Input;
use screen::Screen;
use std::{
    io::{self, IsTerminal},
    path::Path,
};
use typeahead::Waiting;

const WHERE_FROM: &str = "Models come from huggingface.co, for example:\n  \
    hf download Qwen/Qwen3-30B-A3B-GGUF Qwen3-30B-A3B-Q4_K_M.gguf --local-dir .     (18.6 GB)\n  \
    moeray chat Qwen3-30B-A3B-Q4_K_M.gguf";

/// Runs the verb.
pub fn chat(args: &ChatArgs, verbose: bool, quiet: bool) -> Outcome {
    if args.model.path().is_none() {
        return Err(Failure::new("chat needs a model that was made for it, and the built-in one has no chat template")
            .hint(format!("name one: moeray chat MODEL.gguf. (`moeray run` continues a text.) {WHERE_FROM}")));
    }
    let options = GenerateOptions {
        max_tokens: args.tokens.unwrap_or(usize::MAX),
        stop: load::stops(&args.stop)?,
        ignore_eos: args.stop.ignore_eos,
        sampler: load::sampler(&args.sample)?,
        ..GenerateOptions::default()
    };
    let system = system(args)?;
    let question = question(args)?;
    if question.is_none() && !io::stdin().is_terminal() {
        claim_standard_input("the messages (-p gives one)")?;
    }
    let room = load::Room::new(args.ctx, &args.context);
    let model = load::load(args.model.path(), &args.lora, &args.place, room, model::Options::default(), quiet)?;
    let tokenizer = load::tokenizer(&model)?;
    if tokenizer.chat_template()?.is_none() {
        return Err(Failure::new("this model has no chat template")
            .hint("it was not made for conversations; `moeray run` continues a text"));
    }
    let ctx = args.ctx.map_or_else(|| load::trained_context(&model).min(4096), |c| c as usize);
    let mut chat = Chat::new();
    chat.set_system(system.as_deref());
    chat.parse_special = args.parse_special;
    let screen = Screen::new();
    let mut talk = Talk {
        session: load::session(&model, ctx, &args.context)?,
        thinking: args.thinking.map_or(screen.is_terminal(), |t| t == ThinkingName::Show),
        person: io::stdin().is_terminal() && question.is_none(),
        screen,
        model: &model,
        tokenizer,
        chat,
        options,
        verbose,
        quiet,
    };
    talk.check_system()?;
    interrupt::install();
    match question {
        Some(text) => talk.turn(&text).map(|_| ()),
        None => {
            if talk.person && !quiet {
                talk.banner(&load::short_name(args.model.path()));
            }
            let by_line = args.each_line || quiet || io::stdin().is_terminal();
            converse(&mut talk, by_line)
        }
    }
}

/// The system message of the arguments.
fn system(args: &ChatArgs) -> Outcome<Option<String>> {
    match (&args.system, &args.system_file) {
        (Some(text), _) if args.stop.escape => Ok(Some(load::unescape(text))),
        (Some(text), _) => Ok(Some(text.clone())),
        (None, Some(file)) => Ok(Some(read_text("--system-file", file)?.trim_end_matches(['\n', '\r']).to_owned())),
        (None, None) => Ok(None),
    }
}

/// The one message of the arguments, where they have one.
fn question(args: &ChatArgs) -> Outcome<Option<String>> {
    let text = match args.message.as_deref().or(args.prompt.as_deref()) {
        Some("-") => Some(read_text("-p", Path::new("-"))?),
        Some(text) if args.stop.escape => Some(load::unescape(text)),
        text => text.map(str::to_owned),
    };
    let file = args.file.as_ref().map(|f| read_text("-f", f)).transpose()?;
    let parts: Vec<String> = text.into_iter().chain(file).collect();
    let whole = parts.join("\n\n");
    match parts.is_empty() {
        true => Ok(None),
        false if whole.trim().is_empty() => Err(Failure::new("the message is empty (-p, -f)")),
        false => Ok(Some(whole.trim_end_matches(['\n', '\r']).to_owned())),
    }
}

/// Message after message until the input ends.
fn converse(talk: &mut Talk<'_>, by_line: bool) -> Outcome {
    let mut input = Input::new(talk.person && talk.screen.is_terminal(), talk.screen.colour(), by_line);
    loop {
        let Some(text) = input.message()? else { return Ok(()) };
        if text.trim().is_empty() {
            continue;
        }
        let outcome = match command::run(talk, &text) {
            Ok(Next::Quit) => return Ok(()),
            Ok(Next::Done) => Ok(()),
            Ok(Next::ToggleMultiline) => {
                let end = if input.toggle_multiline() { "an empty line" } else { "the end of the line" };
                talk.tell(&format!("messages end at {end}"));
                Ok(())
            }
            Ok(Next::Ask(message)) => talk.turn(&message).map(|_| ()),
            Err(e) => Err(e),
        };
        match outcome {
            // A person can go on after what a script must hear of.
            Err(failure @ Failure::Said { .. }) if talk.person => _ = failure.report(),
            other => other?,
        }
    }
}

/// A conversation on a screen.
struct Talk<'a> {
    session: Session,
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    chat: Chat,
    options: GenerateOptions,
    screen: Screen,
    /// Whether thinking is shown.
    thinking: bool,
    /// Whether somebody types.
    person: bool,
    verbose: bool,
    quiet: bool,
}

impl Talk<'_> {
    fn banner(&self, file: &str) {
        say_dim(&format!("{file} on {}, context {}", self.model.describe(), self.session.ctx()));
        say_dim("/help lists the commands. Ctrl-C stops an answer, Ctrl-D ends.");
    }

    /// A template that refuses the system message is to be heard of before somebody has typed a question.
    fn check_system(&mut self) -> Outcome {
        if self.chat.system().is_none() {
            return Ok(());
        }
        self.chat.render.now = Some(now());
        let mut first = self.chat.clone();
        first.messages.push(crate::tokenizer::Message::new("user", "?"));
        match first.prompt(self.tokenizer) {
            Err(e @ crate::Error::SystemMessage(_)) => Err(e.into()),
            // Anything else may be about the conversation, which is still to come.
            _ => Ok(()),
        }
    }

    /// A message of the person and the model's answer.
    fn turn(&mut self, text: &str) -> Outcome<FinishReason> {
        self.chat.render.now = Some(now());
        let cancel = CancelToken::new();
        let _guard = interrupt::Guard::new(&cancel);
        let _waiting = (self.person && self.screen.is_terminal()).then(Waiting::new);
        let started = self.chat.ask(&mut self.session, text, self.options.clone(), cancel);
        let mut turn = started.map_err(|e| match e {
            crate::Error::ContextFull { needed, capacity } => {
                Failure::new(format!("the conversation has {needed} tokens, and the context only {capacity}"))
                    .hint("/undo takes back the last turn, /reset forgets the conversation; --ctx makes room for more")
            }
            e => e.into(),
        })?;
        let shown = show(&mut turn, &mut self.screen, self.thinking, Reading::new(self.quiet))?;
        let (stats, (position, ctx)) = (turn.stats(), turn.context());
        let reason = turn.finish_reason().unwrap_or(FinishReason::Failed);
        drop(turn);
        self.screen.end_line()?;
        if !self.quiet {
            if reason == FinishReason::MaxTokens {
                note(&format!("cut after {} tokens: -n allows more, /set tokens N too", stats.generated_tokens));
            } else if reason == FinishReason::ContextFull {
                note(
                    "the context is full: /undo takes back this turn, /reset forgets the conversation, --ctx makes room",
                );
            } else if !shown && reason != FinishReason::Cancelled {
                note("the answer has no text to show (--thinking show shows what the model thought)");
            }
            let figures = Figures { stats, reason };
            if self.verbose {
                let more = format!(" | context {position} of {ctx}");
                stream::closing(&figures, self.model, &self.session, &more);
            } else {
                note(&figures.short(&format!("context {position} of {ctx}")));
            }
        }
        if self.person && !self.quiet {
            say(format_args!(""));
        }
        Ok(reason)
    }
}

/// A remark of the program between the lines of a conversation.
fn note(text: &str) {
    say_dim(&format!("[{text}]"));
}

/// Writes an answer as it comes; gives whether there was something to write.
fn show(turn: &mut Turn<'_>, screen: &mut Screen, thinking: bool, mut reading: Reading) -> Outcome<bool> {
    let mut shown = false;
    loop {
        match turn.poll(turn.blocking_slice())? {
            TurnState::Segment(s) => {
                reading.clear();
                let wanted = match s.part {
                    AnswerPart::Content => true,
                    AnswerPart::Thinking | AnswerPart::Other => thinking,
                };
                if wanted {
                    shown = true;
                    screen.write(s.part, &s.text)?;
                }
            }
            TurnState::Finished => return Ok(shown),
            state @ (TurnState::Pending | TurnState::Waiting) => {
                let (done, total) = turn.prompt_progress();
                reading.show(turn.stats().generated_tokens, done, total);
                if state == TurnState::Waiting {
                    turn.wait()?;
                }
            }
        }
    }
}

/// The time where the person is.
fn now() -> DateTime {
    let t = chrono::Local::now();
    DateTime { year: t.year(), month: t.month(), day: t.day(), hour: t.hour(), minute: t.minute(), second: t.second() }
}
