//! Calls of tools in answers: each family's syntax, cut anywhere, and what only looks like a call.

mod written;

use super::bard_vocab;
use moeray::{
    tokenizer::{AnswerPart, EncodeOptions, GgufVocab, Prompt, Tokenizer},
    tools::{AnswerDelta, Tool, ToolReader, ToolSyntax},
};
use serde_json::{Value, json};
use std::sync::OnceLock;

/// Bard's vocabulary with these control tokens and this template.
pub(super) fn tokenizer(controls: &[&str], template: &str) -> Tokenizer {
    let mut v = bard_vocab();
    for text in controls {
        v.tokens.push((*text).into());
        v.token_types.as_mut().unwrap().push(3);
    }
    Tokenizer::from_vocab(GgufVocab { chat_template: Some(template.into()), ..v }).unwrap()
}

fn plain() -> &'static Tokenizer {
    static PLAIN: OnceLock<Tokenizer> = OnceLock::new();
    PLAIN.get_or_init(|| tokenizer(&[], ""))
}

pub(super) fn tools() -> Vec<Tool> {
    let weather = json!({"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object", "properties": {
            "place": {"type": "string"}, "days": {"type": "integer"}, "now": {"type": "boolean"},
            "units": {"type": "array", "items": {"type": "string"}}, "more": {"type": "object"},
            "maybe": {"type": ["string", "null"]}, "ref": {"$ref": "#/$defs/line"}, "any": {}},
        "$defs": {"line": {"type": "string"}}}}});
    let noop = json!({"name": "noop"});
    vec![Tool::from_json(&weather).unwrap(), Tool::from_json(&noop).unwrap()]
}

/// What came of an answer: its content, and calls with name and arguments. Pieces must join to the calls.
#[derive(Debug, PartialEq)]
struct Read {
    content: String,
    calls: Vec<(String, String)>,
    complete: Vec<bool>,
    thinking: String,
}

fn read<'t>(t: &Tokenizer, syntax: ToolSyntax, prompt: &str, pieces: impl IntoIterator<Item = (u32, &'t str)>) -> Read {
    let mut reader = ToolReader::new(t, &Prompt::trusted(prompt), syntax, &tools(), 7);
    let mut deltas = vec![];
    for (id, text) in pieces {
        deltas.extend(reader.push(id, text));
    }
    deltas.extend(reader.finish());
    let (mut content, mut thinking) = (String::new(), String::new());
    let mut calls: Vec<(String, String, String)> = vec![];
    for delta in deltas {
        match delta {
            AnswerDelta::Text(s) => {
                assert!(!s.text.is_empty());
                match s.part {
                    AnswerPart::Content => content.push_str(&s.text),
                    AnswerPart::Thinking => thinking.push_str(&s.text),
                    AnswerPart::Other => {}
                }
            }
            AnswerDelta::Call(d) => {
                assert_eq!(d.head.is_some(), d.index == calls.len(), "{d:?}");
                if let Some(head) = d.head {
                    calls.push((head.id, head.name, String::new()));
                }
                calls[d.index].2.push_str(&d.arguments);
            }
        }
    }
    assert_eq!((reader.content(), reader.thinking()), (content.as_str(), thinking.as_str()));
    let known: Vec<_> = reader.calls().iter().map(|c| (c.id.clone(), c.name.clone(), c.arguments.clone())).collect();
    assert_eq!(known, calls);
    for (i, call) in reader.calls().iter().enumerate() {
        assert!(!call.id.is_empty() && known.iter().position(|k| k.0 == call.id) == Some(i), "ids differ: {known:?}");
        let arguments = serde_json::from_str::<Value>(&call.arguments);
        assert!(!call.complete || arguments.is_ok_and(|a| a.is_object()), "{call:?}");
    }
    let complete = reader.calls().iter().map(|c| c.complete).collect();
    Read { content, thinking, complete, calls: calls.into_iter().map(|c| (c.1, c.2)).collect() }
}

