//! What a person says to the program in a conversation: lines that begin with a slash.

use super::{
    super::{
        failure::{Failure, Outcome, say, say_dim},
        load,
        output::read_text,
    },
    Talk,
};
use crate::{chat::Chat, sampler::SamplerOptions, tokenizer::Message};
use serde_json::{Value, json};
use std::path::Path;

/// What comes after a command.
pub enum Next {
    /// The next message.
    Done,
    /// The end.
    Quit,
    /// An answer to this.
    Ask(String),
    /// Messages of several lines, or of one again.
    ToggleMultiline,
}

/// Names, with what they take, and what they do.
const COMMANDS: &[(&str, &str, &str)] = &[
    ("/help", "", "this list"),
    ("/reset", "", "forget the conversation (/clear too)"),
    ("/regen", "", "another answer to the last message"),
    ("/undo", "", "take back the last message and its answer"),
    ("/system", "[TEXT]", "set the system message; without a text, none"),
    ("/set", "NAME VALUE", "temp, top-k, seed, tokens, thinking ...: /set lists them"),
    ("/show", "", "model, settings, and how full the context is"),
    ("/save", "FILE", "write the conversation as JSON"),
    ("/load", "FILE", "go on with a conversation that was saved"),
    ("/read", "FILE [TEXT]", "ask with a file's text behind the message"),
    ("/multiline", "", "messages end at an empty line; again: at a line's end"),
    ("/quit", "", "end (/exit, /bye, Ctrl-D)"),
];

/// The names, for completion.
pub fn names() -> impl Iterator<Item = &'static str> {
    COMMANDS.iter().map(|(name, ..)| *name)
}

/// Whether a text is a command, known or not: a slash and a word of letters, of which paths have two.
pub fn is_one(text: &str) -> bool {
    let first = text.split_whitespace().next().unwrap_or_default();
    let word = first.strip_prefix('/').unwrap_or_default();
    text.starts_with('/') && !text.trim_end().contains('\n') && !word.is_empty() && is_word(word)
}

/// Whether a line is a command that is known.
pub fn is_known(line: &str) -> bool {
    let first = line.split_whitespace().next().unwrap_or_default();
    is_one(line) && (names().any(|n| n == first) || ["/exit", "/bye", "/clear", "/?"].contains(&first))
}

fn is_word(text: &str) -> bool {
    text == "?" || text.chars().all(|c| c.is_ascii_lowercase())
}

/// Does what the text says, where it is a command; else it is a message.
pub fn run(talk: &mut Talk<'_>, text: &str) -> Outcome<Next> {
    if !is_one(text) {
        return Ok(Next::Ask(text.to_owned()));
    }
    let (name, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
    let rest = rest.trim();
    match name {
        "/quit" | "/exit" | "/bye" => return Ok(Next::Quit),
        "/help" | "/?" => help(),
        "/reset" | "/clear" => {
            talk.chat.reset();
            talk.tell("the conversation is forgotten");
        }
        "/undo" => match talk.chat.undo() {
            Some(message) => talk.tell(&format!("taken back: {}", first_line(&message.content))),
            None => talk.tell("there is nothing to take back"),
        },
        "/regen" => match talk.chat.undo() {
            Some(message) => {
                talk.options.sampler.seed = talk.options.sampler.seed.wrapping_add(1 << 32);
                return Ok(Next::Ask(message.content));
            }
            None => talk.tell("there is no message to answer"),
        },
        "/system" => system(talk, rest)?,
        "/set" => set(talk, rest)?,
        "/show" => show(talk),
        "/save" => save(talk, rest)?,
        "/load" => load(talk, rest)?,
        "/read" => return read(rest).map(Next::Ask),
        "/multiline" => return Ok(Next::ToggleMultiline),
        // What a script says is a message: it would not hear of the mistake.
        _ if !talk.person => return Ok(Next::Ask(text.to_owned())),
        other => {
            let near = names().find(|n| n.starts_with(other) || other.starts_with(n));
            let near = near.map_or(String::new(), |n| format!(" (did you mean {n}?)"));
            talk.tell(&format!("no such command: {other}{near}; /help lists them"));
        }
    }
    Ok(Next::Done)
}

impl Talk<'_> {
    /// A word to a person; a script gets answers only.
    pub fn tell(&self, text: &str) {
        if self.person {
            say_dim(text);
        }
    }
}

fn help() {
    for (name, takes, what) in COMMANDS {
        say(format_args!("  {:<19} {what}", format!("{name} {takes}")));
    }
    say(format_args!(
        "Several lines are one message when they are pasted, between \"\"\" and \"\"\", or\nwhere a line ends in a backslash."
    ));
}

fn first_line(text: &str) -> String {
    let line: String = text.lines().next().unwrap_or_default().chars().take(60).collect();
    if line.len() < text.trim_end().len() { format!("{line}...") } else { line }
}

fn system(talk: &mut Talk<'_>, text: &str) -> Outcome {
    let before = talk.chat.system().map(str::to_owned);
    talk.chat.set_system((!text.is_empty()).then_some(text));
    if let Err(e) = talk.check_system() {
        talk.chat.set_system(before.as_deref());
        return Err(e);
    }
    talk.tell(if text.is_empty() { "no system message from here on" } else { "the system message is set" });
    Ok(())
}

