//! The chat templates of forty model families on conversations of every kind, against Jinja2
//! (`tests/data/tokenizer/families.py`).

use moeray::{
    Error,
    tokenizer::{ChatTemplate, DateTime, RenderOptions},
};
use serde::Deserialize;
use serde_json::Value as Json;
use std::{collections::BTreeMap, fs, path::Path};

#[derive(Deserialize)]
struct Families {
    chats: BTreeMap<String, Vec<Json>>,
    variables: Vec<BTreeMap<String, Json>>,
    texts: Vec<String>,
    cases: Vec<(String, String, bool, usize, Outcome)>,
}

/// The index of a text, or an error's words (none where Python words it).
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Outcome {
    Text(usize),
    Error(String),
}

#[test]
fn templates_of_forty_families_render_as_in_jinja2() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer");
    let read = |path: &str| fs::read_to_string(data.join(path)).unwrap();
    let all: Families = serde_json::from_str(&read("families.json")).unwrap();
    let now = DateTime { year: 2024, month: 2, day: 5, hour: 9, minute: 7, second: 3 };
    let mut templates: BTreeMap<&str, ChatTemplate> = BTreeMap::new();
    let (mut wrong, mut errors) = (vec![], 0);
    for (name, chat, add_generation_prompt, variables, want) in &all.cases {
        let template = templates
            .entry(name.as_str())
            .or_insert_with(|| ChatTemplate::new(read(&format!("families/{name}.jinja")), "<s>", "</s>").unwrap());
        let variables = all.variables[*variables].clone();
        let options = RenderOptions { add_generation_prompt: *add_generation_prompt, now: Some(now), variables };
        let got = template.prompt_of(&all.chats[chat], &options).map(|p| p.text);
        let same = match (&got, want) {
            (Ok(got), Outcome::Text(i)) => *got == all.texts[*i],
            (Err(Error::Tokenizer(e)), Outcome::Error(words)) => {
                errors += 1;
                e.contains(words.as_str())
            }
            _ => false,
        };
        if !same {
            let want = match want {
                Outcome::Text(i) => &all.texts[*i],
                Outcome::Error(words) => words,
            };
            wrong.push(format!(
                "{name}, {chat}, {add_generation_prompt}, {:?}:\n got {got:?}\nwant {want:?}",
                options.variables.keys()
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} differ:\n{}",
        wrong.len(),
        all.cases.len(),
        wrong[..wrong.len().min(8)].join("\n")
    );
    assert!(templates.len() >= 40 && all.cases.len() > 1000 && errors > 50);
}
