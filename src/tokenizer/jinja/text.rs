//! Strings that know which of their bytes came in with the conversation.

use std::{ops::Range, rc::Rc};

/// A string, and the ranges of it that are not the template's own: what a person, a tool or a model wrote.
#[derive(Clone, Debug, Default)]
pub(in crate::tokenizer) struct Text {
    text: Rc<str>,
    /// In order, without overlap, none empty.
    foreign: Rc<[Range<usize>]>,
}

impl Text {
    /// The template's own text.
    pub fn own(text: impl Into<Rc<str>>) -> Text {
        Text { text: text.into(), foreign: Rc::from([]) }
    }

    /// Text of the conversation.
    pub fn foreign(text: impl Into<Rc<str>>) -> Text {
        let text: Rc<str> = text.into();
        let foreign = std::iter::once(0..text.len()).filter(|r| !r.is_empty()).collect();
        Text { text, foreign }
    }

    /// Text made of this one in a way that does not say which byte comes from where: foreign where a byte of the source is.
    pub fn made(&self, text: impl Into<Rc<str>>) -> Text {
        if self.is_own() { Text::own(text) } else { Text::foreign(text) }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether the template wrote all of it.
    pub fn is_own(&self) -> bool {
        self.foreign.is_empty()
    }

    /// The ranges that are not the template's own.
    pub fn foreign_ranges(&self) -> &[Range<usize>] {
        &self.foreign
    }

    /// A part of it, at character borders.
    pub fn slice(&self, range: Range<usize>) -> Text {
        if range == (0..self.len()) {
            return self.clone();
        }
        let cut = |r: &Range<usize>| {
            let (start, end) = (r.start.max(range.start), r.end.min(range.end));
            (start < end).then(|| start - range.start..end - range.start)
        };
        Text { text: self.text[range.clone()].into(), foreign: self.foreign.iter().filter_map(cut).collect() }
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Text) -> bool {
        self.text == other.text
    }
}

/// Text that grows.
#[derive(Clone, Debug, Default)]
pub(super) struct Builder {
    text: String,
    foreign: Vec<Range<usize>>,
}

impl Builder {
    pub fn len(&self) -> usize {
        self.text.len()
    }

    pub fn own(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub fn push(&mut self, text: &Text) {
        let at = self.text.len();
        self.text.push_str(text.as_str());
        for r in text.foreign.iter() {
            let r = r.start + at..r.end + at;
            match self.foreign.last_mut() {
                Some(last) if last.end == r.start => last.end = r.end,
                _ => self.foreign.push(r),
            }
        }
    }

    pub fn finish(self) -> Text {
        Text { text: self.text.into(), foreign: self.foreign.into() }
    }
}

/// Texts one behind the other.
pub(super) fn joined<'a>(parts: impl IntoIterator<Item = &'a Text>) -> Text {
    let mut out = Builder::default();
    parts.into_iter().for_each(|p| out.push(p));
    out.finish()
}