fn set(talk: &mut Talk<'_>, rest: &str) -> Outcome {
    let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let (name, value) = (name.trim_start_matches('-'), value.trim());
    let bad = || Failure::new(format!("/set {name}: {value:?} is no value for it"));
    let number = || value.parse::<f32>().map_err(|_| bad());
    let whole = || value.parse::<u64>().map_err(|_| bad());
    let switch = || match value {
        "on" | "show" | "true" | "1" => Ok(true),
        "off" | "hide" | "false" | "0" => Ok(false),
        _ => Err(bad()),
    };
    let mut sampler = talk.options.sampler;
    match name {
        "temp" | "temperature" => sampler.temperature = number()?,
        "top-k" | "top_k" => sampler.top_k = whole()? as usize,
        "top-p" | "top_p" => sampler.top_p = number()?,
        "min-p" | "min_p" => sampler.min_p = number()?,
        "repeat-penalty" | "repeat_penalty" => sampler.repeat_penalty = number()?,
        "seed" => sampler.seed = whole()?,
        "tokens" | "n" => talk.options.max_tokens = whole()? as usize,
        "thinking" => talk.thinking = switch()?,
        "verbose" => talk.verbose = switch()?,
        _ => {
            let known = "temp, top-k, top-p, min-p, repeat-penalty, seed, tokens, thinking, verbose";
            let what = if name.is_empty() { "/set NAME VALUE".to_owned() } else { format!("/set {name}") };
            return Err(Failure::new(format!("{what}: known are {known}")));
        }
    }
    load::check_sampler(sampler)?;
    talk.options.sampler = sampler;
    talk.tell(&format!("{name} is {value}"));
    Ok(())
}

fn show(talk: &Talk<'_>) {
    let SamplerOptions { temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed } = talk.options.sampler;
    let most = match talk.options.max_tokens {
        usize::MAX => "until the model ends".to_owned(),
        n => format!("{n} tokens"),
    };
    say(format_args!("  model      {} on {}", talk.model.definition().title, talk.model.describe()));
    say(format_args!("  context    {} of {} tokens", talk.session.position(), talk.session.ctx()));
    say(format_args!("  messages   {}", talk.chat.messages.len()));
    say(format_args!("  system     {}", talk.chat.system().map_or("none".into(), first_line)));
    say(format_args!("  sampling   temp {temperature}, top-k {top_k}, top-p {top_p}, min-p {min_p}, seed {seed}"));
    say(format_args!("  penalty    {repeat_penalty} on the last {repeat_last_n} tokens"));
    say(format_args!("  answers    {most}; thinking {}", if talk.thinking { "shown" } else { "hidden" }));
}

fn save(talk: &Talk<'_>, file: &str) -> Outcome {
    if file.is_empty() {
        return Err(Failure::new("/save FILE: name a file"));
    }
    let messages: Vec<Value> = talk.chat.messages.iter().map(|m| json!(m)).collect();
    let text = format!("{:#}\n", json!({ "messages": messages }));
    std::fs::write(file, text).map_err(|e| Failure::io("write", Path::new(file), &e))?;
    talk.tell(&format!("{} messages are in {file}", messages.len()));
    Ok(())
}

fn load(talk: &mut Talk<'_>, file: &str) -> Outcome {
    if file.is_empty() {
        return Err(Failure::new("/load FILE: name a file"));
    }
    let text = read_text("/load", Path::new(file))?;
    let bad = |what: &str| Failure::new(format!("/load: {file} {what}"));
    let value: Value = serde_json::from_str(&text).map_err(|e| bad(&format!("is no JSON: {e}")))?;
    let list = value.get("messages").unwrap_or(&value).as_array().ok_or_else(|| bad("has no list of messages"))?;
    let message = |m: &Value| {
        let text = |key: &str| m.get(key).and_then(Value::as_str);
        Some(Message { thinking: text("thinking").map(str::to_owned), ..Message::new(text("role")?, text("content")?) })
    };
    let messages: Option<Vec<Message>> = list.iter().map(message).collect();
    let messages = messages.ok_or_else(|| bad("has a message without role and content"))?;
    talk.chat = Chat { messages, ..talk.chat.clone() };
    talk.tell(&format!("{} messages", talk.chat.messages.len()));
    Ok(())
}

/// The message of `/read`.
fn read(rest: &str) -> Outcome<String> {
    let (file, question) = match rest.strip_prefix('"').and_then(|r| r.split_once('"')) {
        Some((file, question)) => (file, question.trim()),
        None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
    };
    if file.is_empty() {
        return Err(Failure::new("/read FILE [TEXT]: name a file (in quotes where its name has blanks)"));
    }
    let text = read_text("/read", Path::new(file))?;
    let whole = if question.is_empty() { text } else { format!("{}\n\n{text}", question.trim()) };
    Ok(whole.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::is_one;

    #[test]
    fn paths_are_messages() {
        assert!(is_one("/help") && is_one("/set temp 0") && is_one("/?") && is_one("/nonsense"));
        assert!(
            !is_one("/usr/bin is where?") && !is_one("help") && !is_one("/ a") && !is_one("/a\nb") && !is_one("//")
        );
    }
}