/// The text in pieces that end at these byte positions, all of ordinary tokens.
fn cut(syntax: ToolSyntax, text: &str, at: &[usize]) -> Read {
    let id = plain().token_id("a").unwrap();
    let mut ends: Vec<usize> = at.iter().copied().filter(|i| text.is_char_boundary(*i)).collect();
    ends.push(text.len());
    let mut start = 0;
    let mut pieces = vec![];
    for end in ends {
        pieces.push((id, &text[start..end]));
        start = end;
    }
    read(plain(), syntax, "", pieces)
}

fn whole(syntax: ToolSyntax, text: &str) -> Read {
    cut(syntax, text, &[])
}

use ToolSyntax::*;

/// An answer with calls: syntax, text, content, calls.
type Case = (ToolSyntax, String, &'static str, Vec<(&'static str, Value)>);

fn answers() -> Vec<Case> {
    let weather = || vec![("get_weather", json!({"place": "Zürich \"Nord\"", "days": 2, "units": ["C"], "now": true}))];
    let both = || [weather(), vec![("noop", json!({}))]].concat();
    let args = r#"{"place": "Zürich \"Nord\"", "days": 2, "units": ["C"], "now": true}"#;
    let hermes = format!("<tool_call>\n{{\"name\": \"get_weather\", \"arguments\": {args}}}\n</tool_call>");
    let noop = "<tool_call>\n{\"name\": \"noop\", \"arguments\": {}}\n</tool_call>";
    let qwen = "<tool_call>\n<function=get_weather>\n<parameter=place>\nZürich \"Nord\"\n</parameter>\n<parameter=days>\n2\n\
                </parameter>\n<parameter=units>\n[\"C\"]\n</parameter>\n<parameter=now>\ntrue\n</parameter>\n</function>\n\
                </tool_call>";
    let qwen_noop = "<tool_call>\n<function=noop>\n</function>\n</tool_call>";
    let glm = "<tool_call>get_weather\n<arg_key>place</arg_key>\n<arg_value>Zürich \"Nord\"</arg_value>\n\
               <arg_key>days</arg_key>\n<arg_value>2</arg_value>\n<arg_key>units</arg_key>\n<arg_value>[\"C\"]</arg_value>\n\
               <arg_key>now</arg_key>\n<arg_value>true</arg_value>\n</tool_call>";
    let minimax = "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"place\">Zürich \"Nord\"</parameter>\n\
                   <parameter name=\"days\">2</parameter>\n<parameter name=\"units\">[\"C\"]</parameter>\n\
                   <parameter name=\"now\">true</parameter>\n</invoke>\n<invoke name=\"noop\">\n</invoke>\n</minimax:tool_call>";
    let deepseek = |one: &str, two: &str| {
        format!(
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{one}<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>{two}<｜tool▁call▁end｜>\
                 <｜tool▁calls▁end｜>"
        )
    };
    let v3 = |name: &str, args: &str| format!("function<｜tool▁sep｜>{name}\n```json\n{args}\n```");
    let v31 = |name: &str, args: &str| format!("{name}<｜tool▁sep｜>{args}");
    let kimi = |name: &str, i: u32, args: &str| {
        format!("<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{args}<|tool_call_end|>")
    };
    let python = "get_weather(place='Zürich \"Nord\"', days=2, units=[\"C\"], now=True)";
    let llama = format!("{{\"name\": \"get_weather\", \"parameters\": {args}}}");
    let list =
        format!("[{{\"name\": \"get_weather\", \"arguments\": {args}}}, {{\"name\": \"noop\", \"arguments\": {{}}}}]");
    vec![
        (Hermes, format!("Let me see.\n{hermes}\n{noop}"), "Let me see.", both()),
        (Hermes, format!("{hermes}{noop}\n\nDone."), "Done.", both()),
        // The arguments before the name, as a text, and absent; a closing tag that does not come.
        (Hermes, format!("<tool_call>{{\"arguments\": {args}, \"name\": \"get_weather\"}}"), "", weather()),
        (Hermes, "<tool_call>{\"name\": \"noop\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>".into(), "",
         vec![("noop", json!({"a": 1}))]),
        (Hermes, "<tool_call>{\"id\": 5, \"name\": \"noop\"}</tool_call> <tool_call>{\"name\": \"noop\", \"arguments\": null}".replace("5", "\"x\""), "",
         vec![("noop", json!({})), ("noop", json!({}))]),
        // A line end as it is within a text.
        (Hermes, "<tool_call>{\"name\": \"noop\", \"arguments\": {\"a\": \"x\ny\t\"}}</tool_call>".into(), "",
         vec![("noop", json!({"a": "x\ny\t"}))]),
        (QwenXml, format!("I look.\n\n{qwen}\n{qwen_noop}"), "I look.", both()),
        (QwenXml, qwen.replace("<tool_call>\n", "").replace("\n</tool_call>", ""), "", weather()),
        (QwenXml, hermes.clone(), "", weather()),
        (QwenXml, "<tool_call><function=get_weather><parameter=place>\n\n a\n</b>\n\n</parameter><parameter=maybe>null</parameter>\
                   <parameter=any>[1, {'a': None}]</parameter><parameter=ref>\n7\n</parameter></function></tool_call>".into(), "",
         vec![("get_weather", json!({"place": "\n a\n</b>\n", "maybe": null, "any": [1, {"a": null}], "ref": "7"}))]),
        (QwenXml, "<tool_call><function=get_weather><parameter=days>two</parameter><parameter=now>False</parameter>\
                   <parameter=any>\"x\"</parameter></function></tool_call>".into(), "",
         vec![("get_weather", json!({"days": "two", "now": false, "any": "\"x\""}))]),
        (Glm, format!("\nI look.\n{glm}\n<tool_call>noop\n</tool_call>"), "\nI look.", both()),
        (Glm, "<tool_call>noop</tool_call>".into(), "", vec![("noop", json!({}))]),
        (MiniMax, format!("Yes.\n{minimax}"), "Yes.", both()),
        (MistralList, format!("[TOOL_CALLS] {list}"), "", both()),
        (MistralList, format!("[TOOL_CALLS]get_weather[ARGS]{args}[TOOL_CALLS]noop{{}}"), "", both()),
        (MistralNamed, format!("Well. [TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS] {args}[TOOL_CALLS]noop[ARGS]{{}}"), "Well.", both()),
        (Llama, llama.clone(), "", weather()),
        (Llama, format!("<|python_tag|>{llama}; {{\"name\": \"noop\", \"parameters\": {{}}}}"), "", both()),
        (Llama, format!("[{python}, noop()]"), "", both()),
        (Llama, format!("<|python_start|>[{python}, noop()]<|python_end|>"), "", both()),
        (Llama, format!("{list}\nSo."), "So.", both()),
        (Llama, format!("<|python_tag|>{}", python.replace('(', ".call(")), "", weather()),
        (Lfm2, format!("<|tool_call_start|>[{python}, noop()]<|tool_call_end|>I wait."), "I wait.", both()),
        (Lfm2, "<|tool_call_start|>[noop(a={'x': (1, -2.5, +3), 4: None}, b='\\x41\\u00e9\\'\\q', c = 1e3 , d=[],)]".into(), "",
         vec![("noop", json!({"a": {"x": [1, -2.5, 3], "4": null}, "b": "Aé'\\q", "c": 1e3, "d": []}))]),
        (DeepSeekV3, deepseek(&v3("get_weather", args), &v3("noop", "{}")), "", both()),
        (DeepSeekV3, format!("Hm.{}", deepseek(&v31("get_weather", args), &v31("noop", "{}"))), "Hm.", both()),
        (DeepSeekV31, deepseek(&v31("get_weather", args), &v31("noop", "{}")), "", both()),
        (DeepSeekV31, format!("<｜tool▁call▁begin｜>{}<｜tool▁call▁end｜>", v31("get_weather", args)), "", weather()),
        (Kimi, format!("So: <|tool_calls_section_begin|>{}{}<|tool_calls_section_end|>", kimi("get_weather", 0, args), kimi("noop", 1, "{}")),
         "So:", both()),
    ]
}

