//! What form an answer is to have: tools that it may or must call, JSON, text of a grammar.
//!
//! The APIs say the same things in different words. Each reads its own words into [`Asked`]; [`Form`] is what the other parts
//! of a request need: what the template shows, how calls are read, and a mask of tokens.

use super::{
    app::App,
    engine::Constraint,
    error::{ApiError, ApiResult},
    fields::Fields,
};
use crate::{
    error::Result,
    grammar::{Grammar, Matcher},
    tokenizer::Prompt,
    tools::{Tool, ToolSyntax},
};
use serde_json::{Value, json};

/// Whether tools are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// No tool is.
    None,
    /// As the model likes.
    #[default]
    Auto,
    /// At least one is.
    Required,
    /// This one is.
    Named(String),
}

/// What a request asks for.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The tools, each with the field that it came from.
    pub tools: Vec<(String, Tool)>,
    /// The field of the choice, and the choice.
    pub choice: (&'static str, Choice),
    /// Whether there may be several calls.
    pub several: bool,
    /// The field of a form of the text, and the form.
    pub text: Option<(String, Grammar)>,
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Form {
    /// What may be called, and is shown by the template.
    pub tools: Vec<Tool>,
    /// How calls are read; `None`: there are none.
    pub syntax: Option<ToolSyntax>,
    /// Whether one call is all that is wanted.
    pub single: bool,
    grammar: Option<(String, Grammar)>,
}

impl Form {
    /// The form that is asked for.
    ///
    /// # Errors
    /// 400 with the field where the model knows no tools, or the choice names one that there is not.
    pub fn of(app: &App, asked: Asked) -> ApiResult<Form> {
        let Asked { tools, choice: (field, choice), several, text } = asked;
        if let Some((path, twice)) = tools.iter().enumerate().find_map(|(i, (path, t))| {
            tools[..i].iter().any(|(_, other)| other.name == t.name).then_some((path, &t.name))
        }) {
            return Err(ApiError::field(path.clone(), format!("there are two tools with the name {twice:?}")));
        }
        let mut tools: Vec<Tool> = tools.into_iter().map(|t| t.1).collect();
        match &choice {
            Choice::Required if tools.is_empty() => {
                return Err(ApiError::field(field, "a call is required, and there are no tools"));
            }
            Choice::Named(name) if !tools.iter().any(|t| t.name == *name) => {
                return Err(ApiError::field(field, format!("there is no tool with the name {name:?}")));
            }
            Choice::None | Choice::Auto | Choice::Required | Choice::Named(_) => {}
        }
        if tools.is_empty() || choice == Choice::None {
            return Ok(Form { grammar: text, ..Form::default() });
        }
        let shown = shows_tools(app.template.source());
        let Some(syntax) = ToolSyntax::of(&app.tokenizer).filter(|_| shown) else {
            return Err(ApiError::unsupported(
                "tools",
                "this model's chat template knows no tools: --chat-template names another",
            ));
        };
        let forced = match &choice {
            Choice::Named(name) => Some(tools.iter().filter(|t| t.name == *name).cloned().collect()),
            Choice::Required => Some(tools.clone()),
            Choice::None | Choice::Auto => None,
        };
        let grammar = match forced {
            Some(tools) => Some((
                field.to_owned(),
                Grammar::Calls { syntax, tools, several: several && choice == Choice::Required },
            )),
            // A text in a form leaves no room for calls.
            None if text.is_some() => {
                tools.clear();
                text
            }
            None => None,
        };
        Ok(Form { syntax: (!tools.is_empty()).then_some(syntax), tools, single: !several, grammar })
    }

    /// The tools as templates take them; `None` where there are none.
    pub fn shown(&self) -> Option<Value> {
        (!self.tools.is_empty()).then(|| self.tools.iter().map(Tool::to_json).collect())
    }

    /// A matcher of answers to a prompt, where the form restricts them.
    ///
    /// # Errors
    /// 400 with the field where the grammar is wrong or asks for what is not enforced.
    pub fn matcher(&self, app: &App, prompt: &Prompt) -> ApiResult<Option<Matcher>> {
        let Some((field, grammar)) = &self.grammar else { return Ok(None) };
        let engine = app.grammars()?;
        engine.compile(grammar, prompt).map(Some).map_err(|e| ApiError::field(field.clone(), e.to_string()))
    }
}

/// A matcher as the engine takes it.
#[derive(Debug)]
pub struct Masked {
    matcher: Matcher,
    words: Vec<u32>,
}

impl Masked {
    /// At the beginning of an answer.
    pub fn new(matcher: Matcher) -> Self {
        Masked { matcher, words: vec![] }
    }
}

impl Constraint for Masked {
    fn allowed(&mut self) -> Result<Option<&[u32]>> {
        self.matcher.mask(&mut self.words)?;
        Ok(Some(&self.words))
    }

    fn accept(&mut self, id: u32) -> Result<()> {
        self.matcher.accept(id)
    }

    fn is_complete(&mut self) -> bool {
        self.matcher.is_finished()
    }
}

/// Whether a template looks at the tools: the oldest of DeepSeek write calls, and say nothing of what may be called.
fn shows_tools(source: &str) -> bool {
    source.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "tools")
}

/// A tool of a list, with the field that it came from.
///
/// # Errors
/// 400 with the field.
fn tool(value: &Value, path: &str) -> ApiResult<(String, Tool)> {
    let tool = Tool::from_json(value).map_err(|e| ApiError::field(path, e.to_string()))?;
    Ok((path.to_owned(), tool))
}

