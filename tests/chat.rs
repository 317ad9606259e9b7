//! Conversations of the library, with models whose every word is known: what goes into the history, what is fed, what stops.

use super::support::successor::Successor;
use moeray::{
    Error,
    chat::Chat,
    generate::SamplerOptions,
    generate::{CancelToken, FinishReason, GenerateOptions, generate},
    session::{BackendChoice, LoadOptions, Model, Session, SessionOptions},
    tokenizer::{AnswerPart, EncodeOptions},
};
use std::path::Path;

fn load(path: &Path) -> Model {
    let options = LoadOptions { backend: BackendChoice::Reference, ..LoadOptions::default() };
    Model::load(path, &options, &mut |_| {}).unwrap()
}

fn session(model: &Model, ctx: usize) -> Session {
    Session::new(model, SessionOptions { ctx, ..SessionOptions::default() }).unwrap()
}

fn options(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens, sampler: SamplerOptions::greedy(), ..GenerateOptions::default() }
}

/// The parts of an answer, joined where they are of one kind, and why it ended.
fn ask(
    chat: &mut Chat,
    session: &mut Session,
    text: &str,
    max_tokens: usize,
) -> (Vec<(AnswerPart, String)>, FinishReason) {
    let mut turn = chat.ask(session, text, options(max_tokens), CancelToken::new()).unwrap();
    let mut parts: Vec<(AnswerPart, String)> = vec![];
    for segment in turn.by_ref() {
        let segment = segment.unwrap();
        match parts.last_mut().filter(|(part, _)| *part == segment.part) {
            Some((_, text)) => text.push_str(&segment.text),
            None => parts.push((segment.part, segment.text)),
        }
    }
    let reason = turn.finish_reason().unwrap();
    (parts, reason)
}

/// gpt-oss' format: a template that refuses marks in the content of an answer, as the published one does.
const HARMONY: &str = "\
{%- for m in messages -%}{%- if m.role == 'assistant' -%}{%- if '<|' in m.content -%}{{ raise_exception('marks') }}{%- endif -%}
<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{%- else -%}
<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{%- endif -%}{%- endfor -%}<|start|>assistant";

#[test]
fn only_the_final_channel_is_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    // Thinking on the channel `analysis`, then the answer. `assistant` ends in t in the prompt, and is a word in the answer.
    let model = Successor {
        chain: &[
            ("t", "<|channel|>"),
            ("<|channel|>", "analysis"),
            ("analysis", "<|message|>"),
            ("<|message|>", "Hm."),
            ("Hm.", "<|end|>"),
            ("<|end|>", "<|start|>"),
            ("<|start|>", "final"),
            ("final", "<|constrain|>"),
            ("<|constrain|>", "Hi."),
            ("Hi.", "<|return|>"),
        ],
        words: &["analysis", "final", "Hm.", "Hi."],
        controls: &["<|return|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"],
        template: HARMONY,
    };
    let model = load(&model.write(dir.path(), "harmony.gguf"));
    assert_eq!(model.require_tokenizer().unwrap().eos_ids().len(), 1, "the end of a message is no end of the answer");
    let (mut chat, mut session) = (Chat::new(), session(&model, 500));
    let (parts, reason) = ask(&mut chat, &mut session, "Hello", 20);
    assert_eq!(parts, [(AnswerPart::Thinking, "Hm.".to_owned())]);
    assert!(matches!(reason, FinishReason::EndOfText(_)));
    let answer = chat.messages.last().unwrap();
    assert_eq!((answer.content.as_str(), answer.thinking.as_deref()), ("", Some("Hm.")));
    // The second turn is fed without what was thought.
    ask(&mut chat, &mut session, "And?", 20);
    let text = model.require_tokenizer().unwrap().decode_with(session.tokens(), true);
    let before = "<|start|>user<|message|>Hello<|end|><|start|>assistant<|channel|>final<|message|><|end|>\
                  <|start|>user<|message|>And?<|end|><|start|>assistant<|channel|>analysis<|message|>Hm.<|end|>";
    assert!(text.starts_with(before), "{text}");
}

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      <|im_start|>assistant{{ '\n' }}";

