//! Calls of tools as grammars, in the syntax of each family.

use super::{
    marks::{Marks, literal},
    schema,
};
use crate::{
    error::Result,
    tools::{Tool, ToolSyntax},
};
use serde_json::Value;

/// How the parameters of a call are written where they are no JSON object.
struct Parameters {
    /// Before a parameter's name, between it and the value, and behind the value.
    open: &'static str,
    middle: &'static str,
    close: &'static str,
}

const QWEN: Parameters = Parameters { open: "<parameter=", middle: ">\n", close: "\n</parameter>\n" };
const GLM: Parameters = Parameters { open: "<arg_key>", middle: "</arg_key>\n<arg_value>", close: "</arg_value>\n" };
const MINIMAX: Parameters = Parameters { open: "<parameter name=\"", middle: "\">", close: "</parameter>\n" };

/// Rules, and the body of the answer's rule.
///
/// # Errors
/// [`crate::Error::Invalid`] for parameters whose schema asks for what is not enforced.
pub(super) fn rules(marks: &Marks<'_>, syntax: ToolSyntax, tools: &[Tool], several: bool) -> Result<(String, String)> {
    let mut rules = String::new();
    for (i, tool) in tools.iter().enumerate() {
        let body = call(marks, syntax, tool, i, &mut rules)?;
        rules.push_str(&format!("call_{i}: {body}\n"));
    }
    let any = (0..tools.len()).map(|i| format!("call_{i}")).collect::<Vec<_>>().join(" | ");
    rules.push_str(&format!("call: {any}\n"));
    let m = |text: &str| marks.mark(text);
    let list = |between: &str| match several {
        true => format!("call ({} call)*", literal(between)),
        false => "call".to_owned(),
    };
    let run = if several { "call+" } else { "call" };
    let body = match syntax {
        ToolSyntax::Hermes | ToolSyntax::QwenXml | ToolSyntax::Glm => list("\n"),
        ToolSyntax::MistralList => format!("{} / ?/ \"[\" {} \"]\"", m("[TOOL_CALLS]"), list(", ")),
        ToolSyntax::MistralNamed => run.to_owned(),
        // These models write one call, or call one function a message.
        ToolSyntax::Llama | ToolSyntax::Harmony => "call".to_owned(),
        ToolSyntax::Lfm2 => {
            format!("{} \"[\" {} \"]\" {}", m("<|tool_call_start|>"), list(", "), m("<|tool_call_end|>"))
        }
        ToolSyntax::DeepSeekV3 => {
            format!("{} {} {}", m("<｜tool▁calls▁begin｜>"), list("\n"), m("<｜tool▁calls▁end｜>"))
        }
        ToolSyntax::DeepSeekV31 => format!("{} {run} {}", m("<｜tool▁calls▁begin｜>"), m("<｜tool▁calls▁end｜>")),
        ToolSyntax::Kimi => {
            format!("{} {run} {}", m("<|tool_calls_section_begin|>"), m("<|tool_calls_section_end|>"))
        }
        ToolSyntax::MiniMax => format!("{} \"\\n\" {run} {}", m("<minimax:tool_call>"), m("</minimax:tool_call>")),
    };
    Ok((rules, body))
}

/// The body of one tool's rule.
fn call(marks: &Marks<'_>, syntax: ToolSyntax, tool: &Tool, i: usize, rules: &mut String) -> Result<String> {
    let m = |text: &str| marks.mark(text);
    let name = &tool.name;
    let quoted = Value::from(name.as_str()).to_string();
    let arguments = |rules: &mut String| -> Result<String> {
        rules.push_str(&format!("args_{i}: {}\n", schema::lark(&tool.parameters)?));
        Ok(format!("args_{i}"))
    };
    let object = |key: &str, rules: &mut String| -> Result<String> {
        let head = literal(&format!("{{\"name\": {quoted}, \"{key}\": "));
        Ok(format!("{head} {} \"}}\"", arguments(rules)?))
    };
    Ok(match syntax {
        ToolSyntax::Hermes => {
            format!("{} \"\\n\" {} \"\\n\" {}", m("<tool_call>"), object("arguments", rules)?, m("</tool_call>"))
        }
        ToolSyntax::MistralList => object("arguments", rules)?,
        ToolSyntax::Llama => object("parameters", rules)?,
        ToolSyntax::MistralNamed => {
            format!("{} {} {} {}", m("[TOOL_CALLS]"), literal(name), m("[ARGS]"), arguments(rules)?)
        }
        ToolSyntax::DeepSeekV3 => {
            let (begin, separator, end) = deepseek(marks);
            let head = literal(&format!("{name}\n```json\n"));
            format!("{begin} \"function\" {separator} {head} {} \"\\n```\" {end}", arguments(rules)?)
        }
        ToolSyntax::DeepSeekV31 => {
            let (begin, separator, end) = deepseek(marks);
            format!("{begin} {} {separator} {} {end}", literal(name), arguments(rules)?)
        }
        ToolSyntax::Kimi => {
            let (begin, separator) = (m("<|tool_call_begin|>"), m("<|tool_call_argument_begin|>"));
            let head = literal(&format!("functions.{name}:"));
            format!("{begin} {head} /[0-9]{{1,3}}/ {separator} {} {}", arguments(rules)?, m("<|tool_call_end|>"))
        }
        ToolSyntax::Harmony => {
            let head = literal(&format!("commentary to=functions.{name} "));
            let (channel, form, message) = (m("<|channel|>"), m("<|constrain|>"), m("<|message|>"));
            format!("{channel} {head} {form} \"json\" {message} {}", arguments(rules)?)
        }
        ToolSyntax::QwenXml => {
            let open = literal(&format!("\n<function={name}>\n"));
            let inner = parameters(marks, &QWEN, tool, i, rules)?;
            format!("{} {open} {inner} \"</function>\\n\" {}", m("<tool_call>"), m("</tool_call>"))
        }
        ToolSyntax::Glm => {
            let open = literal(&format!("{name}\n"));
            format!("{} {open} {} {}", m("<tool_call>"), parameters(marks, &GLM, tool, i, rules)?, m("</tool_call>"))
        }
        ToolSyntax::MiniMax => {
            let open = literal(&format!("<invoke name=\"{name}\">\n"));
            format!("{open} {} \"</invoke>\\n\"", parameters(marks, &MINIMAX, tool, i, rules)?)
        }
        ToolSyntax::Lfm2 => {
            let open = literal(&format!("{name}("));
            format!("{open} {} \")\"", python(tool, i, rules)?)
        }
    })
}

