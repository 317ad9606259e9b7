//! `moeray perplexity`: how well a model predicts a text, and how far it is from another.

use super::{
    args::{LoraArgs, PerplexityArgs},
    failure::{Failure, Outcome},
    load::{self, Bar},
    logits::{self, logits_of},
    output::{check_place, read_text, written},
    score::{Divergence, Estimate, Perplexity},
    tensors::{Entry, Reader, Writer},
};
use crate::{
    backend::Progress,
    model,
    session::{Model, Session},
    tokenizer::EncodeOptions,
};
use serde_json::{Value, json};
use std::io::{self, Write};

/// Windows of tokens, the first of each already replaced where the tokenizer begins texts with a token of its own.
struct Windows {
    ctx: usize,
    tokens: Vec<u32>,
}

impl Windows {
    /// Positions whose prediction is scored: the second half, whose tokens have a half window of context at least.
    fn scored(&self) -> std::ops::Range<usize> {
        scored(self.ctx)
    }

    fn iter(&self) -> impl ExactSizeIterator<Item = &[u32]> {
        self.tokens.chunks_exact(self.ctx)
    }
}

fn scored(ctx: usize) -> std::ops::Range<usize> {
    ctx / 2..ctx - 1
}

/// Where the other distribution comes from.
enum Base {
    None,
    Saved(Reader),
    Model(Box<Session>),
}

/// Runs the verb.
pub fn perplexity(args: &PerplexityArgs, quiet: bool) -> Outcome {
    let before = args.save_logits.as_ref().is_some_and(|f| f.is_file());
    args.save_logits.as_ref().map_or(Ok(()), |f| check_place("--save-logits", f))?;
    let room = load::Room::new(Some(args.ctx), &args.context);
    let model = load::load(args.model.path(), &args.lora, &args.place, room, model::Options::default(), quiet)?;
    let (vocab, kv) = (model.vocab(), load::kv(&args.context));
    let (windows, mut base) = match &args.kl_base {
        Some(path) => {
            let mut reader = Reader::open(path)?;
            (saved(&mut reader, vocab, args)?, Base::Saved(reader))
        }
        None => (windows(args, &model)?, Base::None),
    };
    if let Some(path) = &args.base_model {
        let other = load::load(Some(path), &LoraArgs::default(), &args.place, room, model::Options::default(), quiet)?;
        if other.vocab() != vocab {
            let (a, b) = (vocab, other.vocab());
            return Err(Failure::new(format!("the models have vocabularies of {a} and {b}: they cannot be compared")));
        }
        base = Base::Model(Box::new(logits::session(&other, windows.ctx, &args.context, kv)?));
    }
    let mut writer = args.save_logits.as_ref().map(|path| start(path, &windows, vocab)).transpose()?;
    let mut session = logits::session(&model, windows.ctx, &args.context, kv)?;
    let mut scores = Scores::default();
    let mut bar = Bar::new(quiet);
    let total = windows.iter().len() as u64;
    for (i, window) in windows.iter().enumerate() {
        let first = windows.scored().start;
        let reference = base_rows(&mut base, i, window, vocab)?;
        let mut at = 0;
        rows(&mut session, window, |row| {
            scores.model.add(row, window[first + at + 1]);
            if let Some(reference) = &reference {
                let other = &reference[at * vocab..(at + 1) * vocab];
                scores.base.add(other, window[first + at + 1]);
                scores.divergence.add(other, row);
            }
            at += 1;
            writer.as_mut().map_or(Ok(()), |w| w.f32(row))
        })?;
        bar.show(Progress { phase: "scoring", done: i as u64 + 1, total });
    }
    drop(bar);
    if let (Some(w), Some(path)) = (writer, &args.save_logits) {
        w.finish()?;
        written(path, before, quiet);
    }
    scores.print(args.json, &windows)
}

/// The text of `-f` in windows.
fn windows(args: &PerplexityArgs, model: &Model) -> Outcome<Windows> {
    let file = args.file.as_ref().ok_or_else(|| Failure::new("no text: name one with -f"))?;
    let tokenizer = load::tokenizer(model)?;
    let text = read_text("-f", file)?;
    let mut tokens = tokenizer.encode(&text, EncodeOptions { add_bos: true, parse_special: false })?;
    let ctx = args.ctx as usize;
    let n = (tokens.len() / ctx).min(args.windows.map_or(usize::MAX, |w| w as usize));
    if n == 0 {
        let (name, have) = (file.display(), tokens.len());
        return Err(Failure::new(format!("{name} has {have} tokens, less than a window of {ctx}"))
            .hint("take a longer text, or a smaller --ctx"));
    }
    tokens.truncate(n * ctx);
    if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos()) {
        tokens.iter_mut().step_by(ctx).for_each(|t| *t = bos);
    }
    Ok(Windows { ctx, tokens })
}

