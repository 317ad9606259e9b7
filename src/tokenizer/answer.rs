//! What a model's answer consists of: its thinking, and the answer itself.
//!
//! Models mark their thinking in one of two ways: with a pair of tags before the answer (`<think>…</think>`), or with
//! channels, of which every message of an answer names one (gpt-oss' Harmony format). An [`AnswerReader`] takes an answer's
//! tokens as they come and tells the parts apart, without the marks: what is shown, and what goes back to the chat template
//! with the next turn. Which marks a model has is seen from its vocabulary and its template.

mod channels;

use super::{Message, Prompt, Tokenizer};
use channels::Channels;

/// What a part of an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the model says to itself before it answers.
    Thinking,
    /// The answer.
    Content,
    /// A message to somebody else than the person, such as a call of a tool.
    Other,
}

/// Some text of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What it is a part of.
    pub part: Part,
    /// The text, never empty.
    pub text: String,
}

/// The tags around thinking, by family: of those that a model's template or vocabulary knows the first counts.
const TAGS: &[(&str, &str)] = &[
    // Qwen, DeepSeek, GLM, MiniMax, Ling, SmolLM, Granite, Hunyuan, ERNIE
    ("<think>", "</think>"),
    // Magistral
    ("[THINK]", "[/THINK]"),
    // Kimi
    ("◁think▷", "◁/think▷"),
    // Seed-OSS
    ("<seed:think>", "</seed:think>"),
    // Command A
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    // Gemma 4
    ("<|channel>thought", "<channel|>"),
    // Apertus
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    // EXAONE
    ("<thought>", "</thought>"),
];

/// What stands before the answer itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing.
    Nothing,
    /// Perhaps thinking between tags.
    Tags {
        /// The tags.
        open: &'static str,
        close: &'static str,
        /// Whether the prompt has opened it.
        opened: bool,
    },
    /// Perhaps a message of thinking, and a header.
    Channels {
        /// Where the prompt began a message: whether it is of thinking.
        thinking: Option<bool>,
    },
}

impl Before {
    /// Before the answer to `prompt`.
    pub(crate) fn of(tokenizer: &Tokenizer, prompt: &Prompt) -> Before {
        match AnswerReader::new(tokenizer, prompt).state {
            State::Plain => Before::Nothing,
            State::Tags(Tags { open, close, place, .. }) => {
                // A prompt that has closed the thinking wants none.
                if place == Place::Start && prompt.text.trim_end().ends_with(close) {
                    return Before::Nothing;
                }
                Before::Tags { open, close, opened: place == Place::Thinking }
            }
            State::Channels(channels) => Before::Channels { thinking: channels.part.map(|p| p == Part::Thinking) },
        }
    }
}

/// Reads an answer, token by token.
#[derive(Debug)]
pub struct AnswerReader {
    tokenizer: Tokenizer,
    state: State,
    thinking: String,
    content: String,
    /// Control tokens of calls of tools, which stay in the content for the reader of calls.
    kept: Kept,
}

/// Texts of control tokens that stay in an answer's content; the first ones end the thinking, too.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// What begins calls.
    pub opening: Vec<&'static str>,
    /// What else belongs to them.
    pub other: Vec<&'static str>,
}

impl Kept {
    fn has(&self, mark: &str) -> bool {
        self.opening.contains(&mark) || self.other.contains(&mark)
    }
}

#[derive(Debug)]
enum State {
    Plain,
    Tags(Tags),
    Channels(Channels),
}

impl AnswerReader {
    /// A reader of the answer to `prompt`, whose end may have opened the thinking or a channel already.
    pub fn new(tokenizer: &Tokenizer, prompt: &Prompt) -> Self {
        let mark = |text: &str| tokenizer.token_id(text).is_some_and(|id| tokenizer.is_special(id));
        let source = tokenizer.chat_template_source().unwrap_or_default();
        let knows = |text: &str| source.contains(text) || tokenizer.token_id(text).is_some();
        let state = if mark("<|channel|>") && mark("<|message|>") {
            State::Channels(Channels::after(prompt))
        } else {
            match TAGS.iter().find(|(_, close)| knows(close)) {
                Some(tags) => State::Tags(Tags::after(*tags, prompt)),
                None => State::Plain,
            }
        };
        let (thinking, content) = (String::new(), String::new());
        AnswerReader { tokenizer: tokenizer.clone(), state, thinking, content, kept: Kept::default() }
    }

    /// The same with control tokens that stay in the content.
    pub(crate) fn keeping(mut self, kept: Kept) -> Self {
        self.kept = kept;
        self
    }

    /// Whether the answer comes in messages that name channels.
    pub(crate) fn has_channels(&self) -> bool {
        matches!(self.state, State::Channels(_))
    }

    /// The message that is being read: how many came before it, and whom it is for, where it is for a function.
    pub(crate) fn recipient(&self) -> Option<(usize, &str)> {
        match &self.state {
            State::Channels(Channels { part: Some(Part::Other), to: Some(to), messages, .. }) => Some((*messages, to)),
            State::Channels(_) | State::Tags(_) | State::Plain => None,
        }
    }