fn deepseek(marks: &Marks<'_>) -> (String, String, String) {
    let m = |text: &str| marks.mark(text);
    (m("<｜tool▁call▁begin｜>"), m("<｜tool▁sep｜>"), m("<｜tool▁call▁end｜>"))
}

/// A tool's parameters: name, schema with the definitions that it may need, whether it must be there.
fn properties(tool: &Tool) -> Result<Vec<(String, Value, bool)>> {
    schema::check(&tool.parameters)?;
    let required = tool.parameters["required"].as_array().map(Vec::as_slice).unwrap_or_default();
    let all = tool.parameters["properties"].as_object();
    let one = |(name, s): (&String, &Value)| {
        let needed = required.iter().any(|r| r.as_str() == Some(name));
        (name.clone(), schema::property(&tool.parameters, s), needed)
    };
    Ok(all.into_iter().flatten().map(one).collect())
}

/// Whether a schema is of texts and nothing else.
fn is_text(schema: &Value) -> bool {
    schema["type"] == "string" && schema.get("enum").is_none() && schema.get("const").is_none()
}

/// The texts that a schema allows, where it lists them.
fn texts(schema: &Value) -> Option<Vec<&str>> {
    match (&schema["const"], &schema["enum"]) {
        (Value::String(s), _) => Some(vec![s]),
        (Value::Null, Value::Array(all)) => all.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// Parameters as tags.
fn parameters(marks: &Marks<'_>, form: &Parameters, tool: &Tool, i: usize, rules: &mut String) -> Result<String> {
    let mut out = String::new();
    for (j, (name, schema, needed)) in properties(tool)?.into_iter().enumerate() {
        // Marks that are control tokens are never a part of a text; all of these may be.
        let part = |text: &str| -> String { marked(marks, text) };
        let open = format!("{} {} {}", part(form.open), literal(&name), part(form.middle));
        let value = if let Some(texts) = texts(&schema) {
            let any = texts.iter().map(|t| literal(t)).collect::<Vec<_>>().join(" | ");
            format!("({any}) {}", part(form.close))
        } else if is_text(&schema) {
            // Up to the closing tag, whichever way the vocabulary has it.
            let (tag, rest) = form.close.split_at(form.close.rfind('>').map_or(0, |at| at + 1));
            let (attributes, until) = marks.until(tag.trim_start());
            rules.push_str(&format!("text_{i}_{j}{attributes}: {until}\n"));
            if rest.is_empty() { format!("text_{i}_{j}") } else { format!("text_{i}_{j} {}", literal(rest)) }
        } else {
            rules.push_str(&format!("value_{i}_{j}: {}\n", schema::lark(&schema)?));
            format!("value_{i}_{j} {}", part(form.close))
        };
        rules.push_str(&format!("parameter_{i}_{j}: {open} {value}\n"));
        out.push_str(&format!("parameter_{i}_{j}{} ", if needed { "" } else { "?" }));
    }
    Ok(out)
}

/// A text in which tags may be control tokens.
fn marked(marks: &Marks<'_>, text: &str) -> String {
    let mut out = vec![];
    let mut rest = text;
    while let Some((at, tag)) = ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
        .iter()
        .filter_map(|t| Some((rest.find(t)?, *t)))
        .min()
    {
        if at > 0 {
            out.push(literal(&rest[..at]));
        }
        out.push(marks.mark(tag));
        rest = &rest[at + tag.len()..];
    }
    if !rest.is_empty() {
        out.push(literal(rest));
    }
    out.join(" ")
}

/// Arguments in Python's manner: those that must be there first, then any of the others.
fn python(tool: &Tool, i: usize, rules: &mut String) -> Result<String> {
    let mut all = properties(tool)?;
    all.sort_by_key(|(_, _, needed)| !needed);
    for (j, (name, schema, _)) in all.iter().enumerate() {
        let value = if schema["type"] == "boolean" { "\"True\" | \"False\"".to_owned() } else { schema::lark(schema)? };
        rules.push_str(&format!(
            "value_{i}_{j}: {value}\nargument_{i}_{j}: {} value_{i}_{j}\n",
            literal(&format!("{name}="))
        ));
    }
    let needed = all.iter().filter(|a| a.2).count();
    let comma = |j: usize| format!("\", \" argument_{i}_{j}");
    // Of the optional ones any may be the first where none is needed: one alternative for each.
    let tail = |from: usize| (from..all.len()).map(|j| format!("({})? ", comma(j))).collect::<String>();
    if needed > 0 {
        let head = (1..needed).map(|j| format!("{} ", comma(j))).collect::<String>();
        return Ok(format!("argument_{i}_0 {head}{}", tail(needed)));
    }
    let starts: Vec<String> = (0..all.len()).map(|j| format!("argument_{i}_{j} {}", tail(j + 1))).collect();
    Ok(if starts.is_empty() { "\"\"".into() } else { format!("({})?", starts.join(" | ")) })
}
