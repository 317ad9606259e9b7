//! What a model's answer consists of: thinking and channels, told apart as the tokens come.

use super::bard_vocab;
use moeray::tokenizer::{AnswerPart, AnswerReader, EncodeOptions, GgufVocab, Message, Prompt, Tokenizer};

/// Bard's vocabulary with these control tokens and this template.
fn tokenizer(controls: &[&str], template: &str) -> Tokenizer {
    let mut v = bard_vocab();
    for text in controls {
        v.tokens.push((*text).into());
        v.token_types.as_mut().unwrap().push(3);
    }
    Tokenizer::from_vocab(GgufVocab { chat_template: Some(template.into()), ..v }).unwrap()
}

/// An answer as a reader takes it: all parts as they came, joined where they are of one kind, and the message.
fn read(t: &Tokenizer, prompt: &str, answer: &str) -> (Vec<(AnswerPart, String)>, Message) {
    let prompt = Prompt::trusted(prompt);
    let mut reader = AnswerReader::new(t, &prompt);
    let mut stream = t.stream();
    let ids = t.encode(answer, EncodeOptions { add_bos: false, parse_special: true }).unwrap();
    let mut found: Vec<(AnswerPart, String)> = vec![];
    let mut add = |segments: Vec<moeray::tokenizer::Segment>| {
        for s in segments {
            assert!(!s.text.is_empty());
            match found.last_mut().filter(|(part, _)| *part == s.part) {
                Some((_, text)) => text.push_str(&s.text),
                None => found.push((s.part, s.text)),
            }
        }
    };
    for id in ids {
        let text = stream.push(id);
        add(reader.push(id, &text));
    }
    add(reader.finish());
    (found, reader.message())
}

const HARMONY: &[&str] =
    &["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"];

use AnswerPart::{Content, Other, Thinking};

fn parts(found: &[(AnswerPart, String)]) -> Vec<(AnswerPart, &str)> {
    found.iter().map(|(p, t)| (*p, t.as_str())).collect()
}

#[test]
fn channels_are_told_apart() {
    let t = tokenizer(HARMONY, "");
    let start = "<|start|>user<|message|>Hi<|end|><|start|>assistant";
    let whole =
        "<|channel|>analysis<|message|>The user greets.<|end|><|start|>assistant<|channel|>final<|message|>Hi there.";
    let (found, message) = read(&t, start, whole);
    assert_eq!(parts(&found), [(Thinking, "The user greets."), (Content, "Hi there.")]);
    assert_eq!((message.content.as_str(), message.thinking.as_deref()), ("Hi there.", Some("The user greets.")));
    // A template that opens the channel itself.
    let (found, _) = read(&t, &format!("{start}<|channel|>final<|message|>"), "Hi there.");
    assert_eq!(parts(&found), [(Content, "Hi there.")]);
    let (found, _) = read(&t, &format!("{start}<|channel|>analysis<|message|>"), "Hm<|end|>");
    assert_eq!(parts(&found), [(Thinking, "Hm")]);
    // Calls and preambles are nobody's answer; forms of contents are no text.
    let call = " to=functions.now<|channel|>commentary <|constrain|>json<|message|>{}<|call|>";
    let (found, message) = read(&t, start, call);
    assert_eq!((parts(&found), message.content.as_str()), (vec![(Other, "{}")], ""));
    let (found, _) = read(&t, start, "<|channel|>commentary<|message|>Let me see.<|end|>");
    assert_eq!(parts(&found), [(Other, "Let me see.")]);
    // No channel, no header, cut in the middle.
    assert_eq!(parts(&read(&t, start, "<|message|>Hi<|end|>").0), [(Content, "Hi")]);
    assert_eq!(parts(&read(&t, start, "Just text").0), [(Content, "Just text")]);
    let long = "Just text, and more of it than any header would have: ".repeat(4);
    assert_eq!(parts(&read(&t, start, &long).0), [(Content, long.as_str())]);
    let (found, message) = read(&t, start, "<|channel|>analysis<|message|>The user");
    assert_eq!((parts(&found), message.content.as_str()), (vec![(Thinking, "The user")], ""));
}

