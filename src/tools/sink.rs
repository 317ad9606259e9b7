//! What comes out of an answer with calls: pieces of text and of calls, in their order.

use super::{AnswerDelta, CallDelta, Tool, ToolCall};
use crate::tokenizer::{AnswerPart, Segment};

/// Letters and digits of ids.
const LETTERS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `length` letters and digits that follow from `seed`: splitmix64 (Steele et al. 2014).
pub(super) fn letters(mut seed: u64, length: usize) -> String {
    let mut next = || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (seed ^ seed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        char::from(LETTERS[((x ^ x >> 31) % 62) as usize])
    };
    (0..length).map(|_| next()).collect()
}

/// How ids of calls look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdForm {
    /// `call_` and 24 letters and digits, as OpenAI's.
    Call,
    /// Nine letters and digits, as Mistral's templates demand.
    Nine,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Sink {
    tools: Vec<Tool>,
    ids: IdForm,
    seed: u64,
    out: Vec<AnswerDelta>,
    pub calls: Vec<ToolCall>,
    /// Whether a call is being written.
    pub open: bool,
    /// Whether a call began or ended since somebody asked last.
    moved: bool,
}

/// Longer names are none.
const LONGEST_NAME: usize = 256;

impl Sink {
    pub fn new(tools: &[Tool], ids: IdForm, seed: u64) -> Self {
        Sink { tools: tools.to_vec(), ids, seed, out: vec![], calls: vec![], open: false, moved: false }
    }

    /// What came since somebody asked last.
    pub fn take(&mut self) -> Vec<AnswerDelta> {
        std::mem::take(&mut self.out)
    }

    /// Whether a call began or ended since somebody asked last.
    pub fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// A tool with this name.
    pub fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().find(|t| t.name == name)
    }

    pub fn text(&mut self, part: AnswerPart, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.out.last_mut() {
            Some(AnswerDelta::Text(last)) if last.part == part => last.text.push_str(text),
            _ => self.out.push(AnswerDelta::Text(Segment { part, text: text.to_owned() })),
        }
    }

    /// Begins a call; `false` where the name is none.
    pub fn start(&mut self, name: &str, id: Option<String>) -> bool {
        let name = name.trim();
        let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '<' | '>' | '"' | '{' | '}');
        if self.open || name.is_empty() || name.len() > LONGEST_NAME || name.contains(odd) {
            return false;
        }
        let index = self.calls.len();
        let id = id.unwrap_or_else(|| {
            let seed = self.seed.wrapping_add((index as u64).wrapping_mul(0xd134_2543_de82_ef95));
            match self.ids {
                IdForm::Call => format!("call_{}", letters(seed, 24)),
                IdForm::Nine => letters(seed, 9),
            }
        });
        self.calls.push(ToolCall { id: id.clone(), name: name.to_owned(), arguments: String::new(), complete: false });
        let head = Some(ToolCall { id, name: name.to_owned(), arguments: String::new(), complete: false });
        self.out.push(AnswerDelta::Call(CallDelta { index, head, arguments: String::new() }));
        (self.open, self.moved) = (true, true);
        true
    }

    /// Some more of the open call's arguments.
    pub fn arguments(&mut self, text: &str) {
        if text.is_empty() || !self.open {
            return;
        }
        let index = self.calls.len() - 1;
        self.calls[index].arguments.push_str(text);
        match self.out.last_mut() {
            Some(AnswerDelta::Call(last)) if last.index == index => last.arguments.push_str(text),
            _ => self.out.push(AnswerDelta::Call(CallDelta { index, head: None, arguments: text.to_owned() })),
        }
    }

    /// The open call's arguments are whole.
    pub fn close(&mut self) {
        if let Some(call) = self.calls.last_mut().filter(|_| self.open) {
            call.complete = true;
        }
        (self.open, self.moved) = (false, true);
    }

    /// The open call stays unfinished.
    pub fn abandon(&mut self) {
        self.open = false;
    }
}
