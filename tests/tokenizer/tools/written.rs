//! Calls that are written here in each family's syntax are read back, however the text is cut.

use super::*;
use proptest::prelude::*;

/// A value as Python writes it.
fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".into(),
        Value::Bool(b) => if *b { "True" } else { "False" }.into(),
        Value::Number(n) => n.to_string(),
        // JSON's escapes are Python's, but for surrogate pairs, which serde does not write.
        Value::String(s) => Value::from(s.as_str()).to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(python).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let entry = |(k, v): (&String, &Value)| format!("{}: {}", Value::from(k.as_str()), python(v));
            format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(", "))
        }
    }
}

/// Calls as a model of this family writes them.
fn write(syntax: ToolSyntax, calls: &[Value]) -> String {
    let name = "get_weather";
    let raw = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let each = |f: &dyn Fn(usize, &serde_json::Map<String, Value>) -> String| -> Vec<String> {
        calls.iter().enumerate().map(|(i, c)| f(i, c.as_object().unwrap())).collect()
    };
    let params = |c: &serde_json::Map<String, Value>, f: &dyn Fn(&str, &str) -> String| -> String {
        c.iter().map(|(k, v)| f(k, &raw(v))).collect()
    };
    let json = |c: &serde_json::Map<String, Value>| Value::Object(c.clone()).to_string();
    match syntax {
        Hermes => {
            each(&|_, c| format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {}}}\n</tool_call>", json(c)))
                .join("\n")
        }
        QwenXml => each(&|_, c| {
            let params = params(c, &|k, v| format!("<parameter={k}>\n{v}\n</parameter>\n"));
            format!("<tool_call>\n<function={name}>\n{params}</function>\n</tool_call>")
        })
        .join("\n"),
        Glm => each(&|_, c| {
            let params = params(c, &|k, v| format!("<arg_key>{k}</arg_key>\n<arg_value>{v}</arg_value>\n"));
            format!("<tool_call>{name}\n{params}</tool_call>")
        })
        .join("\n"),
        MiniMax => {
            let all = each(&|_, c| {
                let params = params(c, &|k, v| format!("<parameter name=\"{k}\">{v}</parameter>\n"));
                format!("<invoke name=\"{name}\">\n{params}</invoke>\n")
            });
            format!("<minimax:tool_call>\n{}</minimax:tool_call>", all.concat())
        }
        MistralList => {
            let all = each(&|_, c| format!("{{\"name\": \"{name}\", \"arguments\": {}}}", json(c)));
            format!("[TOOL_CALLS] [{}]", all.join(", "))
        }
        MistralNamed => each(&|_, c| format!("[TOOL_CALLS]{name}[ARGS]{}", json(c))).concat(),
        Llama | Lfm2 => {
            let args = |c: &serde_json::Map<String, Value>| {
                c.iter().map(|(k, v)| format!("{k}={}", python(v))).collect::<Vec<_>>().join(", ")
            };
            let all = each(&|_, c| format!("{name}({})", args(c))).join(", ");
            let (open, close) = if syntax == Llama {
                ("<|python_start|>", "<|python_end|>")
            } else {
                ("<|tool_call_start|>", "<|tool_call_end|>")
            };
            format!("{open}[{all}]{close}")
        }
        DeepSeekV3 => {
            let all = each(&|_, c| {
                format!(
                    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{}\n```<｜tool▁call▁end｜>",
                    json(c)
                )
            });
            format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", all.join("\n"))
        }
        DeepSeekV31 => {
            let all = each(&|_, c| format!("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{}<｜tool▁call▁end｜>", json(c)));
            format!("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", all.concat())
        }
        Kimi => {
            let one = |i: usize, c: &serde_json::Map<String, Value>| {
                format!(
                    "<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{}<|tool_call_end|>",
                    json(c)
                )
            };
            format!("<|tool_calls_section_begin|>{}<|tool_calls_section_end|>", each(&one).concat())
        }
        Harmony => unreachable!("its marks are control tokens always"),
    }
}

/// Texts with what parsers trip over, but no closing tag.
fn text() -> impl Strategy<Value = String> {
    let odd = prop_oneof![
        Just("\n"),
        Just("\""),
        Just("'"),
        Just("\\"),
        Just("</"),
        Just("<"),
        Just("<tool_call"),
        Just("{"),
        Just("]"),
        Just("```"),
        Just("é"),
        Just("🦈"),
        Just("[TOOL"),
        Just("\u{1}"),
        Just("<|"),
        Just(")"),
        Just("a"),
        Just(" b "),
        Just("</p"),
        Just("7")
    ];
    proptest::collection::vec(odd, 0..8).prop_map(|v| v.concat())
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        text().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1_000_000..1_000_000i32).prop_map(|n| Value::from(f64::from(n) / 64.0)),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(text(), inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn arguments() -> impl Strategy<Value = Value> {
    let more =
        proptest::collection::btree_map(text(), value(), 0..3).prop_map(|m| Value::Object(m.into_iter().collect()));
    (text(), any::<i64>(), any::<bool>(), proptest::collection::vec(text(), 0..3), more, 0u8..32).prop_map(
        |(place, days, now, units, more, with)| {
            let all = [
                ("place", json!(place)),
                ("days", json!(days)),
                ("now", json!(now)),
                ("units", json!(units)),
                ("more", more),
            ];
            let some = all.into_iter().enumerate().filter(|(i, _)| with >> i & 1 == 1);
            Value::Object(some.map(|(_, (k, v))| (k.to_owned(), v)).collect())
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn calls_come_back_as_they_were_written(
        syntax in proptest::sample::select(ToolSyntax::ALL.iter().copied().filter(|s| *s != Harmony).collect::<Vec<_>>()),
        calls in proptest::collection::vec(arguments(), 1..4),
        before in "[a-zé .]{0,12}",
        cuts in proptest::collection::btree_set(0usize..2000, 0..40),
    ) {
        let text = format!("{before}{}", write(syntax, &calls));
        let cuts: Vec<usize> = cuts.into_iter().filter(|c| *c < text.len()).collect();
        let read = cut(syntax, &text, &cuts);
        prop_assert_eq!(&read.content, before.trim_end(), "{}", text);
        let got: Vec<Value> = read.calls.iter().map(|c| serde_json::from_str(&c.1).unwrap()).collect();
        // Numbers of Python are read as they stand.
        prop_assert_eq!(got, calls, "{}", text);
        prop_assert!(read.complete.iter().all(|c| *c));
    }

    #[test]
    fn any_text_is_read_alike_however_it_is_cut(
        syntax in proptest::sample::select(ToolSyntax::ALL.to_vec()),
        parts in proptest::collection::vec(prop_oneof![
            proptest::sample::select(answers().into_iter().map(|a| a.1).collect::<Vec<_>>()), text(),
            Just("<tool_call>".to_owned()), Just("</tool_call>".to_owned()), Just("[TOOL_CALLS]".to_owned()),
            Just("<function=noop>".to_owned()), Just("<parameter=a>".to_owned()), Just("{\"name\": \"noop\", ".to_owned()),
            Just("<|python_tag|>".to_owned()), Just("<|tool_calls_section_begin|>".to_owned()),
        ], 0..5),
        keep in 0usize..400,
        cuts in proptest::collection::btree_set(0usize..1500, 0..60),
    ) {
        let text: String = parts.concat();
        let end = (0..=text.len().min(keep * 4)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        let text = &text[..end];
        let cuts: Vec<usize> = cuts.into_iter().filter(|c| *c < text.len()).collect();
        let (whole, cut) = (whole(syntax, text), cut(syntax, text, &cuts));
        prop_assert_eq!(&whole, &cut);
        // What is no call is there, but for blanks: no letter is lost where there is no call.
        if whole.calls.is_empty() && !text.contains("section_") && !text.contains("invoke") && !text.contains("begin") && !text.contains("python_") {
            prop_assert_eq!(whole.content, text);
        }
    }
}