fn values(read: &Read) -> Vec<(&str, Value)> {
    let value = |c: &(String, String)| serde_json::from_str(&c.1).unwrap_or_else(|e| panic!("{e}: {}", c.1));
    read.calls.iter().map(|c| (c.0.as_str(), value(c))).collect()
}

#[test]
fn each_familys_calls_are_read_however_the_text_is_cut() {
    for (syntax, text, content, calls) in answers() {
        let whole = whole(syntax, &text);
        assert_eq!((values(&whole), whole.content.as_str()), (calls, content), "{syntax:?}: {text}");
        assert!(whole.complete.iter().all(|c| *c), "{text}");
        let all: Vec<usize> = (1..text.len()).collect();
        assert_eq!(cut(syntax, &text, &all), whole, "{text}");
        for at in 1..text.len() {
            assert_eq!(cut(syntax, &text, &[at]), whole, "{text} at {at}");
        }
    }
}

#[test]
fn an_answer_that_ends_early_has_no_whole_call_too_many() {
    for (syntax, text, _, calls) in answers() {
        let mut most = 0;
        for end in (0..=text.len()).filter(|i| text.is_char_boundary(*i)) {
            let read = whole(syntax, &text[..end]);
            let done = read.complete.iter().filter(|c| **c).count();
            assert!(done >= most && done <= calls.len() && read.calls.len() <= done + 1, "{}", &text[..end]);
            most = done;
            for (got, (name, value)) in read.calls.iter().zip(&calls) {
                assert_eq!(got.0, *name);
                assert!(!serde_json::from_str::<Value>(&got.1).is_ok_and(|v| v != *value), "{got:?}");
            }
        }
    }
}

