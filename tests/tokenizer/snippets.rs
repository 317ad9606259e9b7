//! Every construct of Jinja2 against Jinja2 itself (`tests/data/tokenizer/snippets.py`).

use moeray::tokenizer::{ChatTemplate, DateTime, RenderOptions};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Data {
    variables: BTreeMap<String, serde_json::Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    text: Option<String>,
    error: Option<String>,
}

#[test]
fn constructs_render_as_in_jinja2() {
    let mut data: Data = serde_json::from_str(include_str!("../data/tokenizer/snippets.json")).unwrap();
    let messages = data.variables.remove("messages").unwrap();
    let messages = messages.as_array().unwrap();
    assert!(data.cases.len() > 250);
    let now = Some(DateTime { year: 2024, month: 2, day: 5, hour: 9, minute: 7, second: 3 });
    let options = RenderOptions { now, variables: data.variables, ..RenderOptions::default() };
    let mut wrong = Vec::new();
    for case in data.cases {
        let got = ChatTemplate::new(&case.template, "", "").and_then(|t| t.prompt_of(messages, &options));
        let same = match (&got, &case.text) {
            (Ok(got), Some(want)) => got.text == *want,
            (Err(_), None) => true,
            _ => false,
        };
        if !same {
            let got = got.map(|p| p.text);
            wrong.push(format!("{:?}\n got {got:?}\nwant {:?} {:?}", case.template, case.text, case.error));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}
