//! `moeray logits`: numbers for people who compare engines.

use super::{
    args::LogitsArgs,
    failure::{Failure, Outcome},
    load,
    output::read_text,
    tensors::{Entry, Writer},
};
use crate::session::{Model, Session};
use std::path::Path;

/// Logits of at most this many bytes are asked for at once.
const PIECE_BYTES: usize = 64 << 20;

/// How many tokens' logits to ask for at once.
pub fn piece(model: &Model, chunk: usize) -> usize {
    (PIECE_BYTES / (model.vocab().max(1) * 4)).clamp(1, chunk)
}

/// Runs the verb.
pub fn logits(args: &LogitsArgs, quiet: bool) -> Outcome {
    let model = load::load(args.model.path(), &args.place, args.router, quiet)?;
    let ids = ids(args, &model)?;
    let mut session = load::session(&model, ids.len(), &args.context)?;
    let step = piece(&model, (args.context.chunk as usize).min(ids.len()));
    // The first piece shows the shapes of what the model traces; the file's header needs them.
    let mut writer: Option<Writer> = None;
    let mut traces: Vec<Trace> = Vec::new();
    for part in ids.chunks(step) {
        let rows = session.all_logits(part)?.to_vec();
        collect(&session, &mut traces)?;
        if args.router && traces.is_empty() {
            return Err(Failure::new("--router: this model has no MoE layer, so nothing is routed"));
        }
        let w = match &mut writer {
            Some(w) => w,
            None => writer.insert(start(args, &ids, model.vocab(), &traces)?),
        };
        w.f32(&rows)?;
    }
    let mut writer = writer.ok_or_else(|| Failure::new("no tokens"))?;
    writer.u32(&ids)?;
    for t in &traces {
        writer.f32(&t.f32)?;
        writer.u32(&t.u32)?;
    }
    writer.finish()
}

fn ids(args: &LogitsArgs, model: &Model) -> Outcome<Vec<u32>> {
    let text = match (&args.prompt, &args.file) {
        (Some(p), _) if p == "-" => read_text(Path::new("-"))?,
        (Some(p), _) => p.clone(),
        (None, Some(f)) => read_text(f)?,
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

/// Appends the last step's traced outputs.
fn collect(session: &Session, traces: &mut Vec<Trace>) -> Outcome {
    for (name, o) in session.outputs().filter(|(name, _)| name.starts_with("router_")) {
        let at = match traces.iter().position(|t| t.name == name) {
            Some(at) => at,
            None => {
                traces.push(Trace { name: name.into(), cols: o.cols, f32: vec![], u32: vec![] });
                traces.len() - 1
            }
        };
        traces[at].f32.extend_from_slice(&o.f32);
        traces[at].u32.extend_from_slice(&o.u32);
    }
    Ok(())
}

fn start(args: &LogitsArgs, ids: &[u32], vocab: usize, traces: &[Trace]) -> Outcome<Writer> {
    let t = ids.len();
    let mut entries = vec![Entry::f32("logits", &[t, vocab]), Entry::u32("ids", &[t])];
    entries.extend(traces.iter().map(|trace| match trace.u32.is_empty() {
        true => Entry::f32(&trace.name, &[t, trace.cols]),
        false => Entry::u32(&trace.name, &[t, trace.cols]),
    }));
    let metadata = [("model", load::name(args.model.path())), ("producer", format!("moeray {}", env!("CARGO_PKG_VERSION")))];
    Writer::create(&args.output, &metadata, &entries)
}
