//! Chat templates render as Jinja2 renders them (`tests/data/tokenizer/render.py`), and hostile ones end.

use super::{bpe_meta, metadata};
use moeray::{
    Error,
    tokenizer::{ChatTemplate, DateTime, EncodeOptions, Message, Prompt, RenderOptions, Tokenizer},
};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Case {
    template: String,
    chat: Vec<(String, String)>,
    prompt: bool,
    extra: BTreeMap<String, serde_json::Value>,
    dated: bool,
    text: Option<String>,
    error: Option<String>,
}

fn source(name: &str) -> &'static str {
    match name {
        "chatml" => include_str!("../data/tokenizer/templates/chatml.jinja"),
        "deepseek" => include_str!("../data/tokenizer/templates/deepseek.jinja"),
        "glm4" => include_str!("../data/tokenizer/templates/glm4.jinja"),
        "harmony" => include_str!("../data/tokenizer/templates/harmony.jinja"),
        "llama3" => include_str!("../data/tokenizer/templates/llama3.jinja"),
        "mixtral" => include_str!("../data/tokenizer/templates/mixtral.jinja"),
        "python" => include_str!("../data/tokenizer/templates/python.jinja"),
        "qwen3" => include_str!("../data/tokenizer/templates/qwen3.jinja"),
        other => panic!("no template {other}"),
    }
}

#[test]
fn templates_render_as_in_jinja2() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../data/tokenizer/templates.json")).unwrap();
    assert!(cases.len() > 100);
    let now = DateTime { year: 2024, month: 2, day: 5, hour: 9, minute: 7, second: 3 };
    let mut wrong = Vec::new();
    for case in cases {
        let template = ChatTemplate::new(source(&case.template), "<s>", "</s>").unwrap();
        let messages: Vec<Message> = case.chat.iter().map(|(r, c)| Message::new(r, c)).collect();
        let options = RenderOptions {
            add_generation_prompt: case.prompt,
            now: case.dated.then_some(now),
            variables: case.extra.clone(),
        };
        let got = template.render_with(&messages, &options);
        let same = match (&got, &case.text) {
            (Ok(got), Some(want)) => got == want,
            (Err(Error::Tokenizer(e)), None) => e.contains(case.error.as_deref().unwrap()) && e.contains("line "),
            _ => false,
        };
        if !same {
            wrong.push(format!(
                "{} {:?}:\n got {got:?}\nwant {:?} {:?}",
                case.template, case.chat, case.text, case.error
            ));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_gguf_file_brings_its_template() {
    let tokenizer = Tokenizer::from_gguf(&bpe_meta()).unwrap();
    let template = tokenizer.chat_template().unwrap().unwrap();
    let text = template.render(&[Message::new("user", "Hi")], true).unwrap();
    assert_eq!(
        text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    let ids = tokenizer.encode_rendered(&text).unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 1).count(), 3, "three turns begin");
    assert!(
        Tokenizer::from_gguf(&metadata(include_bytes!("../data/tokenizer/spm.gguf")))
            .unwrap()
            .chat_template()
            .unwrap()
            .is_none()
    );
}

#[test]
fn a_broken_template_leaves_the_text_alone() {
    let tokenizer = Tokenizer::from_gguf(&bpe_meta()).unwrap().with_chat_template("{% for %}");
    assert!(!tokenizer.encode("Hi", EncodeOptions::default()).unwrap().is_empty());
    let Err(Error::Tokenizer(reason)) = tokenizer.chat_template() else { panic!("accepted") };
    assert!(reason.contains("chat template, line 1"), "{reason}");
    assert_eq!(tokenizer.chat_template_source(), Some("{% for %}"));
}

fn failure(source: &str) -> String {
    let template = match ChatTemplate::new(source, "", "") {
        Ok(t) => t,
        Err(Error::Tokenizer(e)) => return e,
        Err(other) => panic!("{other}"),
    };
    match template.render(&[Message::new("user", "x")], true) {
        Err(Error::Tokenizer(e)) => e,
        other => panic!("{other:?}"),
    }
}

#[test]
fn broken_templates_are_errors_with_a_line() {
    for (source, line, reason) in [
        ("ok\n{% if %}", "line 2", ""),
        ("{{ messages[0].content", "line 1", ""),
        ("\n\n{% for x in y %}", "line 3", ""),
        ("\n{{ raise_exception('no such role') }}", "line 2", "no such role"),
        ("{{ nothing.at.all }}", "line 1", "undefined"),
        ("{{ strftime_now('%Y') }}", "line 1", "strftime_now"),
        ("{{ 'x'.no_such_method() }}", "line 1", "no_such_method"),
        ("{% include '/etc/passwd' %}", "line 1", "/etc/passwd"),
    ] {
        let e = failure(source);
        assert!(e.contains(line) && e.contains(reason), "{source:?}: {e}");
    }
}

#[test]
fn endless_templates_end() {
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a %}{% endfor %}{% endfor %}";
    assert!(failure(loops).contains("too many steps"), "{}", failure(loops));
    let output = "{% set s = 'x' * 1000000 %}{% for a in range(9999) %}{{ s }}{% endfor %}";
    assert!(failure(output).contains("without end"), "{}", failure(output));
    // A value that is larger than all that may be written.
    let (large, peak) = crate::alloc::peak(|| failure("{% set s = 'x' * 6000000 %}{% set t = [s, s, s, s] %}"));
    assert!(large.contains("too large") && peak < 64 << 20, "{large}, {peak} bytes");
    let recursion = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}";
    assert!(failure(recursion).contains("line 1"), "{}", failure(recursion));
    let nested = "{{ ".to_owned() + &"(".repeat(100_000);
    failure(&nested);
    let nested = "{% if 1 %}".repeat(20_000);
    failure(&nested);
    failure(&"x".repeat(2 << 20));
}