#[test]
fn control_tokens_are_marks_like_text() {
    let kimi = [
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
        "<|tool_call_end|>",
        "<|tool_calls_section_end|>",
        "<think>",
        "</think>",
    ];
    let deepseek = [
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
    ];
    let other = [
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
        "<|python_start|>",
        "<|python_end|>",
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        "<tool_call>",
        "</tool_call>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
        "<minimax:tool_call>",
        "</minimax:tool_call>",
    ];
    let t = tokenizer(&[&kimi[..], &deepseek, &other].concat(), "");
    for (syntax, text, content, calls) in answers() {
        let ids = t.encode(&text, EncodeOptions { add_bos: false, parse_special: true }).unwrap();
        let mut stream = t.stream();
        let pieces: Vec<(u32, String)> = ids.iter().map(|id| (*id, stream.push(*id))).collect();
        let got = read(&t, syntax, "", pieces.iter().map(|p| (p.0, p.1.as_str())));
        assert_eq!((values(&got), got.content.as_str()), (calls, content), "{text}");
    }
    // Calls that begin while the model thinks end the thinking.
    let text = format!("<think>Hm.{}", kimi[..2].concat() + "functions.noop:3" + kimi[2] + "{}" + kimi[3] + kimi[4]);
    let ids = t.encode(&text, EncodeOptions { add_bos: false, parse_special: true }).unwrap();
    let mut stream = t.stream();
    let pieces: Vec<(u32, String)> = ids.iter().map(|id| (*id, stream.push(*id))).collect();
    let got = read(&t, Kimi, "", pieces.iter().map(|p| (p.0, p.1.as_str())));
    assert_eq!((got.thinking.as_str(), got.content.as_str(), got.calls.len()), ("Hm.", "", 1));
}