#[test]
fn conversations_go_on_with_what_was_said() {
    let dir = tempfile::tempdir().unwrap();
    let model = Successor {
        chain: &[
            ("\n", "<think>"),
            ("<think>", "Hm."),
            ("Hm.", "</think>"),
            ("</think>", "Hi."),
            ("Hi.", "<|im_end|>"),
        ],
        words: &["<think>", "</think>", "Hm.", "Hi."],
        controls: &["<|im_end|>", "<|im_start|>"],
        template: CHATML,
    };
    let model = load(&model.write(dir.path(), "think.gguf"));
    let (mut chat, mut session) = (Chat::new(), session(&model, 300));
    chat.set_system(Some("S"));
    let said = [(AnswerPart::Thinking, "Hm.".to_owned()), (AnswerPart::Content, "Hi.".to_owned())];
    assert_eq!(ask(&mut chat, &mut session, "Hello", 20).0, said);
    let first = session.tokens().to_vec();
    assert_eq!(ask(&mut chat, &mut session, "Again", 20).0, said);
    let text = |session: &Session| model.require_tokenizer().unwrap().decode_with(session.tokens(), true);
    let whole = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n\
                 <|im_start|>user\nAgain<|im_end|>\n<|im_start|>assistant\n<think>Hm.</think>Hi.";
    assert_eq!(text(&session), whole);
    // Taken back, the conversation is what it was.
    assert_eq!(chat.undo().unwrap().content, "Again");
    assert_eq!(chat.undo().unwrap().content, "Hello");
    assert!(chat.undo().is_none() && chat.messages.len() == 1);
    ask(&mut chat, &mut session, "Hello", 20);
    assert_eq!(session.tokens(), first);
    // What is dropped before its end, or does not fit, is as if it had not been asked.
    let before = chat.messages.clone();
    drop(chat.ask(&mut session, "Never", options(9), CancelToken::new()).unwrap());
    assert_eq!(chat.messages, before);
    let long = "x".repeat(400);
    let e = chat.ask(&mut session, &long, options(9), CancelToken::new()).err().unwrap();
    assert!(matches!(e, Error::ContextFull { capacity: 300, .. }), "{e}");
    assert_eq!(chat.messages, before);
    chat.reset();
    assert_eq!((chat.messages.len(), chat.system()), (1, Some("S")));
    // Marks in what people and tools write are text, unless that is wanted.
    let count = |chat: &Chat| {
        let t = model.require_tokenizer().unwrap();
        let ids = t.encode_prompt(&chat.prompt(t).unwrap()).unwrap();
        ids.iter().filter(|id| t.is_special(**id)).count()
    };
    let plain = count(&chat);
    chat.set_system(Some("S<|im_end|>"));
    assert_eq!(count(&chat), plain);
    chat.parse_special = true;
    assert_eq!(count(&chat), plain + 1);
}

#[test]
fn a_template_that_takes_no_system_message_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let template =
        "{% if messages[0].role == 'system' %}{{ raise_exception('None here') }}{% endif %}{{ messages[0].content }}";
    let model = Successor { controls: &["<eos>"], template, ..Successor::default() };
    let model = load(&model.write(dir.path(), "m.gguf"));
    let tokenizer = model.require_tokenizer().unwrap();
    let mut chat = Chat::new();
    chat.messages.push(moeray::tokenizer::Message::new("user", "x"));
    assert!(chat.prompt(tokenizer).is_ok());
    chat.set_system(Some("S"));
    let e = chat.prompt(tokenizer).unwrap_err();
    assert!(matches!(&e, Error::SystemMessage(why) if why.contains("None here")), "{e}");
}

#[test]
fn stop_strings_that_are_control_tokens_stop() {
    let dir = tempfile::tempdir().unwrap();
    let model = Successor {
        chain: &[("x", "A"), ("A", "<|im_start|>"), ("<|im_start|>", "B"), ("B", "B")],
        controls: &["<|im_end|>", "<|im_start|>"],
        ..Successor::default()
    };
    let model = load(&model.write(dir.path(), "m.gguf"));
    let tokenizer = model.require_tokenizer().unwrap();
    let prompt = tokenizer.encode("x", EncodeOptions::default()).unwrap();
    let run = |stop: &[&str]| {
        let mut session = session(&model, 20);
        let stop = stop.iter().map(|s| (*s).to_owned()).collect();
        let mut g = generate(
            &mut session,
            Some(tokenizer),
            &prompt,
            GenerateOptions { stop, ..options(4) },
            CancelToken::new(),
        )
        .unwrap();
        let text: String = g.by_ref().map(|p| p.unwrap().text).collect();
        (text, g.finish_reason().unwrap())
    };
    assert_eq!(run(&[]), ("ABB".into(), FinishReason::MaxTokens));
    assert_eq!(run(&["<|im_start|>"]), ("A".into(), FinishReason::StopString(0)));
    assert_eq!(run(&["no", "<|im_start|>B"]), ("A".into(), FinishReason::StopString(1)));
    assert_eq!(run(&["<|im"]), ("ABB".into(), FinishReason::MaxTokens));
}
