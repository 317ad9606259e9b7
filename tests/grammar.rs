//! Grammars: what they let through, what they refuse, and with which words.

use moeray::{
    Error,
    grammar::{Grammar, GrammarEngine, Matcher},
    tokenizer::{EncodeOptions, GgufVocab, Prompt, Tokenizer},
    tools::{Tool, ToolReader, ToolSyntax},
};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::OnceLock;

const CONTROLS: &[&str] = &[
    "[TOOL_CALLS]",
    "[ARGS]",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
    "<|tool_calls_section_begin|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "<|tool_calls_section_end|>",
    "<arg_key>",
    "</arg_key>",
];

fn tokenizer(controls: &[&str], template: &str) -> Tokenizer {
    let mut v = crate::tokenizer::bard_vocab();
    for text in controls {
        v.tokens.push((*text).into());
        v.token_types.as_mut().unwrap().push(3);
    }
    Tokenizer::from_vocab(GgufVocab { chat_template: Some(template.into()), ..v }).unwrap()
}

fn plain() -> &'static (Tokenizer, GrammarEngine) {
    static PLAIN: OnceLock<(Tokenizer, GrammarEngine)> = OnceLock::new();
    PLAIN.get_or_init(|| {
        let t = tokenizer(&[], "");
        let engine = GrammarEngine::new(&t, t.vocab_size() + 3).unwrap();
        (t, engine)
    })
}

fn allowed(words: &[u32], id: u32) -> bool {
    words[id as usize / 32] >> (id % 32) & 1 == 1
}

/// How many of `ids` a grammar takes, and whether the text may end there. Where a text is forced, masks hold the token that the
/// tokenizer would make of it; what is taken does not depend on how a text is split.
fn take(matcher: &mut Matcher, ids: &[u32]) -> (usize, bool) {
    match ids.iter().position(|id| matcher.accept(*id).is_err()) {
        Some(n) => (n, false),
        None => (ids.len(), matcher.may_end().unwrap()),
    }
}

fn fits(grammar: &Grammar, text: &str) -> bool {
    let (t, engine) = plain();
    let mut matcher = engine.compile(grammar, &Prompt::default()).unwrap();
    // Token by token as bytes: what is allowed must not depend on how the text is split.
    let ids: Vec<u32> = text.bytes().map(|b| t.token_id(&byte(b)).unwrap()).collect();
    let (taken, ends) = take(&mut matcher, &ids);
    taken == ids.len() && ends
}

/// A byte as byte-level vocabularies spell it.
fn byte(b: u8) -> String {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = if printable(b) { u32::from(b) } else { 256 + (0..b).filter(|b| !printable(*b)).count() as u32 };
    char::from_u32(code).unwrap().to_string()
}

fn schema(schema: Value) -> Grammar {
    Grammar::JsonSchema(schema)
}

fn object(properties: Value) -> Value {
    let required: Vec<&String> = properties.as_object().unwrap().keys().collect();
    json!({"type": "object", "required": required, "additionalProperties": false, "properties": properties})
}

#[test]
fn json_of_a_schema_fits_and_other_does_not() {
    for (s, good, bad) in [
        (object(json!({"a": {"enum": ["x", "é\"", 1, null]}})), "{\"a\": \"é\\\"\"}", "{\"a\": \"y\"}"),
        (object(json!({"a": {"type": "integer", "minimum": 18, "maximum": 99}})), "{\"a\":42}", "{\"a\":17}"),
        (object(json!({"a": {"type": "string", "maxLength": 3}})), "{\"a\":\"日本語\"}", "{\"a\":\"four\"}"),
        (
            object(json!({"a": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}})),
            "{\"a\": \"2024-02\"}",
            "{\"a\": \"2024\"}",
        ),
        (
            object(json!({"a": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}})),
            "{\n  \"a\": [\n    true,\n    false\n  ]\n}",
            "{\"a\": [true]}",
        ),
        (
            json!({"type": "array", "items": object(json!({"n": {"type": "number"}}))}),
            "[{\"n\": -1.5e3}]",
            "[{\"n\": \"1\"}]",
        ),
        (json!({"$ref": "#/$defs/city", "$defs": {"city": {"enum": ["Rome"]}}}), "\"Rome\"", "\"Oslo\""),
        (object(json!({"a": {"anyOf": [{"type": "null"}, {"const": 3}]}})), "{\"a\": 3}", "{\"a\": 4}"),
        (
            json!({"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}, "required": ["y"],
                "additionalProperties": false}),
            "{\"y\": 1}",
            "{\"x\": 1}",
        ),
        // Pydantic's way of optional values, titles and defaults.
        (
            object(json!({"a": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": null, "title": "A"}})),
            "{\"a\": null}",
            "{}",
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "integer"}}),
            "{\"q\": 1, \"r\": 2}",
            "{\"q\": true}",
        ),
        (object(json!({"a": {"type": "string", "format": "date"}})), "{\"a\": \"2024-02-29\"}", "{\"a\": \"today\"}"),
        // Only one kind of a tagged union fits.
        (
            json!({"oneOf": [object(json!({"k": {"const": "a"}, "x": {"type": "integer"}})), object(json!({"k": {"const": "b"}}))]}),
            "{\"k\": \"b\"}",
            "{\"k\": \"a\"}",
        ),
    ] {
        assert!(fits(&schema(s.clone()), good), "{s}: {good}");
        assert!(!fits(&schema(s.clone()), bad), "{s}: {bad}");
        // No beginning of it is whole.
        let n = good.len() - 1;
        assert!(!fits(&schema(s.clone()), &good[..n]), "{s}");
    }
    assert!(fits(&Grammar::JsonObject, "{\"a\": [1, {\"b\": null}], \"c\": \"\\n\"}"));
    assert!(!fits(&Grammar::JsonObject, "[1]") && !fits(&Grammar::JsonObject, "{\"a\": 1"));
    // Blanks do not go on for ever.
    assert!(!fits(&Grammar::JsonObject, &format!("{{{}\"a\": 1}}", "\n".repeat(50))));
}

