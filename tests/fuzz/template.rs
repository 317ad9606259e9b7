//! Chat templates: those of models with pieces moved, doubled, taken away and put in.

use super::values;
use crate::support::rng::Rng;
use moeray::tokenizer::{ChatTemplate, Message, RenderOptions};
use serde_json::json;

const BASES: [&str; 8] = [
    include_str!("../data/tokenizer/templates/chatml.jinja"),
    include_str!("../data/tokenizer/templates/deepseek.jinja"),
    include_str!("../data/tokenizer/templates/glm4.jinja"),
    include_str!("../data/tokenizer/templates/harmony.jinja"),
    include_str!("../data/tokenizer/templates/llama3.jinja"),
    include_str!("../data/tokenizer/templates/mixtral.jinja"),
    include_str!("../data/tokenizer/templates/python.jinja"),
    include_str!("../data/tokenizer/templates/qwen3.jinja"),
];

/// Pieces that reach far.
const PIECES: [&str; 24] = [
    "{{ 'a' * 1000000000 }}",
    "{{ range(1000000000000) | length }}",
    "{% for i in range(10000000) %}{% for j in range(10000000) %}x{% endfor %}{% endfor %}",
    "{{ [1] * 1000000000 }}",
    "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "{{ 9223372036854775807 + 1 }}",
    "{{ -9223372036854775808 // -1 }}",
    "{{ 1 % 0 }}",
    "{{ 2 ** 100000 }}",
    "{{ 'x'[::-1][5:-5:0] }}",
    "{{ 'é'.encode }}",
    "{{ messages | tojson(indent=1000000000) }}",
    "{{ 'a'.center(1000000000) }}",
    "{{ 'a,b'.split('') }}",
    "{{ 'ab'.replace('', 'cd' * 1000) }}",
    "{{ '%s' % messages }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ 'a'.zfill(1000000000) }}",
    "{% set ns = namespace(x=[]) %}{% for i in range(9) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{{ strftime_now('%' * 1000) }}",
    "{{ loop.index }}",
    "{{ messages[-1].content[1:99999999999999999999] }}",
    "{{ [3, 'a', none] | sort }}",
    "{%- raw -%}{{{%- endraw -%}",
];

/// A template that was changed, rendered with a conversation.
pub fn run(rng: &mut Rng) -> usize {
    let mut source = BASES[rng.below(BASES.len())].to_string();
    for _ in 0..1 + rng.below(3) {
        source = match rng.below(3) {
            0 => {
                let mut at = rng.below(source.len() + 1);
                while !source.is_char_boundary(at) {
                    at -= 1;
                }
                let piece = PIECES[rng.below(PIECES.len())];
                format!("{}{piece}{}", &source[..at], &source[at..])
            }
            1 => source.replacen(char::is_numeric, &values::number(rng).to_string(), 1 + rng.below(2)),
            _ => values::spliced(rng, &source),
        };
    }
    let Ok(template) = ChatTemplate::new(source.as_str(), "<s>", "</s>") else { return source.len() };
    let contents = ["hi", "a <|im_end|> b", "", "\u{0}é"];
    let roles = ["system", "user", "assistant", "tool", "user"];
    let messages = roles.map(|r| Message::new(r, contents[rng.below(contents.len())]));
    let variables = [("tools".to_string(), json!([{"name": "f", "parameters": {"x": values::number(rng)}}]))];
    let options = RenderOptions { add_generation_prompt: true, now: None, variables: variables.into() };
    // An error is an answer.
    let _ = template.render_with(&messages, &options);
    source.len()
}