    /// Takes a token with its text (as [`super::DecodeStream`] gave it), and gives what became clear.
    pub fn push(&mut self, id: u32, text: &str) -> Vec<Segment> {
        let mark = if self.tokenizer.is_special(id) { self.tokenizer.token_text(id) } else { None };
        // Some vocabularies show such tokens, which nobody wants to see in a conversation.
        let text = mark.as_deref().and_then(|m| text.strip_suffix(m)).unwrap_or(text);
        let mut found = vec![];
        match &mut self.state {
            State::Plain => {
                put(&mut found, Part::Content, text);
                put(&mut found, Part::Content, mark.as_deref().filter(|m| self.kept.has(m)).unwrap_or_default());
            }
            State::Tags(tags) => tags.push(text, mark.as_deref(), &self.kept, &mut found),
            State::Channels(channels) => channels.push(text, mark.as_deref(), &mut found),
        }
        self.keep(found)
    }

    /// Nothing follows: what was held back as the possible beginning of a mark.
    pub fn finish(&mut self) -> Vec<Segment> {
        let mut found = vec![];
        match &mut self.state {
            State::Plain => {}
            State::Tags(tags) => tags.finish(&mut found),
            State::Channels(channels) => channels.finish(&mut found),
        }
        self.keep(found)
    }

    fn keep(&mut self, found: Vec<Segment>) -> Vec<Segment> {
        for s in &found {
            match s.part {
                Part::Thinking => self.thinking.push_str(&s.text),
                Part::Content => self.content.push_str(&s.text),
                Part::Other => {}
            }
        }
        found
    }

    /// What goes into the history: `content`, and `thinking` where there is some.
    pub fn message(&self) -> Message {
        let (mut thinking, mut content) = (self.thinking.as_str(), self.content.as_str());
        // Some models think without an opening tag, which templates tell from the closing one.
        if let State::Tags(tags) = &self.state
            && let Some((before, after)) = content.rsplit_once(tags.close).filter(|_| thinking.is_empty())
        {
            (thinking, content) = (before, after.trim_start_matches('\n'));
        }
        let thinking = thinking.trim_matches('\n');
        let thinking = (!thinking.trim().is_empty()).then(|| thinking.to_owned());
        Message { thinking, ..Message::new("assistant", content) }
    }
}

fn put(found: &mut Vec<Segment>, part: Part, text: &str) {
    if text.is_empty() {
        return;
    }
    match found.last_mut().filter(|s| s.part == part) {
        Some(last) => last.text.push_str(text),
        None => found.push(Segment { part, text: text.to_owned() }),
    }
}

/// Length of the longest end of `text` that `mark` begins with.
fn beginning(text: &str, mark: &str) -> usize {
    let fits = |n: &usize| mark.is_char_boundary(*n) && text.as_bytes().ends_with(&mark.as_bytes()[..*n]);
    (1..mark.len().min(text.len() + 1)).rev().find(fits).unwrap_or(0)
}

/// An answer with a pair of tags.
#[derive(Debug)]
struct Tags {
    open: &'static str,
    close: &'static str,
    place: Place,
    /// Text that may be the beginning of a tag.
    held: String,
    /// Whether line ends come that belong to a tag.
    after_tag: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    Thinking,
    Content,
}

impl Tags {
    fn after((open, close): (&'static str, &'static str), prompt: &Prompt) -> Self {
        let own = prompt.text.trim_end();
        let opened = own.ends_with(open) && !prompt.is_foreign(own.len() - open.len()..own.len());
        let place = if opened { Place::Thinking } else { Place::Start };
        Tags { open, close, place, held: String::new(), after_tag: opened }
    }

    fn push(&mut self, text: &str, mark: Option<&str>, kept: &Kept, found: &mut Vec<Segment>) {
        self.held.push_str(text);
        // Of control tokens only those are of interest that tags consist of, or calls.
        if let Some(m) = mark.filter(|m| self.open.contains(m) || self.close.contains(m)) {
            self.held.push_str(m);
        }
        while self.step(found) {}
        let Some(m) = mark.filter(|m| kept.has(m)) else { return };
        // Models that call a tool while they think mean to have thought.
        if kept.opening.contains(&m) && self.place != Place::Content {
            self.finish(found);
            (self.place, self.after_tag) = (Place::Content, false);
        }
        if self.place == Place::Content {
            self.held.push_str(m);
            while self.step(found) {}
        }
    }

    /// Whether there may be more to find.
    fn step(&mut self, found: &mut Vec<Segment>) -> bool {
        match self.place {
            Place::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(self.open) {
                    (self.held, self.place, self.after_tag) = (rest.to_owned(), Place::Thinking, true);
                } else if self.open.starts_with(text) {
                    return false;
                } else {
                    self.place = Place::Content;
                }
                true
            }
            Place::Thinking => {
                if let Some((thought, rest)) = self.held.split_once(self.close) {
                    let (thought, rest) = (thought.to_owned(), rest.to_owned());
                    self.show(Part::Thinking, &thought, found);
                    (self.held, self.place, self.after_tag) = (rest, Place::Content, true);
                    return true;
                }
                let rest = self.held.split_off(self.held.len() - beginning(&self.held, self.close));
                let thought = std::mem::replace(&mut self.held, rest);
                self.show(Part::Thinking, &thought, found);
                false
            }
            Place::Content => {
                let text = std::mem::take(&mut self.held);
                self.show(Part::Content, &text, found);
                false
            }
        }
    }

    fn show(&mut self, part: Part, text: &str, found: &mut Vec<Segment>) {
        let text = if self.after_tag { text.trim_start_matches('\n') } else { text };
        self.after_tag &= text.is_empty();
        put(found, part, text);
    }

    fn finish(&mut self, found: &mut Vec<Segment>) {
        let text = std::mem::take(&mut self.held);
        let part = if self.place == Place::Thinking { Part::Thinking } else { Part::Content };
        self.show(part, &text, found);
    }
}
