//! JSON lines: `{"text": …}`, `{"prompt": …, "completion": …}`, `{"messages": [{"role": …, "content": …}]}`.

use super::{corpus::Corpus, source::Source};
use crate::{
    error::{Error, Result},
    tokenizer::{EncodeOptions, Prompt, RenderOptions, Tokenizer},
};
use serde_json::Value as Json;

/// Words of a message's role under which an answer comes.
const ANSWERS: [&str; 3] = ["assistant", "gpt", "model"];

/// Adds the sample of one line.
pub(super) fn line(name: &str, line: &str, source: &Source, tokenizer: &Tokenizer, corpus: &mut Corpus) -> Result<()> {
    let object: Json =
        serde_json::from_str(line).map_err(|e| Error::Invalid(format!("{name}: is no valid JSON: {e}")))?;
    if !object.is_object() {
        return Err(Error::Invalid(format!("{name}: is {}; an object is expected in every line", kind(&object))));
    }
    let string = |key: &str| match object.get(key) {
        None => Ok(None),
        Some(Json::String(s)) => Ok(Some(s.as_str())),
        Some(other) => Err(Error::Invalid(format!("{name}: `{key}` is {}; a text is expected", kind(other)))),
    };
    if let Some(messages) = object.get("messages").or_else(|| object.get("conversations")) {
        let messages = messages
            .as_array()
            .ok_or_else(|| Error::Invalid(format!("{name}: `messages` is {}; a list is expected", kind(messages))))?;
        return conversation(name, messages, source, tokenizer, corpus);
    }
    if let (Some(prompt), Some(completion)) = (string("prompt")?, string("completion")?) {
        let mut ids = tokenizer.encode(prompt, EncodeOptions::default())?;
        let asked = ids.len();
        ids.extend(tokenizer.encode(completion, EncodeOptions { add_bos: false, parse_special: false })?);
        ids.extend(tokenizer.eos().filter(|_| source.add_eos));
        let learnt = (0..ids.len()).map(|i| source.train_on_inputs || i >= asked).collect();
        return corpus.add_sample(name, ids, learnt, source.excess);
    }
    if let Some(text) = string("text")? {
        let mut ids = tokenizer.encode(text, EncodeOptions::default())?;
        ids.extend(tokenizer.eos().filter(|_| source.add_eos));
        return corpus.add_text(name, ids);
    }
    let keys: Vec<&str> = object.as_object().map_or(vec![], |o| o.keys().map(String::as_str).collect());
    Err(Error::Invalid(format!(
        "{name}: has none of `text`, `messages`, and `prompt` with `completion`; its keys are [{}]",
        keys.join(", ")
    )))
}

fn kind(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "a truth value",
        Json::Number(_) => "a number",
        Json::String(_) => "a text",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    }
}

/// A conversation through the model's chat template. Every answer is learnt behind the very prompt that a person's program would
/// render for it; where the template renders earlier turns otherwise once they lie behind (and leaves out what was thought),
/// a sample ends and another begins.
fn conversation(
    name: &str,
    messages: &[Json],
    source: &Source,
    tokenizer: &Tokenizer,
    corpus: &mut Corpus,
) -> Result<()> {
    let named = |e: Error| Error::Invalid(format!("{name}: {e}"));
    let template = tokenizer.chat_template().map_err(named)?;
    let template = template.ok_or_else(|| {
        Error::Invalid(format!("{name}: `messages` need a chat template, and this tokenizer has none"))
    })?;
    let messages: Vec<Json> = messages.iter().map(|m| message(name, m)).collect::<Result<_>>()?;
    let render = |n: usize, add_generation_prompt: bool| {
        template
            .prompt_of(&messages[..n], &RenderOptions { add_generation_prompt, ..Default::default() })
            .map_err(named)
    };
    let mut sample = Sample::default();
    let answers = (0..messages.len()).filter(|i| ANSWERS.contains(&messages[*i]["role"].as_str().unwrap_or_default()));
    for i in answers {
        let (asked, answered) = (render(i, true)?, render(i + 1, false)?);
        let prompt = tokenizer.encode_prompt(&asked)?;
        if !prompt.starts_with(&sample.ids) {
            // Earlier turns are rendered otherwise now: they are learnt already, and the next sample has them as context.
            sample.add(name, source, corpus)?;
        }
        let whole = tokenizer.encode_prompt(&answered)?;
        let answer = match whole.strip_prefix(&prompt[..]) {
            Some(answer) => answer.to_vec(),
            // Some templates open the answer otherwise in a prompt than in a history (with an empty thought, say), and some
            // tokens reach over the border, which a prompt's cannot.
            None => tokenizer.encode_continuation(&behind(&answered, common(&asked, &answered)))?,
        };
        // What comes behind the end of the answer is the template's, not the model's.
        let end = answer.iter().position(|id| tokenizer.eos_ids().contains(id)).map_or(answer.len(), |at| at + 1);
        sample.learnt.resize(prompt.len(), source.train_on_inputs);
        sample.learnt.extend((0..answer.len()).map(|j| source.train_on_inputs || j < end));
        sample.ids = [prompt, answer].concat();
    }
    if sample.ids.is_empty() {
        return Err(Error::Invalid(format!(
            "{name}: no message of the role assistant, so there is no answer to learn"
        )));
    }
    sample.add(name, source, corpus)
}

/// A sample under way.
#[derive(Default)]
struct Sample {
    ids: Vec<u32>,
    learnt: Vec<bool>,
}

impl Sample {
    /// Ends the sample, and begins an empty one.
    fn add(&mut self, name: &str, source: &Source, corpus: &mut Corpus) -> Result<()> {
        corpus.add_sample(name, std::mem::take(&mut self.ids), std::mem::take(&mut self.learnt), source.excess)
    }
}

/// How many bytes the two begin with alike, up to the end of a letter.
fn common(a: &Prompt, b: &Prompt) -> usize {
    let pairs = a.text.char_indices().zip(b.text.chars());
    pairs.take_while(|((_, a), b)| a == b).last().map_or(0, |((i, c), _)| i + c.len_utf8())
}

/// The part of a prompt from byte `at`.
fn behind(prompt: &Prompt, at: usize) -> Prompt {
    let foreign = prompt.foreign.iter().filter(|r| r.end > at).map(|r| r.start.max(at) - at..r.end - at).collect();
    Prompt { text: prompt.text[at..].to_owned(), foreign }
}

/// A message with a role and a content; ShareGPT's `from` and `value` are read as such.
fn message(name: &str, m: &Json) -> Result<Json> {
    let word = |keys: [&str; 2]| keys.iter().find_map(|k| m.get(*k)).cloned();
    let (Some(Json::String(role)), Some(content)) = (word(["role", "from"]), word(["content", "value"])) else {
        return Err(Error::Invalid(format!("{name}: a message without `role` or `content`")));
    };
    let role = match role.as_str() {
        "human" => "user",
        "gpt" | "model" => "assistant",
        other => other,
    };
    let mut out = m.as_object().cloned().unwrap_or_default();
    out.shift_remove("from");
    out.shift_remove("value");
    out.insert("role".into(), role.into());
    out.insert("content".into(), content);
    Ok(Json::Object(out))
}