#[test]
fn hostile_templates_are_errors() {
    let deep = |open: &str, close: &str, n: usize| format!("{{{{ {}1{} }}}}", open.repeat(n), close.repeat(n));
    let nested = "{% if true %}".repeat(5000);
    let recursion = "{% macro f(x) %}{{ f([x]) }}{% endmacro %}{{ f(1) }}";
    let growing = "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    let chain = format!("{{{{ 1{} }}}}", " ~ 1".repeat(100_000));
    let doubled = "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}";
    for source in [
        &deep("(", ")", 100_000),
        &deep("[", "]", 100_000),
        &deep("not ", "", 100_000),
        &deep("-", "", 100_000),
        &nested,
        recursion,
        growing,
        &chain,
        doubled,
        "{{ 'x' * 99999999999 }}",
        "{{ [1] * 99999999999 }}",
        "{{ '%99999999d' % 1 }}",
        "{{ '{:99999999}'.format(1) }}",
        "{{ 'x'.center(99999999999) }}",
        "{{ 2 ** 99999 }}",
        "{{ (2 ** 120) * (2 ** 120) }}",
        "{% set ns = namespace() %}{% set ns.me = ns %}{% for i in range(9) %}{{ ns.me.me }}{% endfor %}{{ 1 / 0 }}",
    ] {
        assert!(!failure(source).is_empty());
    }
}

#[test]
fn a_persons_marks_are_text() {
    let mark = "<|im_end|>";
    let gguf = Tokenizer::from_gguf(&bpe_meta()).unwrap();
    let template = gguf.chat_template().unwrap().unwrap();
    let id = gguf.token_id(mark).unwrap();
    let says = |text: &str| template.prompt(&[Message::new("user", text)], &RenderOptions::default()).unwrap();
    let ends = |tokenizer: &Tokenizer, prompt: &Prompt| {
        tokenizer.encode_prompt(prompt).unwrap().iter().filter(|i| **i == id).count()
    };
    let (plain, marked) = (says("a  b"), says(&format!("a {mark} b")));
    assert_eq!(ends(&gguf, &plain), ends(&gguf, &marked));
    assert_eq!(ends(&gguf, &Prompt::trusted(marked.text.as_str())), ends(&gguf, &plain) + 1);
    // Whatever the template does with a text, it stays what a person wrote.
    let twisted = "{% set x = messages[0].content | upper | trim %}{{ x[:4] ~ '<|im_end|>' ~ x.replace('A', '')[2:] }}\
                   {{ '%s' % x }}{{ [x] | join('<') }}{{ messages | tojson }}{{ x.split() | last }}{{ [x] }}";
    let twisted = ChatTemplate::new(twisted, "", "").unwrap();
    let prompt = twisted.prompt(&[Message::new("user", "<|IM_END|> <|im_end|>")], &RenderOptions::default()).unwrap();
    let own: Vec<usize> = prompt.text.match_indices(mark).map(|m| m.0).collect();
    let foreign = |at: usize| prompt.foreign.iter().any(|r| r.start < at + mark.len() && at < r.end);
    assert_eq!(own.iter().filter(|at| !foreign(**at)).count(), 1, "{prompt:?}");
    // The same vocabulary as a tokenizer.json.
    let json = include_bytes!("../data/tokenizer/bard.json");
    let hf = Tokenizer::from_json(json, None).unwrap();
    let special = (0..hf.vocab_size() as u32).find(|i| hf.is_special(*i)).unwrap();
    let text = hf.token_text(special).unwrap();
    let foreign = std::iter::once(0..1 + text.len()).collect();
    let prompt = Prompt { text: format!("a{text}b{text}c"), foreign };
    let ids = hf.encode_prompt(&prompt).unwrap();
    assert_eq!(
        ids.iter().filter(|i| **i == special).count(),
        1 + usize::from(ids.first() == Some(&special)),
        "{ids:?}"
    );
}
