//! `moeray logits`: numbers for people who compare engines.

use super::{
    args::{ContextArgs, LogitsArgs},
    failure::{Failure, Outcome},
    load,
    output::{check_place, read_text, written},
    tensors::{Entry, Writer},
};
use crate::{
    backend::Output,
    model,
    quant::KvType,
    session::{Model, Session, SessionOptions},
};
use std::path::Path;

/// Logits of at most this many bytes are in memory at once.
const PIECE_BYTES: usize = 64 << 20;

/// A session for asking for the logits of all positions: its micro-batches are small where the vocabulary is large.
pub fn session(model: &Model, ctx: usize, args: &ContextArgs, kv: KvType) -> Outcome<Session> {
    let most = (PIECE_BYTES / (model.vocab().max(1) * 4)).max(1);
    let options = SessionOptions { ctx, ubatch: most.min(args.ubatch_size as usize), kv };
    Ok(Session::new(model, options)?)
}

/// Feeds `ids` and hands each micro-batch's outputs to `each`, by name.
pub fn feed(session: &mut Session, ids: &[u32], mut each: impl FnMut(&[(String, &Output)]) -> Outcome) -> Outcome {
    let names: Vec<String> = session.output_names().map(str::to_owned).collect();
    let mut failed = Ok(());
    let fed = session.feed_all(ids, |_, outputs| {
        let named: Vec<(String, &Output)> = names.iter().cloned().zip(outputs).collect();
        failed = each(&named);
        if failed.is_err() { Err(crate::Error::Cancelled) } else { Ok(()) }
    });
    failed?;
    Ok(fed?)
}

/// The rows of logits among the outputs.
pub fn logits_of<'a>(outputs: &[(String, &'a Output)]) -> Outcome<&'a Output> {
    let found = outputs.iter().find(|(name, _)| name == "logits");
    found.map(|(_, o)| *o).ok_or_else(|| Failure::new("the model gives no logits"))
}

/// Runs the verb.
pub fn logits(args: &LogitsArgs, quiet: bool) -> Outcome {
    check_place("-o", &args.output)?;
    let before = args.output.is_file();
    let build = model::Options { trace_router: args.router };
    let room = load::Room::new(None, &args.context);
    let model = load::load(args.model.path(), &args.lora, &args.place, room, build, quiet)?;
    let ids = ids(args, &model)?;
    let most = load::trained_context(&model);
    if ids.len() > most {
        let what = format!("the prompt has {} tokens, and the model was made for a context of {most}", ids.len());
        return Err(Failure::new(what).hint("beyond it the logits mean nothing: give a shorter prompt"));
    }
    // Who compares engines wants to see what this one computes, not how a cache rounds.
    let mut session = session(&model, ids.len(), &args.context, load::kv_or(&args.context, KvType::F32))?;
    // The first micro-batch shows the shapes of what the model traces; the file's header needs them.
    let mut writer: Option<Writer> = None;
    let mut traces: Vec<Trace> = Vec::new();
    feed(&mut session, &ids, |outputs| {
        collect(outputs, &mut traces);
        if args.router && traces.is_empty() {
            return Err(Failure::new("--router: this model has no MoE layer, so nothing is routed"));
        }
        let w = match &mut writer {
            Some(w) => w,
            None => writer.insert(start(args, &ids, model.vocab(), &traces)?),
        };
        w.f32(&logits_of(outputs)?.f32)
    })?;
    let mut writer = writer.ok_or_else(|| Failure::new("the model gave no outputs"))?;
    writer.u32(&ids)?;
    for t in &traces {
        writer.f32(&t.f32)?;
        writer.u32(&t.u32)?;
    }
    writer.finish()?;
    written(&args.output, before, quiet);
    Ok(())
}

fn ids(args: &LogitsArgs, model: &Model) -> Outcome<Vec<u32>> {
    let text = match (&args.prompt, &args.file) {
        (Some(p), _) if p == "-" => read_text("-p", Path::new("-"))?,
        (Some(p), _) => p.clone(),
        (None, Some(f)) => read_text("-f", f)?,
        (None, None) => {
            let vocab = model.vocab();
            return match args.ids.iter().find(|id| **id as usize >= vocab) {
                Some(id) => Err(Failure::new(format!("--ids: token {id} is beyond the vocabulary of {vocab}"))),
                None => Ok(args.ids.clone()),
            };
        }
    };
    let ids = load::encode(load::tokenizer(model)?, &text, args.raw)?;
    if ids.is_empty() {
        return Err(Failure::new("the prompt is empty: there is no position to compute logits of"));
    }
    Ok(ids)
}

/// A traced output of the graph over all tokens so far: one of the two is filled.
struct Trace {
    name: String,
    cols: usize,
    f32: Vec<f32>,
    u32: Vec<u32>,
}

/// Appends a micro-batch's traced outputs.
fn collect(outputs: &[(String, &Output)], traces: &mut Vec<Trace>) {
    for (name, o) in outputs.iter().filter(|(name, _)| name.starts_with("router_")) {
        let at = traces.iter().position(|t| t.name == *name).unwrap_or_else(|| {
            traces.push(Trace { name: name.clone(), cols: o.cols, f32: vec![], u32: vec![] });
            traces.len() - 1
        });
        traces[at].f32.extend_from_slice(&o.f32);
        traces[at].u32.extend_from_slice(&o.u32);
    }
}

fn start(args: &LogitsArgs, ids: &[u32], vocab: usize, traces: &[Trace]) -> Outcome<Writer> {
    let t = ids.len();
    let mut entries = vec![Entry::f32("logits", &[t, vocab]), Entry::u32("ids", &[t])];
    entries.extend(traces.iter().map(|trace| match trace.u32.is_empty() {
        true => Entry::f32(&trace.name, &[t, trace.cols]),
        false => Entry::u32(&trace.name, &[t, trace.cols]),
    }));
    let metadata =
        [("model", load::name(args.model.path())), ("producer", format!("moeray {}", env!("CARGO_PKG_VERSION")))];
    Writer::create(&args.output, &metadata, &entries)
}