/// A schema that came with a name.
fn schema(format: &Fields<'_>, name: &str) -> ApiResult<(String, Grammar)> {
    Ok((format.path(name), Grammar::JsonSchema(format.require(name)?.clone())))
}

/// What chat completions ask for: `tools`, `tool_choice`, `parallel_tool_calls`, `response_format`.
///
/// # Errors
/// 400 with the field.
pub fn of_chat(f: &Fields<'_>) -> ApiResult<Asked> {
    let mut tools = vec![];
    for (i, t) in f.array("tools")?.unwrap_or_default().iter().enumerate() {
        let t = Fields::at(t, format!("tools[{i}]"))?;
        t.require_string("type")?;
        t.word("type", &["function"])?;
        tools.push(tool(t.require("function")?, &t.path("function"))?);
    }
    let choice = choice_of(f, |choice| {
        let named = Fields::at(choice.require("function")?, choice.path("function"))?;
        named.require_string("name").map(str::to_owned)
    })?;
    let text = match f.object("response_format")? {
        None => None,
        Some(format) => {
            format.require_string("type")?;
            match format.word("type", &["text", "json_object", "json_schema"])? {
                Some("json_object") => Some(("response_format".to_owned(), Grammar::JsonObject)),
                Some("json_schema") => {
                    let inner = Fields::at(format.require("json_schema")?, format.path("json_schema"))?;
                    Some(schema(&inner, "schema")?)
                }
                _ => None,
            }
        }
    };
    let several = f.boolean("parallel_tool_calls")?.unwrap_or(true);
    Ok(Asked { tools, choice: ("tool_choice", choice), several, text })
}

/// OpenAI's `tool_choice`: a word, or a function whose name `name` finds.
fn choice_of(f: &Fields<'_>, name: impl FnOnce(&Fields<'_>) -> ApiResult<String>) -> ApiResult<Choice> {
    let Some(value) = f.get("tool_choice") else { return Ok(Choice::Auto) };
    if !value.is_string() {
        let choice = Fields::at(value, "tool_choice")?;
        choice.require_string("type")?;
        choice.word("type", &["function"])?;
        return name(&choice).map(Choice::Named);
    }
    Ok(match f.word("tool_choice", &["none", "auto", "required"])? {
        Some("none") => Choice::None,
        Some("required") => Choice::Required,
        // The only word that is left.
        Some(_) | None => Choice::Auto,
    })
}

/// What responses ask for: `tools`, `tool_choice`, `parallel_tool_calls`, `text.format`.
///
/// # Errors
/// 400 with the field.
pub fn of_responses(f: &Fields<'_>) -> ApiResult<Asked> {
    let mut tools = vec![];
    for (i, t) in f.array("tools")?.unwrap_or_default().iter().enumerate() {
        let fields = Fields::at(t, format!("tools[{i}]"))?;
        let kind = fields.require_string("type")?;
        if kind != "function" {
            return Err(ApiError::unsupported(
                &fields.path("type"),
                format!("this server has no tool {kind:?} of its own"),
            ));
        }
        tools.push(tool(t, &format!("tools[{i}]"))?);
    }
    let choice = choice_of(f, |choice| choice.require_string("name").map(str::to_owned))?;
    let format = match f.object("text")? {
        None => None,
        Some(text) => text.object("format")?,
    };
    let text = match &format {
        None => None,
        Some(format) => {
            format.require_string("type")?;
            match format.word("type", &["text", "json_object", "json_schema"])? {
                Some("json_object") => Some(("text.format".to_owned(), Grammar::JsonObject)),
                Some("json_schema") => Some(schema(format, "schema")?),
                _ => None,
            }
        }
    };
    let several = f.boolean("parallel_tool_calls")?.unwrap_or(true);
    Ok(Asked { tools, choice: ("tool_choice", choice), several, text })
}

/// What messages ask for: `tools`, `tool_choice`.
///
/// # Errors
/// 400 with the field.
pub fn of_messages(f: &Fields<'_>) -> ApiResult<Asked> {
    let mut tools = vec![];
    for (i, t) in f.array("tools")?.unwrap_or_default().iter().enumerate() {
        let fields = Fields::at(t, format!("tools[{i}]"))?;
        if let Some(kind) = fields.string("type")?.filter(|k| *k != "custom") {
            return Err(ApiError::unsupported(
                &fields.path("type"),
                format!("this server has no tool {kind:?} of its own"),
            ));
        }
        let name = fields.require_string("name")?;
        let schema = fields.require("input_schema")?;
        let value = json!({"name": name, "description": fields.string("description")?, "parameters": schema});
        tools.push(tool(&value, &format!("tools[{i}]"))?);
    }
    let mut asked = Asked { tools, choice: ("tool_choice", Choice::Auto), several: true, text: None };
    if let Some(choice) = f.object("tool_choice")? {
        choice.require_string("type")?;
        asked.choice.1 = match choice.word("type", &["auto", "any", "tool", "none"])? {
            Some("any") => Choice::Required,
            Some("none") => Choice::None,
            Some("tool") => Choice::Named(choice.require_string("name")?.to_owned()),
            _ => Choice::Auto,
        };
        asked.several = choice.boolean("disable_parallel_tool_use")? != Some(true);
    }
    Ok(asked)
}
