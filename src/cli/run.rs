//! `moeray run`: continues prompts.

use super::{
    args::RunArgs,
    failure::{Failure, Outcome},
    load,
    output::read_text,
    routing::Collected,
    stream::{self, Answer},
};
use crate::generate::{FinishReason, GenerateOptions};
use crate::model;
use serde_json::json;
use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

/// Runs the verb.
pub fn run(args: &RunArgs, quiet: bool) -> Outcome {
    let prompts = prompts(args)?;
    let options = model::Options { trace_router: args.routing.wanted() };
    let model = load::load(args.model.path(), &args.place, options, quiet)?;
    let tokenizer = load::tokenizer(&model)?;
    let ids = prompts.iter().map(|p| load::encode(tokenizer, p, args.raw)).collect::<Outcome<Vec<_>>>()?;
    let needed = ids.iter().map(Vec::len).max().unwrap_or(0).saturating_add(args.tokens);
    let ctx = args.ctx.map_or_else(|| needed.clamp(1, load::trained_context(&model)), |c| c as usize);
    // All of them before the first text appears.
    for (prompt, ids) in prompts.iter().zip(&ids) {
        check(prompt, ids.len(), ctx)?;
    }
    let mut session = load::session(&model, ctx, &args.context)?;
    let mut collected = Collected::start(&args.routing, &mut session)?;
    let sampler = load::sampler(&args.sample);
    let note = format!(" | seed {}", sampler.seed);
    let mut out = io::stdout().lock();
    for (prompt, ids) in prompts.iter().zip(&ids) {
        session.truncate(0);
        let options = GenerateOptions {
            max_tokens: args.tokens,
            stop: load::stops(&args.stop),
            ignore_eos: args.stop.ignore_eos,
            sampler,
            history: Vec::new(),
        };
        let echo = if args.no_echo { "" } else { prompt };
        let shown: Option<&mut dyn Write> = if args.json { None } else { Some(&mut out) };
        let answer = stream::stream(&mut session, Some(tokenizer), ids, echo, options, shown)?;
        if args.json {
            let mut object = as_json(prompt, ids, &answer, &model.describe(), sampler.seed);
            if let Some(trace) = session.routing().filter(|_| args.routing.show_routing.is_some()) {
                object["routing"] = trace.to_json();
            }
            writeln!(out, "{object}")?;
        } else if !answer.text.ends_with('\n') {
            writeln!(out)?;
        }
        collected.add(&session, tokenizer, &[ids, &answer.sampled[..]].concat(), (!args.json).then_some(&mut out))?;
        out.flush()?;
        if !quiet {
            stream::closing(&answer, &model, &session, &note);
        }
        if answer.reason == FinishReason::Cancelled {
            return Err(Failure::Interrupted);
        }
    }
    collected.write(&format!("{} ({})", model.definition().title, load::short_name(args.model.path())))
}

fn check(prompt: &str, tokens: usize, ctx: usize) -> Outcome {
    if tokens == 0 {
        let text = format!("the prompt {prompt:?} is empty: a model needs at least one token to start from");
        return Err(Failure::new(text));
    }
    if tokens > ctx {
        return Err(crate::Error::ContextFull { needed: tokens, capacity: ctx }.into());
    }
    Ok(())
}

/// The prompts in the order: -p, -f; standard input where it is piped and nothing else is given.
fn prompts(args: &RunArgs) -> Outcome<Vec<String>> {
    let mut prompts = Vec::new();
    for p in &args.prompt {
        prompts.push(match p.as_str() {
            "-" => read_text(Path::new("-"))?,
            p if args.stop.escape => load::unescape(p),
            p => p.to_string(),
        });
    }
    for f in &args.file {
        prompts.push(read_text(f)?);
    }
    if prompts.is_empty() {
        if io::stdin().is_terminal() {
            return Err(Failure::new("no prompt").hint("give one with -p \"text\", -f FILE, or through a pipe"));
        }
        prompts.push(read_text(Path::new("-"))?);
    }
    Ok(prompts)
}

fn as_json(prompt: &str, prompt_ids: &[u32], answer: &Answer, backend: &str, seed: u64) -> serde_json::Value {
    let s = &answer.stats;
    json!({
        "prompt": prompt,
        "prompt_ids": prompt_ids,
        "text": answer.text,
        "ids": answer.ids,
        "finish_reason": answer.reason.name(),
        "seed": seed,
        "backend": backend,
        "prompt_tokens": s.prompt_tokens,
        "prompt_ts": s.prompt_speed(),
        "generated_tokens": s.generated_tokens,
        "generation_ts": s.generation_speed(),
        "time_to_first_token_ms": s.time_to_first_token.as_secs_f64() * 1e3,
    })
}
