//! `--show-routing` and its files: which experts the tokens took.

use super::{
    args::{RoutingArgs, ShowRouting},
    failure::Outcome,
    output::NewFile,
};
use crate::{
    routing::{Load, Statistics, Trace},
    session::Session,
    tokenizer::Tokenizer,
};
use serde_json::{Value as Json, json};
use std::{
    io::{self, Write},
    path::Path,
};

/// What the prompts of one call did.
pub struct Collected<'a> {
    args: &'a RoutingArgs,
    /// One object a prompt, for the JSON file.
    prompts: Vec<Json>,
    /// Of all prompts together, for the pictures.
    statistics: Statistics,
}

impl<'a> Collected<'a> {
    /// Asks the session to record where anything was asked for.
    pub fn start(args: &'a RoutingArgs, session: &mut Session) -> Outcome<Self> {
        if args.wanted() {
            session.record_routing()?;
        }
        Ok(Collected { args, prompts: vec![], statistics: Statistics::default() })
    }

    /// Takes over what the session recorded for a prompt and its answer; `ids` are their tokens. The last generated token
    /// was not fed, so it has no routing.
    pub fn add(
        &mut self,
        session: &Session,
        tokenizer: &Tokenizer,
        ids: &[u32],
        out: Option<&mut impl Write>,
    ) -> Outcome {
        let Some(trace) = session.routing() else { return Ok(()) };
        if let (Some(out), Some(what)) = (out, self.args.show_routing) {
            summary(out, &trace.loads())?;
            match what {
                ShowRouting::Summary => {}
                ShowRouting::Tokens => tokens(out, trace, tokenizer, ids)?,
            }
        }
        if self.args.routing_json.is_some() {
            let mut object = trace.to_json();
            let text = |id: &u32| json!({ "id": id, "text": tokenizer.token_text(*id) });
            object["ids"] = ids.iter().take(trace.tokens()).map(text).collect();
            self.prompts.push(object);
        }
        self.statistics.add(trace);
        Ok(())
    }

    /// Writes the files; `model` names the model in titles.
    pub fn write(&self, model: &str) -> Outcome {
        if let Some(path) = &self.args.routing_json {
            save(path, &format!("{}\n", json!({ "prompts": self.prompts })))?;
        }
        if let Some(path) = &self.args.routing_svg {
            let title = format!("{model}: experts\u{2019} load over {} tokens", self.statistics.tokens());
            save(path, &Load::heat_map(&self.statistics.loads(), &title))?;
        }
        if let Some(path) = &self.args.routing_html {
            save(path, &self.statistics.html(&format!("{model}: routing")))?;
        }
        Ok(())
    }
}

fn save(path: &Path, text: &str) -> Outcome {
    let mut file = NewFile::create(path)?;
    file.write_all(text.as_bytes()).map_err(|e| file.failure(&e))?;
    file.finish()
}

fn tokens(out: &mut impl Write, trace: &Trace, tokenizer: &Tokenizer, ids: &[u32]) -> io::Result<()> {
    writeln!(out, "\nrouting: expert weight, by token and layer")?;
    let mut text = tokenizer.stream();
    for (t, id) in ids.iter().enumerate().take(trace.tokens()) {
        // A special token has no text of its own, and an unfinished character comes with the token that ends it.
        let shown = Some(text.push(*id)).filter(|s| !s.is_empty()).or_else(|| tokenizer.token_text(*id));
        writeln!(out, "token {t} {:?} ({id})", shown.unwrap_or_default())?;
        for layer in trace.layers() {
            write!(out, "  layer {:>2} ", layer.layer)?;
            for (expert, weight) in layer.token(t) {
                write!(out, " {expert:>4} {weight:.3}")?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}

fn summary(out: &mut impl Write, loads: &[Load]) -> io::Result<()> {
    writeln!(out, "\nload of the experts (entropy of their shares in bits, and as a part of the greatest possible)")?;
    writeln!(out, "  layer  experts  entropy  evenness  max/mean  unused  busiest")?;
    for l in loads {
        writeln!(
            out,
            "  {:>5}  {:>7}  {:>7.2}  {:>7.0}%  {:>8.2}  {:>6}  {:>7}",
            l.layer,
            l.counts.len(),
            l.entropy(),
            100.0 * l.evenness(),
            l.max_over_mean(),
            l.unused(),
            l.busiest(1).first().copied().unwrap_or(0),
        )?;
    }
    Ok(())
}
