//! Answers in messages that name channels: gpt-oss' Harmony format.

use super::{Part, Segment, put};
use crate::tokenizer::Prompt;

/// An answer in messages, each with a header that may name a channel and a recipient.
#[derive(Debug)]
pub(super) struct Channels {
    /// What the message is; `None` in its header.
    pub part: Option<Part>,
    /// Text of the header, and behind its mark the channel's name.
    header: String,
    channel: Option<String>,
    /// Whether the header's text says something of the content's form.
    form: bool,
    /// Whether the answer had a message.
    said: bool,
    /// Messages so far, the one that is being read not counted.
    pub messages: usize,
    /// The function that the message is for.
    pub to: Option<String>,
}

/// The name of the function in `to=functions.NAME`, a part of a header.
fn function_in(header: &str) -> Option<String> {
    let to = header.split("to=").nth(1)?;
    let name: String = to.chars().take_while(|c| !c.is_whitespace() && *c != '<').collect();
    name.strip_prefix("functions.").filter(|n| !n.is_empty()).map(str::to_owned)
}

const CHANNEL_MARKS: &[&str] =
    &["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"];

/// A header of more text is none: the model answers without one.
const LONGEST_HEADER: usize = 100;

impl Channels {
    pub fn after(prompt: &Prompt) -> Self {
        let mut channels = Channels {
            part: None,
            header: String::new(),
            channel: None,
            form: false,
            said: false,
            messages: 0,
            to: None,
        };
        // The template's own beginning of the answer.
        let own = |(at, mark): &(usize, &str)| !prompt.is_foreign(*at..at + mark.len());
        let Some((start, _)) = prompt.text.rmatch_indices("<|start|>").find(own) else { return channels };
        let mut rest = &prompt.text[start..];
        let mut unseen = vec![];
        while let Some((at, mark)) = CHANNEL_MARKS.iter().filter_map(|m| Some((rest.find(m)?, *m))).min() {
            channels.push(&rest[..at], Some(mark), &mut unseen);
            rest = &rest[at + mark.len()..];
        }
        // The role, or the channel that the template chose.
        if channels.channel.is_some() && channels.part.is_none() {
            channels.push(rest, None, &mut unseen);
        }
        channels.said = false;
        channels
    }

    pub fn push(&mut self, text: &str, mark: Option<&str>, found: &mut Vec<Segment>) {
        self.text(text, found);
        match mark {
            Some("<|start|>" | "<|end|>" | "<|return|>" | "<|call|>") => {
                self.messages += usize::from(self.part.is_some());
                (self.part, self.channel, self.form, self.to) = (None, None, false, None);
                self.header.clear();
            }
            Some("<|channel|>") => (self.part, self.channel) = (None, Some(String::new())),
            Some("<|constrain|>") => self.form = true,
            Some("<|message|>") => {
                let to = self.header.contains("to=");
                let channel = self.channel.as_deref().unwrap_or_default();
                self.to = function_in(&self.header).or_else(|| function_in(channel));
                self.part = Some(match channel.split_whitespace().next() {
                    _ if to || channel.contains("to=") => Part::Other,
                    None | Some("final") => Part::Content,
                    Some("analysis") => Part::Thinking,
                    Some(_) => Part::Other,
                });
                self.said = true;
                self.header.clear();
            }
            // Other control tokens are no part of an answer.
            Some(_) | None => {}
        }
    }

    fn text(&mut self, text: &str, found: &mut Vec<Segment>) {
        match (self.part, &mut self.channel) {
            (Some(part), _) => put(found, part, text),
            (None, _) if self.form => {}
            (None, Some(channel)) => channel.push_str(text),
            (None, None) => {
                self.header.push_str(text);
                if !self.said && self.header.len() > LONGEST_HEADER {
                    self.finish(found);
                }
            }
        }
    }

    /// An answer without any header is content.
    pub fn finish(&mut self, found: &mut Vec<Segment>) {
        if !self.said && self.part.is_none() && self.channel.is_none() {
            put(found, Part::Content, &std::mem::take(&mut self.header));
            (self.part, self.said) = (Some(Part::Content), true);
        }
    }
}