#[test]
fn regular_expressions_and_lark_grammars() {
    let regex = Grammar::Regex("[a-c]+/[0-9]{2}".into());
    assert!(fits(&regex, "abc/42") && !fits(&regex, "abc/4") && !fits(&regex, "abd/42") && !fits(&regex, " abc/42"));
    let lark = Grammar::Lark("start: item (\", \" item)*\nitem: NAME \"=\" /[0-9]+/\nNAME: /[a-z]+/\n".into());
    assert!(fits(&lark, "a=1, bc=23") && !fits(&lark, "a=1,b=2"));
}

#[test]
fn masks_are_of_the_models_size_and_agree_with_what_is_accepted() {
    let (t, engine) = plain();
    let grammar = schema(object(json!({"colour": {"enum": ["red", "green"]}})));
    let mut matcher = engine.compile(&grammar, &Prompt::default()).unwrap();
    let mut words = vec![7; 9];
    let mut text = vec![];
    for step in 0.. {
        matcher.mask(&mut words).unwrap();
        assert_eq!(words.len(), (t.vocab_size() + 3).div_ceil(32));
        let all: Vec<u32> = (0..t.vocab_size() as u32 + 3).filter(|id| allowed(&words, *id)).collect();
        assert!(!all.is_empty());
        // A copy takes what the mask allows, and what it refuses is not in the mask.
        for id in (0..t.vocab_size() as u32).step_by(97).chain(all.iter().copied().take(3)) {
            assert!(!allowed(&words, id) || matcher.clone().accept(id).is_ok(), "token {id} at step {step}");
        }
        if matcher.is_finished() {
            assert!(all.iter().all(|id| t.eos_ids().contains(id)));
            break;
        }
        let id = *all.iter().find(|id| !t.eos_ids().contains(id)).unwrap();
        matcher.accept(id).unwrap();
        text.push(id);
        assert!(step < 60, "{}", t.decode(&text));
    }
    let value: Value = serde_json::from_str(&t.decode(&text)).unwrap();
    assert!(value["colour"] == "red" || value["colour"] == "green");
    assert!(matcher.accept(t.token_id("a").unwrap()).is_err());
}

#[test]
fn a_hook_leaves_the_allowed_logits() {
    let (t, engine) = plain();
    let grammar = schema(json!({"enum": ["red"]}));
    let mut hook = engine.compile(&grammar, &Prompt::default()).unwrap().into_logits_hook();
    let mut tokens = t.encode("A prompt", EncodeOptions::default()).unwrap();
    let from = tokens.len();
    for _ in 0..20 {
        let mut logits: Vec<f32> = (0..t.vocab_size() + 3).map(|i| (i % 13) as f32).collect();
        hook(&tokens, &mut logits);
        let best = logits.iter().zip(0..).filter(|l| l.0.is_finite()).map(|l| l.1).max().unwrap();
        if t.eos_ids().contains(&best) {
            break;
        }
        tokens.push(best);
    }
    assert_eq!(t.decode(&tokens[from..]), "\"red\"");
}