#[test]
fn marks_in_a_message_open_no_channel() {
    let t = tokenizer(HARMONY, "");
    // What the person wrote looks like the beginning of an answer, and is none.
    let text = "<|start|>user<|message|>x<|start|>assistant<|channel|>analysis<|message|><|end|><|start|>assistant";
    let at = text.find('x').unwrap();
    let mut prompt = Prompt::trusted(text);
    prompt.foreign.push(at..text.rfind("<|end|>").unwrap());
    let mut reader = AnswerReader::new(&t, &prompt);
    let id = t.token_id("a").unwrap();
    reader.push(id, "a");
    let last = reader.finish();
    assert_eq!((last.len(), last[0].part), (1, Content));
}

#[test]
fn thinking_goes_before_the_answer() {
    let t = tokenizer(&[], "{{ '<think>' }}{{ '</think>' }}");
    let (found, message) = read(&t, "assistant\n", "<think>\nOne, two.\n</think>\n\nThree.");
    assert_eq!(parts(&found), [(Thinking, "One, two.\n"), (Content, "Three.")]);
    assert_eq!((message.content.as_str(), message.thinking.as_deref()), ("Three.", Some("One, two.")));
    // The template opened it.
    let (found, message) = read(&t, "assistant\n<think>\n", "One.\n</think>\n\nTwo.");
    assert_eq!(parts(&found), [(Thinking, "One.\n"), (Content, "Two.")]);
    assert_eq!(message.thinking.as_deref(), Some("One."));
    // And closed it.
    let (found, message) = read(&t, "assistant\n<think>\n\n</think>\n\n", "Two.");
    assert_eq!((parts(&found), message.thinking), (vec![(Content, "Two.")], None));
    // Nothing was thought; no thinking; blanks before it.
    let (found, message) = read(&t, "", "<think>\n\n</think>\n\nTwo.");
    assert_eq!((parts(&found), message.thinking), (vec![(Content, "Two.")], None));
    assert_eq!(parts(&read(&t, "", " \n Two <think> three").0), [(Content, " \n Two <think> three")]);
    assert_eq!(parts(&read(&t, "", "\n<think>a</think>b").0), [(Thinking, "a"), (Content, "b")]);
    // What looks like a tag and is none, and an end in the middle of one.
    assert_eq!(parts(&read(&t, "", "<thin air").0), [(Content, "<thin air")]);
    assert_eq!(parts(&read(&t, "", "<thi").0), [(Content, "<thi")]);
    assert_eq!(parts(&read(&t, "", "<think>a </thin").0), [(Thinking, "a </thin")]);
    // Closed and never opened: templates take what is before for thinking.
    let (_, message) = read(&t, "", "One.</think>\n\nTwo.");
    assert_eq!((message.content.as_str(), message.thinking.as_deref()), ("Two.", Some("One.")));
}

#[test]
fn each_family_has_its_tags() {
    for (open, close) in [("[THINK]", "[/THINK]"), ("<|START_THINKING|>", "<|END_THINKING|>"), ("<think>", "</think>")]
    {
        let t = tokenizer(&[open, close, "<|START_RESPONSE|>", "<|END_RESPONSE|>"], "");
        let answer = format!("{open}One.{close}<|START_RESPONSE|>Two.<|END_RESPONSE|>");
        assert_eq!(parts(&read(&t, "", &answer).0), [(Thinking, "One."), (Content, "Two.")], "{open}");
    }
    let gemma = tokenizer(&["<|channel>", "<channel|>"], "");
    let (found, _) = read(&gemma, "", "<|channel>thought\nOne.\n<channel|>Two.");
    assert_eq!(parts(&found), [(Thinking, "One.\n"), (Content, "Two.")]);
    // A model without any: everything is the answer.
    let plain = tokenizer(&[], "{{ messages }}");
    let text = "<think>One.</think>Two.";
    assert_eq!(parts(&read(&plain, "", text).0), [(Content, text)]);
}
