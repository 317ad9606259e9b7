//! The form that a text shall have: options as grammars.

use super::{args::RunArgs, failure::Outcome, stream::Hook};
use crate::tokenizer::Tokenizer;

/// A form, and what enforces it.
pub struct Form {
    #[cfg(feature = "grammar")]
    option: &'static str,
    #[cfg(feature = "grammar")]
    grammar: crate::grammar::Grammar,
    #[cfg(feature = "grammar")]
    engine: crate::grammar::GrammarEngine,
}

#[cfg(not(feature = "grammar"))]
impl Form {
    /// Nothing: this program has no grammars.
    pub fn of(_args: &RunArgs, _tokenizer: &Tokenizer) -> Outcome<Option<Form>> {
        Ok(None)
    }

    /// What lets through the tokens that the form allows.
    pub fn hook(&self) -> Outcome<Hook> {
        Ok(Box::new(|_, _| {}))
    }
}

#[cfg(feature = "grammar")]
mod enforced {
    use super::{Form, Hook, Outcome, RunArgs, Tokenizer};
    use crate::{
        cli::{failure::Failure, output::read_text},
        grammar::{Grammar, GrammarEngine},
        tokenizer::Prompt,
    };
    use std::path::Path;

    impl Form {
        /// What the options ask for; `None` where they ask for nothing.
        pub fn of(args: &RunArgs, tokenizer: &Tokenizer) -> Outcome<Option<Form>> {
            let args = &args.form;
            let (option, grammar) = if let Some(given) = &args.json_schema {
                ("--json-schema", Grammar::JsonSchema(schema(given)?))
            } else if let Some(file) = &args.grammar {
                ("--grammar", Grammar::Lark(read_text("--grammar", file)?))
            } else if let Some(regex) = &args.regex {
                ("--regex", Grammar::Regex(regex.clone()))
            } else {
                return Ok(None);
            };
            let engine = GrammarEngine::new(tokenizer, tokenizer.vocab_size())?;
            let form = Form { option, grammar, engine };
            // What is wrong with it is said before anything is written.
            drop(form.hook()?);
            Ok(Some(form))
        }

        /// What lets through the tokens that the form allows, for one text.
        pub fn hook(&self) -> Outcome<Hook> {
            match self.engine.compile(&self.grammar, &Prompt::default()) {
                Ok(matcher) => Ok(Box::new(matcher.into_logits_hook())),
                Err(e) => Err(Failure::new(format!("{}: {e}", self.option))),
            }
        }
    }

    /// A schema, or the file that it is in.
    fn schema(given: &str) -> Outcome<serde_json::Value> {
        let inline = given.trim_start().starts_with('{');
        let text = if inline { given.to_owned() } else { read_text("--json-schema", Path::new(given))? };
        serde_json::from_str(&text).map_err(|e| Failure::new(format!("--json-schema: no JSON: {e}")))
    }
}