fn refusal(grammar: &Grammar) -> String {
    match plain().1.compile(grammar, &Prompt::default()) {
        Err(Error::Invalid(e)) => e,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("accepted {grammar:?}"),
    }
}

#[test]
fn what_is_not_enforced_is_an_error_with_its_place() {
    for (s, place) in [
        (json!({"type": "array", "uniqueItems": true}), "#/uniqueItems"),
        (object(json!({"a/b": {"not": {"type": "null"}}})), "#/properties/a~1b/not"),
        (json!({"anyOf": [{"type": "null"}, {"type": "array", "contains": {}}]}), "#/anyOf/1/contains"),
        (json!({"$defs": {"x": {"if": {}}}}), "#/$defs/x/if"),
        (
            json!({"items": {"additionalProperties": {"propertyNames": {"maxLength": 2}}}}),
            "#/items/additionalProperties/propertyNames",
        ),
        (json!({"$ref": "https://example.com/x"}), "#/$ref"),
        (object(json!({"a": {"nullable": true, "type": "string"}})), "#/properties/a/nullable"),
        (object(json!({"a": 3})), "#/properties/a"),
    ] {
        let e = refusal(&schema(s.clone()));
        assert!(e.contains(place), "{s}: {e}");
    }
    for s in [
        json!({"type": "strange"}),
        json!({"type": "integer", "minimum": 5, "maximum": 3}),
        json!({"$ref": "#/$defs/none"}),
        json!(false),
        json!({"type": "string", "pattern": "("}),
        json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
    ] {
        let e = refusal(&schema(s.clone()));
        assert!(!e.contains('\n') && e.len() > 12, "{s}: {e}");
    }
    assert!(refusal(&Grammar::Lark("begin: \"a\"".into())).contains("start"));
    for grammar in [
        Grammar::Lark(String::new()),
        Grammar::Lark("start: other".into()),
        Grammar::Regex("(".into()),
        Grammar::Lark("x".repeat(2 << 20)),
        Grammar::Calls { syntax: ToolSyntax::Hermes, tools: vec![], several: true },
    ] {
        assert!(!refusal(&grammar).is_empty());
    }
    // What asks for nothing is no error.
    assert!(fits(
        &schema(json!({"type": "array", "uniqueItems": false, "x-order": 1, "items": {"type": "null"}})),
        "[null]"
    ));
}

fn tools() -> Vec<Tool> {
    let parameters = json!({"type": "object", "required": ["place", "now"], "additionalProperties": false, "properties": {
        "place": {"type": "string"}, "now": {"type": "boolean"}, "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "kind": {"enum": ["rain", "sun"]}, "where": {"$ref": "#/$defs/point"}}, "$defs": {"point": {"type": "array", "items": {"type": "integer"}}}});
    vec![
        Tool { name: "get_weather".into(), description: None, parameters },
        Tool { name: "noop".into(), description: None, parameters: object(json!({})) },
    ]
}

/// A tokenizer, its engine, and which tokens begin with what closes texts.
type Setup = (Tokenizer, GrammarEngine, Vec<bool>);

fn setup(controls: &[&str], template: &str) -> Setup {
    let t = tokenizer(controls, template);
    let engine = GrammarEngine::new(&t, t.vocab_size()).unwrap();
    let closes = |id| t.decode(&[id]).starts_with(['"', '<', '}', ']', '`', '\'']) || t.is_special(id);
    let closing = (0..t.vocab_size() as u32).map(closes).collect();
    (t, engine, closing)
}

/// Walks a grammar by choosing among allowed tokens, and prefers to end.
fn walk((t, engine, closing): &Setup, grammar: &Grammar, prompt: &Prompt, choices: &[u64]) -> Option<Vec<u32>> {
    let mut matcher = engine.compile(grammar, prompt).unwrap();
    let (mut words, mut ids) = (vec![], vec![]);
    for i in 0..400 {
        if matcher.is_finished() {
            return Some(ids);
        }
        matcher.mask(&mut words).unwrap();
        let all: Vec<u32> = (0..closing.len() as u32).filter(|id| allowed(&words, *id)).collect();
        if all.iter().any(|id| t.eos_ids().contains(id)) && i > choices.len() {
            return Some(ids);
        }
        // Closing characters come often, so that texts end.
        let pick = choices[i % choices.len()];
        let id = match all.iter().find(|id| closing[**id as usize] && !t.eos_ids().contains(id)) {
            Some(id) if pick % 3 != 0 => *id,
            _ => all[(pick / 3) as usize % all.len()],
        };
        if t.eos_ids().contains(&id) {
            return Some(ids);
        }
        matcher.accept(id).unwrap();
        ids.push(id);
    }
    None
}

const HARMONY: &[&str] =
    &["<|end|>", "<|start|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"];

fn unmarked() -> &'static Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    SETUP.get_or_init(|| setup(&[], ""))
}

fn marked() -> &'static Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    SETUP.get_or_init(|| setup(CONTROLS, "{{ tools }}"))
}

fn harmony() -> &'static Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    SETUP.get_or_init(|| setup(HARMONY, "{{ tools }}"))
}