#[test]
fn text_that_only_looks_like_a_call_is_given_back() {
    for (syntax, text) in [
        (Hermes, "A <tool_call> is a tag."),
        (Hermes, " <tool_call>{\"place\": 1}</tool_call>"),
        (Hermes, "<tool_call>{\"name\": 1}"),
        (Hermes, "<tool_call>{\"name\": \"noop\", \"arguments\": [1]}</tool_call>\n"),
        (Hermes, "<tool_call>{\"name\": \"\", \"arguments\": {}}"),
        (Hermes, "<tool_call>{\"name\": \"no"),
        (Hermes, "x <tool_"),
        (Hermes, "if a <b { <tool_call} "),
        (QwenXml, "<function=a b>"),
        (QwenXml, "<tool_call><function=\n"),
        (Glm, "<tool_call>no op"),
        (MistralList, "[TOOL_CALLS] none of them"),
        (MistralNamed, "[TOOL_CALLS]noop[ARGS]1"),
        (Llama, "{\"name\": \"Ann\", \"parameters\": {}}"),
        (Llama, "{\"place\": \"Oslo\"}"),
        (Llama, "[1, 2, 3]"),
        (Llama, "[get_weather, noop]"),
        (Llama, "[other(x=1)]"),
        (Llama, " {\"name\": \"noop\"} "),
        (Llama, "So: [noop()]"),
        (Lfm2, "<|tool_call_start|>noop"),
        (DeepSeekV3, "<｜tool▁calls▁begin｜>?"),
        (DeepSeekV3, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>noop\nplain"),
        (Kimi, "<|tool_calls_section_begin|><|tool_call_begin|>noop<|tool_call_argument_begin|>{}"),
        (MiniMax, "<minimax:tool_call>\n<invoke>"),
    ] {
        for cuts in [vec![], (1..text.len()).collect()] {
            let read = cut(syntax, text, &cuts);
            assert_eq!((read.content.as_str(), read.calls.len()), (text, 0), "{syntax:?}");
        }
    }
    // Llama's marks are no text.
    let read = whole(Llama, "<|python_tag|>print(1)");
    assert_eq!((read.content.as_str(), read.calls.len()), ("print(1)", 0));
    let read = whole(Llama, "<|python_start|>I look.<|python_end|>{\"name\": \"noop\", \"parameters\": {}}");
    assert_eq!((read.content.as_str(), read.calls.len()), ("I look.", 1));
    // What follows counts again.
    let text = "<tool_call> or <tool_call>{\"name\": \"noop\"}</tool_call>";
    let read = whole(Hermes, text);
    assert_eq!((read.content.as_str(), read.calls.len()), ("<tool_call> or", 1));
}

#[test]
fn broken_arguments_stay_unfinished_and_are_no_text() {
    for (syntax, text, begun, after) in [
        (Hermes, "<tool_call>{\"name\": \"noop\", \"arguments\": {\"a\": 1,}}</tool_call>So.", "{\"a\": 1,", "So."),
        (Llama, "[noop(a=1, a=2)]", "{\"a\": 1", ""),
        (QwenXml, "<function=noop><parameter=a>1</parameter>?</function></tool_call> So.", "{\"a\": 1", "So."),
        (
            Kimi,
            "<|tool_call_begin|>functions.noop:0<|tool_call_argument_begin|>{\"a\": tru}<|tool_calls_section_end|>",
            "{\"a\": tru",
            "",
        ),
    ] {
        let all: Vec<usize> = (1..text.len()).collect();
        for cuts in [vec![], all] {
            let read = cut(syntax, text, &cuts);
            assert_eq!(read.calls, [("noop".to_owned(), begun.to_owned())], "{text}");
            assert_eq!((read.complete.as_slice(), read.content.as_str()), (&[false][..], after), "{text}");
        }
    }
}

#[test]
fn messages_to_functions_are_calls() {
    let marks = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"];
    let t = tokenizer(&marks, "{{ tools }}");
    assert_eq!(ToolSyntax::of(&t), Some(Harmony));
    let start = "<|start|>user<|message|>Hi<|end|><|start|>assistant";
    let says = |answer: &str| {
        let ids = t.encode(answer, EncodeOptions { add_bos: false, parse_special: true }).unwrap();
        let mut stream = t.stream();
        let pieces: Vec<(u32, String)> = ids.iter().map(|id| (*id, stream.push(*id))).collect();
        read(&t, Harmony, start, pieces.iter().map(|p| (p.0, p.1.as_str())))
    };
    let call = |name: &str, args: &str| {
        format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{args}<|call|>")
    };
    let got = says(&format!(
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{}",
        call("get_weather", "{\"place\": \"Oslo\"}")
    ));
    assert_eq!((got.thinking.as_str(), got.content.as_str()), ("Hm.", ""));
    assert_eq!((values(&got), &got.complete[..]), (vec![("get_weather", json!({"place": "Oslo"}))], &[true][..]));
    // The recipient before the channel; two calls; none of it is text.
    let got = says(&format!(
        " to=functions.noop<|channel|>commentary json<|message|>{{}}<|call|><|start|>assistant{}",
        call("noop", "")
    ));
    assert_eq!((values(&got), got.content.as_str()), (vec![("noop", json!({})), ("noop", json!({}))], ""));
    let got = says("<|channel|>commentary to=functions.noop <|constrain|>json<|message|>{\"a\": ");
    assert_eq!((got.calls.len(), got.complete), (1, vec![false]));
    // To somebody else.
    let got = says("<|channel|>commentary to=browser.search<|message|>{}<|call|>");
    assert_eq!((got.calls.len(), got.content.as_str()), (0, ""));
    let got = says("<|channel|>final<|message|>Hello.");
    assert_eq!((got.calls.len(), got.content.as_str()), (0, "Hello."));
}

#[test]
fn the_syntax_is_told_from_the_template() {
    for (name, source, syntax) in [
        ("qwen3", include_str!("../../data/tokenizer/families/qwen3.jinja"), Some(Hermes)),
        ("qwen2_5", include_str!("../../data/tokenizer/families/qwen2_5.jinja"), Some(Hermes)),
        ("ling", include_str!("../../data/tokenizer/families/ling.jinja"), Some(Hermes)),
        ("granite4", include_str!("../../data/tokenizer/families/granite4.jinja"), Some(Hermes)),
        ("qwen3_5", include_str!("../../data/tokenizer/families/qwen3_5.jinja"), Some(QwenXml)),
        ("glm4_5", include_str!("../../data/tokenizer/families/glm4_5.jinja"), Some(Glm)),
        ("minimax_m2", include_str!("../../data/tokenizer/families/minimax_m2.jinja"), Some(MiniMax)),
        ("kimi_k2", include_str!("../../data/tokenizer/families/kimi_k2.jinja"), Some(Kimi)),
        ("deepseek_v3", include_str!("../../data/tokenizer/families/deepseek_v3.jinja"), Some(DeepSeekV3)),
        ("deepseek_r1", include_str!("../../data/tokenizer/families/deepseek_r1.jinja"), Some(DeepSeekV3)),
        ("mistral_v3", include_str!("../../data/tokenizer/families/mistral_v3.jinja"), Some(MistralList)),
        ("llama3_1", include_str!("../../data/tokenizer/families/llama3_1.jinja"), Some(Llama)),
        ("llama4", include_str!("../../data/tokenizer/families/llama4.jinja"), Some(Llama)),
        ("smollm2", include_str!("../../data/tokenizer/families/smollm2.jinja"), None),
        ("olmoe", include_str!("../../data/tokenizer/families/olmoe.jinja"), None),
    ] {
        assert_eq!(ToolSyntax::of(&tokenizer(&[], source)), syntax, "{name}");
    }
    let lfm2 = include_str!("../../data/tokenizer/families/lfm2.jinja");
    assert_eq!(ToolSyntax::of(&tokenizer(&["<|tool_call_start|>"], lfm2)), Some(Lfm2));
    assert_eq!(ToolSyntax::of(plain()), None);
}
