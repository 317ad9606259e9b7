//! An answer with calls of tools, token by token.

use super::{
    AnswerDelta, Tool, ToolCall,
    json::{Json, Took, blank},
    scan::Scanner,
    sink::Sink,
    syntax::ToolSyntax,
};
use crate::tokenizer::{AnswerPart, AnswerReader, Prompt, Segment, Tokenizer};

/// Reads an answer that may call tools: an [`AnswerReader`] that tells calls from text. Where a text was cut into tokens makes
/// no difference to what comes out.
#[derive(Debug)]
pub struct ToolReader {
    reader: AnswerReader,
    scanner: Scanner,
    message: Option<Message>,
    thinking: String,
    content: String,
}

/// A message to a function (Harmony).
#[derive(Debug)]
struct Message {
    index: usize,
    name: String,
    body: Body,
}

#[derive(Debug)]
enum Body {
    /// Blanks, or nothing.
    Empty,
    Json(Json),
    /// Whole, or broken off.
    Over,
    /// Something else than arguments.
    Other,
}

impl ToolReader {
    /// A reader of the answer to `prompt`, which showed these tools. Ids of calls follow from `seed` where the model writes
    /// none.
    pub fn new(tokenizer: &Tokenizer, prompt: &Prompt, syntax: ToolSyntax, tools: &[Tool], seed: u64) -> Self {
        let reader = AnswerReader::new(tokenizer, prompt);
        // Messages in channels name the function themselves.
        let syntax = if reader.has_channels() { ToolSyntax::Harmony } else { syntax };
        ToolReader {
            reader: reader.keeping(syntax.kept()),
            scanner: Scanner::new(syntax, Sink::new(tools, syntax.ids(), seed)),
            message: None,
            thinking: String::new(),
            content: String::new(),
        }
    }

    /// Takes a token with its text (as [`crate::tokenizer::DecodeStream`] gave it), and gives what became clear.
    pub fn push(&mut self, id: u32, text: &str) -> Vec<AnswerDelta> {
        let segments = self.reader.push(id, text);
        self.segments(segments);
        let to = self.reader.recipient().map(|(index, name)| (index, name.to_owned()));
        if self.message.as_ref().map(|m| m.index) != to.as_ref().map(|t| t.0) {
            self.finish_message(true);
            self.message = to.map(|(index, name)| Message { index, name, body: Body::Empty });
        }
        self.take()
    }

    /// Nothing follows: what was held back as the possible beginning of a mark or a call. A call that is not whole stays
    /// without [`ToolCall::complete`].
    pub fn finish(&mut self) -> Vec<AnswerDelta> {
        let segments = self.reader.finish();
        self.segments(segments);
        self.finish_message(false);
        self.scanner.end();
        self.take()
    }

    /// The calls so far.
    pub fn calls(&self) -> &[ToolCall] {
        &self.scanner.sink.calls
    }

    /// The answer's text so far, without calls.
    pub fn content(&self) -> &str {
        &self.content
    }

    /// What the model thought so far.
    pub fn thinking(&self) -> &str {
        &self.thinking
    }

    fn segments(&mut self, segments: Vec<Segment>) {
        for Segment { part, text } in segments {
            match (part, &mut self.message) {
                (AnswerPart::Content, _) => self.scanner.push(&text),
                (AnswerPart::Other, Some(message)) => message.push(&text, &mut self.scanner.sink),
                (AnswerPart::Thinking | AnswerPart::Other, _) => self.scanner.sink.text(part, &text),
            }
        }
    }

    /// `ended`: the model ended the message itself.
    fn finish_message(&mut self, ended: bool) {
        let Some(message) = self.message.take() else { return };
        let sink = &mut self.scanner.sink;
        match message.body {
            Body::Empty if ended && sink.start(&message.name, None) => {
                sink.arguments("{}");
                sink.close();
            }
            Body::Json(_) => sink.abandon(),
            Body::Empty | Body::Over | Body::Other => {}
        }
    }

    fn take(&mut self) -> Vec<AnswerDelta> {
        let deltas = self.scanner.sink.take();
        for delta in &deltas {
            match delta {
                AnswerDelta::Text(s) if s.part == AnswerPart::Thinking => self.thinking.push_str(&s.text),
                AnswerDelta::Text(s) if s.part == AnswerPart::Content => self.content.push_str(&s.text),
                AnswerDelta::Text(_) | AnswerDelta::Call(_) => {}
            }
        }
        deltas
    }
}

impl Message {
    fn push(&mut self, text: &str, sink: &mut Sink) {
        for c in text.chars() {
            if matches!(self.body, Body::Empty) && !blank(c) {
                let arguments = c == '{' && sink.start(&self.name, None);
                self.body = if arguments { Body::Json(Json::new()) } else { Body::Other };
            }
            match &mut self.body {
                Body::Empty | Body::Over => {}
                Body::Other => sink.text(AnswerPart::Other, c.encode_utf8(&mut [0; 4])),
                Body::Json(json) => {
                    let mut written = String::new();
                    let took = json.push(c, &mut written);
                    sink.arguments(&written);
                    match took {
                        Took::More => continue,
                        Took::Done => sink.close(),
                        Took::Before | Took::Bad => sink.abandon(),
                    }
                    self.body = Body::Over;
                }
            }
        }
    }
}
