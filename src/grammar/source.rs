//! Grammars as texts in Lark's language, with what may precede an answer.

use super::{Grammar, calls, marks::Marks, schema};
use crate::{
    error::{Error, Result},
    tokenizer::{Before, Prompt, Tokenizer},
};
use serde_json::json;

/// What may precede the answer: the rules `before`, and how it is used.
fn preamble(marks: &Marks<'_>, before: &Before, calls: bool) -> (String, String) {
    match before {
        Before::Nothing => (String::new(), String::new()),
        Before::Tags { open, close, opened } => {
            let (attributes, until) = marks.until(close);
            let rules = format!("thought{attributes}: {until}\n");
            if *opened {
                return (format!("{rules}before: thought /[ \\n]{{0,4}}/\n"), "before ".into());
            }
            // A model whose vocabulary has the tag may think without being asked to.
            if marks.0.token_id(open).is_none() {
                return (String::new(), String::new());
            }
            let open = marks.mark(open);
            (format!("{rules}before: {open} thought /[ \\n]{{0,4}}/\n"), "before? ".into())
        }
        Before::Channels { thinking } => {
            let m = |text: &str| marks.mark(text);
            let thought = format!("thought: /(.|\\n)*/ {} {} \"assistant\"\n", m("<|end|>"), m("<|start|>"));
            let open = format!("{} \"analysis\" {}", m("<|channel|>"), m("<|message|>"));
            // A message to somebody says so before or behind the channel; `calls` writes that.
            let last =
                if calls { String::new() } else { format!("{} \"final\" {}", m("<|channel|>"), m("<|message|>")) };
            let rules = match thinking {
                None => format!("{thought}before: ({open} thought)? {last}\n"),
                Some(true) => format!("{thought}before: thought {last}\n"),
                Some(false) => return (String::new(), String::new()),
            };
            (rules, "before ".into())
        }
    }
}

/// The grammar of an answer to `prompt`.
///
/// # Errors
/// [`Error::Invalid`] for a schema that asks for what is not enforced, and where there is nothing to call.
pub(super) fn lark(grammar: &Grammar, tokenizer: &Tokenizer, prompt: &Prompt) -> Result<String> {
    let marks = Marks(tokenizer);
    let before = Before::of(tokenizer, prompt);
    let (mut rules, start) = preamble(&marks, &before, matches!(grammar, Grammar::Calls { .. }));
    let body = match grammar {
        Grammar::JsonObject => schema::lark(&json!({ "type": "object" }))?,
        Grammar::JsonSchema(schema) => schema::lark(schema)?,
        Grammar::Regex(regex) => format!("/{}/", regex.replace('/', "\\/").replace('\n', "\\n")),
        // The person's own grammar has rules of its own, and is all of the answer.
        Grammar::Lark(source) => return Ok(source.clone()),
        Grammar::Calls { tools, .. } if tools.is_empty() => {
            return Err(Error::Invalid("a call is required, and there are no tools".into()));
        }
        Grammar::Calls { syntax, tools, several } => {
            let (more, body) = calls::rules(&marks, *syntax, tools, *several)?;
            rules.push_str(&more);
            body
        }
    };
    Ok(format!("start: {start}answer\nanswer: {body}\n{rules}"))
}