/// The windows of a file of saved logits.
fn saved(reader: &mut Reader, vocab: usize, args: &PerplexityArgs) -> Outcome<Windows> {
    let shape = reader.shape("tokens", "U32")?;
    let logits = reader.shape("logits", "F32")?;
    let (&[n, ctx], &[windows, positions, theirs]) = (&shape[..], &logits[..]) else {
        return Err(reader.bad("tokens and logits have other dimensions than --save-logits writes"));
    };
    if ctx < 4 || n == 0 || (windows, positions) != (n, scored(ctx).len()) {
        return Err(reader.bad(&format!("logits {logits:?} do not fit tokens {shape:?}")));
    }
    if theirs != vocab {
        return Err(reader.bad(&format!("its vocabulary has {theirs} tokens, and the model's {vocab}")));
    }
    let n = n.min(args.windows.map_or(usize::MAX, |w| w as usize));
    let mut tokens = vec![0u32; n * ctx];
    reader.read("tokens", 0, &mut tokens)?;
    Ok(Windows { ctx, tokens })
}

fn start(path: &std::path::Path, windows: &Windows, vocab: usize) -> Outcome<Writer> {
    let n = windows.iter().len();
    let entries = [Entry::u32("tokens", &[n, windows.ctx]), Entry::f32("logits", &[n, windows.scored().len(), vocab])];
    let metadata = [("producer", format!("moeray {}", env!("CARGO_PKG_VERSION")))];
    let mut writer = Writer::create(path, &metadata, &entries)?;
    writer.u32(&windows.tokens)?;
    Ok(writer)
}

/// The logits of a window's scored positions, row by row.
fn rows(session: &mut Session, window: &[u32], mut each: impl FnMut(&[f32]) -> Outcome) -> Outcome {
    let scored = scored(window.len());
    session.truncate(0);
    session.prefill(&window[..scored.start])?;
    logits::feed(session, &window[scored], |outputs| {
        let o = logits_of(outputs)?;
        o.f32.chunks_exact(o.cols.max(1)).try_for_each(&mut each)
    })
}

/// The base's logits of window `i`; `None` without a base.
fn base_rows(base: &mut Base, i: usize, window: &[u32], vocab: usize) -> Outcome<Option<Vec<f32>>> {
    let numbers = scored(window.len()).len() * vocab;
    Ok(match base {
        Base::None => None,
        Base::Saved(reader) => {
            let mut all = vec![0f32; numbers];
            reader.read("logits", i * numbers, &mut all)?;
            Some(all)
        }
        Base::Model(session) => {
            let mut all = Vec::with_capacity(numbers);
            rows(session, window, |row| {
                all.extend_from_slice(row);
                Ok(())
            })?;
            Some(all)
        }
    })
}

#[derive(Default)]
struct Scores {
    model: Perplexity,
    base: Perplexity,
    divergence: Divergence,
}

impl Scores {
    fn print(&self, as_json: bool, windows: &Windows) -> Outcome {
        let (own, base, kl) = (self.model.estimate(), self.base.estimate(), self.divergence.summary());
        let numbers = [own.mean, kl.map_or(0.0, |k| k.mean.mean)];
        if numbers.iter().any(|n| !n.is_finite()) {
            return Err(Failure::new("the logits are not finite: the weights or the computation are broken"));
        }
        let both = |e: Estimate| json!({"mean": e.mean, "error": e.error});
        let (count, tokens) = (windows.iter().len(), self.model.count());
        let mut out = io::stdout().lock();
        if as_json {
            let mut o = json!({"ctx": windows.ctx, "windows": count, "tokens_scored": tokens, "perplexity": both(own)});
            if let Some(k) = kl {
                o["base_perplexity"] = both(base);
                o["kl_divergence"] = json!({"mean": k.mean.mean, "error": k.mean.error, "median": k.median, "p99": k.p99,
                    "max": k.max});
                o["same_top"] = both(k.same_top);
            }
            writeln!(out, "{}", Value::to_string(&o))?;
            return Ok(());
        }
        writeln!(out, "perplexity       {:.4} ± {:.4}", own.mean, own.error)?;
        if let Some(k) = kl {
            writeln!(out, "base perplexity  {:.4} ± {:.4}", base.mean, base.error)?;
            writeln!(out, "KL divergence    {:.6} ± {:.6} nats", k.mean.mean, k.mean.error)?;
            writeln!(out, "  median         {:.6}", k.median)?;
            writeln!(out, "  99 %           {:.6}", k.p99)?;
            writeln!(out, "  largest        {:.6}", k.max)?;
            writeln!(out, "same top token   {:.2} ± {:.2} %", 100.0 * k.same_top.mean, 100.0 * k.same_top.error)?;
        }
        writeln!(out, "{tokens} tokens scored in {count} windows of {}", windows.ctx)?;
        Ok(())
    }
}