#[test]
fn thinking_may_come_before_an_answer_where_the_model_thinks() {
    let (t, engine, _) = setup(&["<think>", "</think>"], "");
    let grammar = schema(json!({"enum": ["red"]}));
    let taken = |prompt: &str, answer: &str| {
        let ids = t.encode(answer, EncodeOptions { add_bos: false, parse_special: true }).unwrap();
        let (n, ends) = take(&mut engine.compile(&grammar, &Prompt::trusted(prompt)).unwrap(), &ids);
        n == ids.len() && ends
    };
    assert!(taken("assistant\n", "\"red\"") && taken("assistant\n", "<think>\nHm {.\n</think>\n\n\"red\""));
    assert!(!taken("assistant\n", "Hm") && !taken("assistant\n", "<think>\"red\""));
    assert!(taken("assistant\n<think>\n", "Hm.</think>\"red\"") && !taken("assistant\n<think>\n", "\"red\""));
    assert!(!taken("assistant\n<think>\n\n</think>\n\n", "<think>Hm.</think>\"red\""));
    // Tags that are text.
    let t = tokenizer(&[], "{{ '</think>' }}");
    let engine = GrammarEngine::new(&t, t.vocab_size()).unwrap();
    let mut matcher = engine.compile(&grammar, &Prompt::trusted("<think>\n")).unwrap();
    let ids = t.encode("So </thin.</think>\n\"red\"", EncodeOptions { add_bos: false, parse_special: false }).unwrap();
    assert_eq!(take(&mut matcher, &ids), (ids.len(), true));
    // Channels.
    let (t, engine, _) = harmony();
    let ids = |text: &str| t.encode(text, EncodeOptions { add_bos: false, parse_special: true }).unwrap();
    let last = "<|channel|>final<|message|>\"red\"";
    for (answer, good) in [
        (last.to_owned(), true),
        ("\"red\"".to_owned(), false),
        (format!("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{last}"), true),
    ] {
        let ids = ids(&answer);
        let (n, ends) = take(&mut engine.compile(&grammar, &Prompt::trusted("<|start|>assistant")).unwrap(), &ids);
        assert_eq!(n == ids.len() && ends, good, "{answer}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a model writes under a grammar of calls, its reader finds calls that fit the tools, and nothing else.
    #[test]
    fn forced_calls_are_calls(
        syntax in proptest::sample::select(ToolSyntax::ALL.to_vec()),
        several in any::<bool>(),
        controls in any::<bool>(),
        choices in proptest::collection::vec(any::<u64>(), 8..60),
    ) {
        // Harmony's marks are control tokens always; those of the others may be.
        let setup = match syntax {
            ToolSyntax::Harmony => harmony(),
            _ if controls => marked(),
            _ => unmarked(),
        };
        let t = &setup.0;
        let prompt = Prompt::trusted(if syntax == ToolSyntax::Harmony { "<|start|>assistant" } else { "" });
        let grammar = Grammar::Calls { syntax, tools: tools(), several };
        let walked = walk(setup, &grammar, &prompt, &choices);
        prop_assume!(walked.is_some());
        let ids = walked.unwrap();
        let mut reader = ToolReader::new(t, &prompt, syntax, &tools(), 3);
        let mut stream = t.stream();
        for id in &ids {
            let text = stream.push(*id);
            reader.push(*id, &text);
        }
        reader.finish();
        let text = t.decode_with(&ids, true);
        prop_assert!(reader.calls().len() == 1 || several && !reader.calls().is_empty(), "{}: {:?}", text, reader.calls());
        prop_assert_eq!(reader.content(), "", "{}", text);
        for call in reader.calls() {
            let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
            prop_assert!(call.complete);
            if call.name == "noop" {
                prop_assert_eq!(arguments, json!({}));
                continue;
            }
            prop_assert!(arguments["place"].is_string() && arguments["now"].is_boolean(), "{} in {}", arguments, text);
            let days = &arguments["days"];
            prop_assert!(days.is_null() || days.as_i64().is_some_and(|d| (1..=9).contains(&d)), "{}", arguments);
            prop_assert!(arguments["kind"].is_null() || ["rain", "sun"].contains(&arguments["kind"].as_str().unwrap()));
            prop_assert!(arguments["where"].is_null() || arguments["where"].is_array(), "{}", arguments);
        }
    }
}

/// A vocabulary of 150 000 tokens with words as languages and programs have them: prefixes in common, blanks before, bytes.
fn large() -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    let mut types = vec![2, 3, 3];
    tokens.extend((0..256).map(|b| format!("<0x{b:02X}>")));
    types.extend([6; 256]);
    tokens.extend((33u8..127).map(|b| char::from(b).to_string()));
    let parts = [
        "a", "re", "tion", "str", "in", "ing", "e", "o", "pre", "con", "\"", "{", "}", ":", ",", "_", "1", "20", "é",
        "日", "\n", "(", "th", "er",
    ];
    let mut seen: std::collections::HashSet<String> = tokens.iter().cloned().collect();
    let mut i = 0u64;
    while tokens.len() < 150_000 {
        let mut x = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut word = String::from(if i % 2 == 0 { "▁" } else { "" });
        for _ in 0..1 + i % 5 {
            word.push_str(parts[(x >> 40) as usize % parts.len()]);
            x = x.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
        }
        i += 1;
        if seen.insert(word.clone()) {
            tokens.push(word);
        }
    }
    types.resize(tokens.len(), 1);
    let scores = Some(vec![0.0; tokens.len()]);
    Tokenizer::from_vocab(GgufVocab {
        model: "llama".into(),
        tokens,
        token_types: Some(types),
        scores,
        bos: Some(1),
        eos: Some(2),
        ..GgufVocab::default()
    })
    .unwrap()
}

/// How long masks take. A figure of an optimised build on a quiet machine:
/// `cargo test --release --test tests -- --ignored --nocapture masks_of_a_large_vocabulary`.
#[test]
#[ignore = "measures time"]
fn masks_of_a_large_vocabulary() {
    let t = large();
    let began = std::time::Instant::now();
    let engine = GrammarEngine::new(&t, t.vocab_size()).unwrap();
    println!("engine: {:.0} ms for {} tokens", began.elapsed().as_secs_f64() * 1e3, t.vocab_size());
    let person = object(
        json!({"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 8}, "mail": {"type": "string", "pattern": "^[a-z0-9]+@[a-z]+\\.(com|org)$"}}),
    );
    let grammars = [
        Grammar::JsonObject,
        schema(person.clone()),
        schema(json!({"type": "array", "items": person, "maxItems": 5})),
        schema(object(json!({"text": {"type": "string"}, "kind": {"enum": ["a", "tion", "string"]}}))),
        Grammar::Calls { syntax: ToolSyntax::Hermes, tools: tools(), several: true },
        Grammar::Calls { syntax: ToolSyntax::QwenXml, tools: tools(), several: true },
        Grammar::Regex("(.|\\n)*".into()),
    ];
    let (mut times, mut compiling, mut words) = (vec![], vec![], vec![]);
    for (g, grammar) in grammars.iter().enumerate() {
        for round in 0..4u64 {
            let began = std::time::Instant::now();
            let mut matcher = engine.compile(grammar, &Prompt::default()).unwrap();
            compiling.push(began.elapsed().as_secs_f64() * 1e3);
            let mut x = round * 977 + g as u64;
            for _ in 0..150 {
                let began = std::time::Instant::now();
                matcher.mask(&mut words).unwrap();
                times.push(began.elapsed().as_secs_f64() * 1e3);
                if matcher.is_finished() {
                    break;
                }
                x = x.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
                let all: Vec<u32> = (0..t.vocab_size() as u32).filter(|id| allowed(&words, *id)).collect();
                let id = all[(x >> 33) as usize % all.len()];
                matcher.accept(id).unwrap();
            }
        }
    }
    let at = |times: &mut Vec<f64>, p: f64| {
        times.sort_by(f64::total_cmp);
        times[((times.len() - 1) as f64 * p) as usize]
    };
    println!(
        "{} masks: median {:.3} ms, p99 {:.3} ms, longest {:.3} ms",
        times.len(),
        at(&mut times, 0.5),
        at(&mut times, 0.99),
        at(&mut times, 1.0)
    );
    println!(
        "{} grammars compiled: median {:.1} ms, longest {:.1} ms",
        compiling.len(),
        at(&mut compiling, 0.5),
        at(&mut compiling, 1.0)
    );
    assert!(cfg!(debug_assertions) || at(&mut times, 0.99) <= 2.0);
}
