//! `moeray run`: continues prompts.

use super::{
    args::RunArgs,
    failure::{Failure, Outcome, say_dim},
    form::Form,
    load,
    output::{check_place, read_text},
    ranks,
    routing::Collected,
    stream::{self, Answer, Figures, Reading},
};
use crate::generate::{FinishReason, GenerateOptions};
use crate::model;
use serde_json::json;
use std::{
    io::{self, IsTerminal, Write},
    path::Path,
};

/// Runs the verb.
pub fn run(args: &RunArgs, verbose: bool, quiet: bool) -> Outcome {
    let prompts = prompts(args)?;
    check_files(args)?;
    let options = model::Options { trace_router: args.routing.wanted() };
    let room = load::Room::new(args.ctx, &args.context);
    let model = load::load(args.model.path(), &args.lora, &args.place, room, options, quiet)?;
    let tokenizer = load::tokenizer(&model)?;
    if !quiet && !args.raw && io::stderr().is_terminal() && tokenizer.chat_template_source().is_some() {
        say_dim("this model chats: `moeray chat` asks it a question, `run` continues a text");
    }
    let ids = prompts.iter().map(|p| load::encode(tokenizer, &p.text, args.raw)).collect::<Outcome<Vec<_>>>()?;
    let needed = ids.iter().map(Vec::len).max().unwrap_or(0).saturating_add(args.tokens);
    let ctx = args.ctx.map_or_else(|| needed.clamp(1, load::trained_context(&model)), |c| c as usize);
    // All of them before the first text appears.
    for (prompt, ids) in prompts.iter().zip(&ids) {
        check(prompt, ids.len(), ctx)?;
    }
    let form = Form::of(args, tokenizer)?;
    let mut session = load::session(&model, ctx, &args.context)?;
    let mut collected = Collected::start(&args.routing, &mut session)?;
    let sampler = load::sampler(&args.sample)?;
    let stop = load::stops(&args.stop)?;
    let seed = format!("seed {}", sampler.seed);
    let mut out = io::stdout().lock();
    for (prompt, ids) in prompts.iter().zip(&ids) {
        session.truncate(0);
        let options = GenerateOptions {
            max_tokens: args.tokens,
            stop: stop.clone(),
            ignore_eos: args.stop.ignore_eos,
            sampler,
            ..GenerateOptions::default()
        };
        let prompt = prompt.text.as_str();
        let echo = if args.no_echo { "" } else { prompt };
        let shown: Option<&mut dyn Write> = if args.json { None } else { Some(&mut out) };
        let reading = Reading::new(quiet);
        let hook = form.as_ref().map(Form::hook).transpose()?;
        let answer = stream::stream(&mut session, Some(tokenizer), ids, echo, options, hook, shown, reading)?;
        if args.json {
            let mut object = as_json(prompt, ids, &answer, &model.describe(), sampler.seed);
            if let Some(trace) = session.routing().filter(|_| args.routing.show_routing.is_some()) {
                object["routing"] = trace.to_json();
            }
            if let Some(ranks) = ranks::as_json() {
                object["ranks"] = ranks;
            }
            writeln!(out, "{object}")?;
        } else if !answer.text.ends_with('\n') {
            writeln!(out)?;
        }
        collected.add(&session, tokenizer, &[ids, &answer.sampled[..]].concat(), (!args.json).then_some(&mut out))?;
        out.flush()?;
        let figures = Figures { stats: answer.stats, reason: answer.reason };
        match (quiet, verbose) {
            (true, _) => {}
            (false, true) => stream::closing(&figures, &model, &session, &format!("{} | {seed}", ranks::closing())),
            (false, false) => say_dim(&format!("[{}]", figures.short(&seed))),
        }
        if answer.reason == FinishReason::Cancelled {
            return Err(Failure::Interrupted);
        }
    }
    collected.write(&format!("{} ({})", model.definition().title, load::short_name(args.model.path())))
}

/// Whether the files that are asked for can be written.
fn check_files(args: &RunArgs) -> Outcome {
    let files = [
        ("--routing-json", &args.routing.routing_json),
        ("--routing-svg", &args.routing.routing_svg),
        ("--routing-html", &args.routing.routing_html),
    ];
    files.iter().try_for_each(|(option, file)| file.as_ref().map_or(Ok(()), |f| check_place(option, f)))
}

/// A prompt, and the option that it came by.
struct Given {
    option: &'static str,
    text: String,
}

fn check(prompt: &Given, tokens: usize, ctx: usize) -> Outcome {
    let Given { option, text } = prompt;
    if tokens == 0 {
        let what = format!("{option}: the prompt {text:?} is empty: a model needs at least one token to start from");
        return Err(Failure::new(what));
    }
    if tokens > ctx {
        return Err(crate::Error::ContextFull { needed: tokens, capacity: ctx }.into());
    }
    Ok(())
}

/// The prompts in the order: -p, -f; standard input where it is piped and nothing else is given.
fn prompts(args: &RunArgs) -> Outcome<Vec<Given>> {
    let mut prompts = Vec::new();
    for p in &args.prompt {
        let text = match p.as_str() {
            "-" => read_text("-p", Path::new("-"))?,
            p if args.stop.escape => load::unescape(p),
            p => p.to_string(),
        };
        prompts.push(Given { option: "-p", text });
    }
    for f in &args.file {
        prompts.push(Given { option: "-f", text: read_text("-f", f)? });
    }
    if prompts.is_empty() {
        if io::stdin().is_terminal() {
            let model = args.model.path().map_or("MODEL".into(), |p| p.display().to_string());
            return Err(Failure::new("no prompt").hint(format!(
                "give one with -p \"text\", -f FILE, or through a pipe; to talk to the model: moeray chat {model}"
            )));
        }
        let text = read_text("standard input", Path::new("-"))?;
        prompts.push(Given { option: "standard input", text });
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
