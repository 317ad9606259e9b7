//! Text with calls in it, character by character: what is text, what is a call, and what only looked like one.

use super::{
    grammar::{Grammar, Verdict},
    sink::Sink,
    syntax::ToolSyntax,
};
use crate::tokenizer::AnswerPart;
use std::collections::VecDeque;

#[derive(Debug)]
enum State {
    Text,
    Call(Box<dyn Grammar>),
    /// Behind a call that broke off: nothing is text before its end.
    Broken,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Scanner {
    syntax: ToolSyntax,
    pub sink: Sink,
    state: State,
    /// Blanks and the possible beginning of a mark behind them.
    tail: String,
    /// What was read of calls and belongs to none yet.
    raw: String,
    /// Whether there was nothing but blanks so far.
    start: bool,
    /// Whether blanks belong to the calls before them.
    after_call: bool,
    queue: VecDeque<char>,
}

/// Of what may be a call no more than this is held back.
const MOST_HELD: usize = 1 << 16;

impl Scanner {
    pub fn new(syntax: ToolSyntax, sink: Sink) -> Self {
        Scanner {
            syntax,
            sink,
            state: State::Text,
            tail: String::new(),
            raw: String::new(),
            start: true,
            after_call: false,
            queue: VecDeque::new(),
        }
    }

    /// Takes some text.
    pub fn push(&mut self, text: &str) {
        self.queue.extend(text.chars());
        self.run();
    }

    /// Nothing follows.
    pub fn end(&mut self) {
        loop {
            match &mut self.state {
                State::Text => {
                    let tail = std::mem::take(&mut self.tail);
                    self.text(&tail);
                    return;
                }
                State::Broken => return,
                State::Call(_) => {}
            }
            if self.sink.open {
                self.sink.abandon();
                return;
            }
            // Behind a call it is the beginning of what ends it, or of another, and no text.
            if self.after_call {
                return;
            }
            self.give_back();
            self.run();
        }
    }

    fn run(&mut self) {
        while let Some(c) = self.queue.pop_front() {
            match &mut self.state {
                State::Text => {
                    self.tail.push(c);
                    self.look();
                }
                State::Broken => {
                    self.raw.push(c);
                    if self.syntax.closing().last().is_some_and(|end| self.raw.ends_with(end)) {
                        self.raw.clear();
                        self.state = State::Text;
                    }
                }
                State::Call(grammar) => {
                    self.raw.push(c);
                    let verdict = grammar.push(c, &mut self.sink);
                    self.judge(verdict);
                }
            }
        }
    }

    fn judge(&mut self, verdict: Verdict) {
        if self.sink.take_moved() {
            (self.start, self.after_call) = (false, true);
            self.raw.clear();
        }
        match verdict {
            Verdict::More if self.raw.len() <= MOST_HELD || self.sink.open => {
                if self.sink.open {
                    self.raw.clear();
                }
            }
            Verdict::Done => {
                self.raw.clear();
                (self.state, self.after_call) = (State::Text, true);
            }
            Verdict::Before => {
                if let Some(c) = self.raw.pop() {
                    self.queue.push_front(c);
                }
                self.raw.clear();
                self.state = State::Text;
            }
            Verdict::No if self.sink.open => {
                self.sink.abandon();
                self.raw.clear();
                self.state = State::Broken;
            }
            Verdict::More | Verdict::No => self.give_back(),
        }
    }

    /// What was held back is no call: its first character is text, and the others are looked at again.
    fn give_back(&mut self) {
        self.state = State::Text;
        let raw = std::mem::take(&mut self.raw);
        let body = raw.trim_start();
        // Marks that nobody means as text.
        if let Some(rest) = self.syntax.silent().iter().find_map(|m| body.strip_prefix(m)) {
            for c in rest.chars().rev() {
                self.queue.push_front(c);
            }
            return;
        }
        let first = body.chars().next().map_or(0, char::len_utf8);
        let (text, rest) = raw.split_at(raw.len() - body.len() + first);
        self.text(text);
        for c in rest.chars().rev() {
            self.queue.push_front(c);
        }
    }

    /// Whether the tail opens a call, may do so, or begins with text.
    fn look(&mut self) {
        while !self.tail.is_empty() {
            let body = self.tail.trim_start();
            let Some(first) = body.chars().next() else { return };
            if self.start && self.syntax.bare(first) {
                let mut grammar = self.syntax.grammar("");
                let verdict = grammar.push(first, &mut self.sink);
                self.open(grammar);
                return self.judge(verdict);
            }
            if let Some(mark) = self.syntax.opening().iter().find(|m| **m == body) {
                let grammar = self.syntax.grammar(mark);
                return self.open(grammar);
            }
            let closing = if self.after_call { self.syntax.closing() } else { &[] };
            if closing.contains(&body) {
                return self.tail.clear();
            }
            if self.syntax.opening().iter().chain(closing).any(|m| m.starts_with(body)) {
                return;
            }
            let rest = self.tail.split_off(self.tail.len() - body.len() + first.len_utf8());
            let text = std::mem::replace(&mut self.tail, rest);
            self.text(&text);
        }
    }

    fn open(&mut self, grammar: Box<dyn Grammar>) {
        self.raw = std::mem::take(&mut self.tail);
        self.state = State::Call(grammar);
    }

    fn text(&mut self, text: &str) {
        let text = if self.after_call { text.trim_start() } else { text };
        if !text.is_empty() {
            (self.start, self.after_call) = (false, false);
            self.sink.text(AnswerPart::Content, text);
        }
    }
}
