//! Conversations with calls as clients send them, through the templates of the families.

use super::tools::tokenizer;
use moeray::{
    Error,
    tokenizer::{ChatTemplate, DateTime, Prompt, RenderOptions},
    tools::{Tool, ToolReader, ToolSyntax},
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, path::Path};

fn source(family: &str) -> String {
    let path = format!("tests/data/tokenizer/families/{family}.jinja");
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn options(add_generation_prompt: bool, tools: bool) -> RenderOptions {
    let mut variables = BTreeMap::new();
    if tools {
        let parameters =
            json!({"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}});
        let tool = json!({"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters": parameters}});
        variables.insert("tools".to_owned(), json!([tool]));
    }
    let now = Some(DateTime { year: 2024, month: 2, day: 5, hour: 9, minute: 7, second: 3 });
    RenderOptions { add_generation_prompt, now, variables }
}

fn arguments() -> Value {
    json!({"place": "Zürich \"Nord\"", "days": 2})
}

/// As a client sends it.
fn conversation(id: &str) -> Vec<Value> {
    let function = json!({"name": "get_weather", "arguments": arguments().to_string()});
    vec![
        json!({"role": "user", "content": [{"type": "text", "text": "The weather?"}]}),
        json!({"role": "assistant", "content": null, "tool_calls": [{"id": id, "type": "function", "function": function}]}),
        json!({"role": "tool", "tool_call_id": id, "content": "grey"}),
        json!({"role": "assistant", "content": "It is grey.", "tool_calls": []}),
    ]
}

/// Families whose templates write calls.
const FAMILIES: &[&str] = &[
    "qwen2_5",
    "qwen3",
    "qwen3_5",
    "ling",
    "granite4",
    "glm4_5",
    "minimax_m2",
    "kimi_k2",
    "deepseek_v3",
    "mistral_v3",
    "llama3_1",
    "llama4",
    "gpt_oss",
];

fn syntax(family: &str) -> Option<ToolSyntax> {
    let marks: &[&str] = if family == "gpt_oss" { &["<|channel|>", "<|message|>"] } else { &[] };
    ToolSyntax::of(&tokenizer(marks, &source(family)))
}

#[test]
fn calls_go_through_every_template() {
    for family in FAMILIES {
        let template = ChatTemplate::new(source(family), "<s>", "</s>").unwrap();
        let messages = ToolSyntax::messages(syntax(family), &conversation("call_00000000")).unwrap();
        let text =
            template.prompt_of(&messages, &options(false, true)).unwrap_or_else(|e| panic!("{family}: {e}")).text;
        for part in ["The weather?", "get_weather", "Zürich", "grey"] {
            assert!(text.contains(part), "{family}: {part} in {text}");
        }
        assert!(!text.contains("None") && !text.contains("null"), "{family}: {text}");
        assert!(!text.contains("{\\\""), "{family}: arguments within a text: {text}");
    }
}

/// What a template writes for an answer with a call is how its model answers: a reader gets the same call back.
#[test]
fn what_templates_write_is_read_back() {
    let mut read = 0;
    for family in FAMILIES {
        let t = tokenizer(&[], &source(family));
        let Some(syntax) = syntax(family).filter(|s| *s != ToolSyntax::Harmony) else { continue };
        let template = ChatTemplate::new(source(family), "<s>", "</s>").unwrap();
        let mut messages = ToolSyntax::messages(Some(syntax), &conversation("abcdefghi")[..2]).unwrap();
        let whole = template.prompt_of(&messages, &options(false, true)).unwrap().text;
        messages.pop();
        let prompt = template.prompt_of(&messages, &options(true, true)).unwrap().text;
        let common = whole.bytes().zip(prompt.bytes()).take_while(|(a, b)| a == b).count();
        // Some templates open the thinking in a prompt and leave it out of a history.
        let at = (0..=common).rev().find(|i| whole.is_char_boundary(*i)).unwrap();
        let tool = Tool::from_json(&options(false, true).variables["tools"][0]).unwrap();
        let mut reader = ToolReader::new(&t, &Prompt::default(), syntax, &[tool], 1);
        let id = t.token_id("a").unwrap();
        let mut answer = whole[at..].trim_start_matches("<think></think>").trim_start_matches("</think>");
        for end in ["<|im_end|>", "</s>", "<|eot_id|>", "<|eot|>", "[e~[", "<|role_end|>", "<|end_of_text|>"] {
            answer = answer.split(end).next().unwrap();
        }
        reader.push(id, answer);
        reader.finish();
        let calls = reader.calls();
        assert_eq!(calls.len(), 1, "{family}: {answer:?}");
        assert_eq!(serde_json::from_str::<Value>(&calls[0].arguments).unwrap(), arguments(), "{family}");
        assert!(calls[0].complete && calls[0].name == "get_weather");
        read += 1;
    }
    assert!(read >= 12, "{read}");
}

#[test]
fn ids_are_of_the_kind_that_a_model_knows() {
    let ids = |id: &str, syntax| {
        let m = ToolSyntax::messages(syntax, &conversation(id)).unwrap();
        let of = |v: &Value| v.as_str().unwrap().to_owned();
        (of(&m[1]["tool_calls"][0]["id"]), of(&m[2]["tool_call_id"]), of(&m[2]["name"]))
    };
    let (call, answer, name) = ids("call_00000000", None);
    assert_eq!((call.as_str(), answer.as_str(), name.as_str()), ("call_00000000", "call_00000000", "get_weather"));
    let (call, answer, _) = ids("call_00000000", Some(ToolSyntax::MistralList));
    assert!(call.len() == 9 && call.bytes().all(|b| b.is_ascii_alphanumeric()) && call == answer, "{call}");
    assert_eq!(ids("abcdefghi", Some(ToolSyntax::MistralNamed)).0, "abcdefghi");
    assert_eq!(ids("call_1", Some(ToolSyntax::Kimi)).0, "functions.get_weather:0");
    assert_eq!(ids("functions.get_weather:7", Some(ToolSyntax::Kimi)).1, "functions.get_weather:7");
}

#[test]
fn messages_take_the_form_of_templates() {
    let given = [
        json!({"role": "assistant", "reasoning_content": "Hm.", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
    ];
    let out = ToolSyntax::messages(None, &given).unwrap();
    assert_eq!(out, [json!({"role": "assistant", "reasoning_content": "Hm.", "content": "a\nb", "thinking": "Hm."})]);
    let call = |arguments: Value| {
        let call = json!({"id": "x", "function": {"name": "f", "arguments": arguments}});
        let messages = [json!({"role": "user", "content": ""}), json!({"role": "assistant", "tool_calls": [call]})];
        ToolSyntax::messages(None, &messages)
    };
    assert_eq!(call(json!("")).unwrap()[1]["tool_calls"][0]["function"]["arguments"], json!({}));
    for (arguments, word) in [(json!("{\"a\": "), "EOF"), (json!("[1]"), "object"), (json!(1), "object")] {
        let Err(Error::Invalid(e)) = call(arguments) else { panic!("accepted") };
        assert!(e.contains("messages[1].tool_calls[0]") && e.contains(word), "{e}");
    }
    let image = json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]});
    for (message, word) in [(image, "messages[0].content[0]"), (json!("x"), "object"), (json!({}), "role")] {
        let Err(Error::Invalid(e)) = ToolSyntax::messages(None, &[message]) else { panic!("accepted") };
        assert!(e.contains(word), "{e}");
    }
    for (tool, word) in
        [(json!({"function": {}}), "name"), (json!({"name": "f", "parameters": {"type": "string"}}), "object")]
    {
        let Err(Error::Invalid(e)) = Tool::from_json(&tool) else { panic!("accepted") };
        assert!(e.contains(word), "{e}");
    }
    let json = json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"a": {}}}}});
    assert_eq!(Tool::from_json(&json).unwrap().to_json(), json);
}
