//! The program's own words: its command line as clap has it, verbs that were misspelt, completions, and manual pages.

use super::{
    args::{Cli, CompletionsArgs, ManArgs},
    failure::{Failure, Outcome},
    known::distance,
};
use clap::{
    Command, CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};
use std::{
    ffi::OsString,
    io::{self, Write},
    path::Path,
};

/// The command line.
fn command() -> Command {
    Cli::command().mut_subcommand("logits", |logits| {
        logits.mut_arg("kv", |kv| kv.help("How keys and values are stored [default: f32]"))
    })
}

/// What a person said.
///
/// # Errors
/// clap's, with the verb that was meant where one was misspelt.
pub fn parsed(arguments: Vec<OsString>) -> Result<Cli, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(arguments).map_err(|e| with_meant_verb(e, &command))?;
    Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command))
}

/// The verb that is nearest to the wrong one, or the verbs that take a model where a model stands in its place.
fn with_meant_verb(mut e: clap::Error, command: &Command) -> clap::Error {
    if e.kind() != ErrorKind::InvalidSubcommand {
        return e;
    }
    let Some(ContextValue::String(said)) = e.get(ContextKind::InvalidSubcommand) else { return e };
    let said = said.clone();
    let is_model = said.to_lowercase().ends_with(".gguf") || said.contains('/') || Path::new(&said).exists();
    let meant: Vec<String> = if is_model {
        vec![format!("chat {said}"), format!("run {said}")]
    } else {
        let verbs = command.get_subcommands().filter(|c| !c.is_hide_set()).map(Command::get_name);
        let near = verbs.filter(|v| swapped(v, &said) || distance(v, &said) <= 1 + v.len() / 4);
        near.min_by_key(|v| distance(v, &said)).map(str::to_owned).into_iter().collect()
    };
    if !meant.is_empty() {
        e.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(meant));
    }
    e
}

/// Whether two words have the same letters in another order.
fn swapped(a: &str, b: &str) -> bool {
    let sorted = |s: &str| {
        let mut letters: Vec<char> = s.chars().collect();
        letters.sort_unstable();
        letters
    };
    sorted(a) == sorted(b)
}

/// Runs `moeray completions`.
pub fn completions(args: &CompletionsArgs) -> Outcome {
    // Into memory first: the crate would panic where standard output is closed.
    let mut text = vec![];
    clap_complete::generate(args.shell, &mut command(), "moeray", &mut text);
    Ok(io::stdout().lock().write_all(&text)?)
}

/// Runs `moeray man`.
pub fn man(args: &ManArgs) -> Outcome {
    let mut command = command();
    command.build();
    let page = match &args.verb {
        None => command,
        Some(verb) => command
            .find_subcommand(verb)
            .cloned()
            .ok_or_else(|| Failure::new(format!("there is no verb {verb}")).hint("moeray -h lists them"))?,
    };
    let mut text = vec![];
    clap_mangen::Man::new(page).render(&mut text)?;
    Ok(io::stdout().lock().write_all(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(words: &[&str]) -> String {
        let arguments = ["moeray"].iter().chain(words).map(OsString::from).collect();
        parsed(arguments).err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn verbs_that_were_meant() {
        command().debug_assert();
        for (wrong, meant) in [("rnu", "run"), ("chta", "chat"), ("bnech", "bench"), ("devcies", "devices")] {
            let text = said(&[wrong]);
            assert!(text.contains(&format!("'{meant}'")), "{wrong}: {text}");
        }
        assert!(said(&["model.gguf"]).contains("chat model.gguf"));
        let text = said(&["zzz"]);
        assert!(!text.contains("similar"), "{text}");
    }
}
