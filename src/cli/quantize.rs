//! `moeray quantize`: a model in another weight type, as GGUF.

use super::{
    args::QuantizeArgs,
    bench::named_mix,
    failure::{Failure, Outcome, say},
    interrupt,
    load::Bar,
    units,
};
use crate::{
    Error, Result,
    backend::{Progress, cpu},
    file::{self, Bytes, Checkpoint, Format, Metadata, Sink, Tensor, TensorSpec, Value, write_gguf},
    generate::CancelToken,
    model,
    quant::{
        DType, dequantize,
        mix::{Mix, Model},
        quantize_rows,
    },
};
use std::ops::Range;

/// Weights that are in memory as f32 at once.
const PIECE: usize = 4 << 20;

/// Runs the verb.
pub fn quantize(args: &QuantizeArgs, quiet: bool) -> Outcome {
    let mix = named_mix(&args.weight_type)?;
    if args.output.exists() && !args.force {
        return Err(Failure::new(format!("{} exists already", args.output.display())).hint("--force writes over it"));
    }
    let source = file::open(&args.input)?;
    let checkpoint = model::to_gguf(&source)?;
    if let Some(bad) = checkpoint.infos().iter().find(|i| i.content.is_err()) {
        let why = bad.content.as_ref().err().cloned().unwrap_or_default();
        return Err(Failure::new(format!("tensor {} {why}", bad.name)));
    }
    let specs = specs(&checkpoint, mix, source.format())?;
    if !args.allow_requantize {
        refuse_twice_rounded(&checkpoint, &specs)?;
    }
    let shorter = shorter_rows(&checkpoint, mix, &specs)?;
    let meta = metadata(&checkpoint, mix);
    let pieces = if args.experts_together { together(&specs)? } else { whole(&specs) };
    // A model that cannot be run here may be quantised all the same; one that can must stay so.
    let runs = source.format() == Format::SafeTensors || model::readable(&checkpoint).is_ok();
    if runs {
        model::readable(&planned(&checkpoint, &meta, &pieces)?)?;
    }
    let total: u64 = checkpoint.tensors().map(|(_, t)| t.byte_len() as u64).sum();
    // Each is let go of when it is written: some are made from what the file holds, and nobody else keeps them.
    let mut tensors: Vec<Option<Tensor>> = checkpoint.into_tensors().into_iter().map(|(_, t)| Some(t)).collect();
    let mut left = vec![0; tensors.len()];
    pieces.iter().for_each(|p| left[p.source] += 1);
    let mut job = Job { cancel: CancelToken::new(), bar: Bar::new(quiet), done: 0, total, threads: threads() };
    let guard = interrupt::Guard::new(&job.cancel);
    let specs: Vec<TensorSpec> = pieces.iter().map(|p| p.spec.clone()).collect();
    write_gguf(&args.output, &meta, &specs, &mut |i, sink| {
        let p = &pieces[i];
        let tensor = tensors[p.source].as_ref();
        let tensor = tensor.ok_or_else(|| Error::Invalid(format!("tensor `{}` is asked for twice", p.spec.name)))?;
        job.rows(&p.spec.name, tensor, p.rows(), p.spec.dtype, sink)?;
        left[p.source] -= 1;
        if left[p.source] == 0 {
            tensors[p.source] = None;
        }
        Ok(())
    })?;
    drop(guard);
    drop(job);
    // What lies on the disk is what was planned: the head is read again.
    let written = file::open(&args.output)?;
    if !specs.iter().all(|s| written.info(&s.name).is_some_and(|t| t.content.is_ok() && t.shape == s.shape)) {
        return Err(Failure::new(format!("{} does not hold what was written to it", args.output.display())));
    }
    if !quiet {
        summary(&args.output.display().to_string(), &specs, total);
        shorter.iter().for_each(|line| say(format_args!("{line}")));
    }
    Ok(())
}

fn threads() -> usize {
    cpu::pool::default_threads()
}

/// Names, types and shapes of what will be written.
fn specs(ckpt: &Checkpoint, mix: Mix, from: Format) -> Outcome<Vec<TensorSpec>> {
    let about = about(ckpt)?;
    let spec = |(name, t): (&str, &Tensor)| {
        let kept = if from == Format::Gguf { t.dtype() } else { DType::F32 };
        let dtype = mix.choose(&about, name, t.shape()).unwrap_or(kept);
        TensorSpec { name: name.into(), dtype, shape: t.shape().to_vec() }
    };
    Ok(ckpt.tensors().map(spec).collect())
}

/// A tensor of the file that is written: rows of one that is read.
struct Piece {
    /// The number of the tensor that is read.
    source: usize,
    /// Its first row.
    first: usize,
    spec: TensorSpec,
}

impl Piece {
    /// The rows that are read.
    fn rows(&self) -> Range<usize> {
        let rows = self.spec.shape.split_last().map_or(0, |(_, lead)| lead.iter().product::<usize>());
        self.first..self.first + rows
    }
}

/// Every tensor as it is.
fn whole(specs: &[TensorSpec]) -> Vec<Piece> {
    specs.iter().cloned().enumerate().map(|(source, spec)| Piece { source, first: 0, spec }).collect()
}

/// The matrices of experts that files may have a tensor an expert of, and the names of these.
const OF_EXPERTS: [(&str, &str); 3] =
    [("ffn_gate_exps.weight", "ffn_gate"), ("ffn_up_exps.weight", "ffn_up"), ("ffn_down_exps.weight", "ffn_down")];

/// The matrices of each expert side by side, in the place of the layer's first; the others as they are.
fn together(specs: &[TensorSpec]) -> Outcome<Vec<Piece>> {
    let role = |s: &TensorSpec| {
        let of = |(ending, name): &(&str, &'static str)| Some((s.name.strip_suffix(*ending)?.to_owned(), *name));
        OF_EXPERTS.iter().find_map(of).filter(|_| s.shape.len() == 3)
    };
    let mut done: Vec<String> = vec![];
    let mut pieces = vec![];
    for (source, spec) in specs.iter().enumerate() {
        let Some((layer, _)) = role(spec) else {
            pieces.push(Piece { source, first: 0, spec: spec.clone() });
            continue;
        };
        if done.contains(&layer) {
            continue;
        }
        let own = specs.iter().enumerate().filter_map(|(i, s)| Some((i, s, role(s)?)));
        let mut own: Vec<_> =
            own.filter(|(_, _, (of, _))| *of == layer).map(|(i, s, (_, name))| (i, s, name)).collect();
        own.sort_by_key(|(_, _, name)| OF_EXPERTS.iter().position(|r| r.1 == *name));
        for expert in 0..spec.shape[0] {
            for (i, s, name) in own.iter().filter(|(_, s, _)| expert < s.shape[0]) {
                let name = format!("{layer}{name}.{expert}.weight");
                let spec = TensorSpec { name, dtype: s.dtype, shape: s.shape[1..].to_vec() };
                pieces.push(Piece { source: *i, first: expert * s.shape[1], spec });
            }
        }
        done.push(layer);
    }
    if done.is_empty() {
        return Err(Failure::new(
            "--experts-together: the model has no matrices of experts that could be laid side by side",
        ));
    }
    Ok(pieces)
}

/// Weights that are quantised already lose precision a second time in another format, and no file tells that afterwards.
fn refuse_twice_rounded(ckpt: &Checkpoint, specs: &[TensorSpec]) -> Outcome {
    let rounded = |(spec, (_, t)): (&TensorSpec, (&str, &Tensor))| {
        let again = !t.dtype().is_float() && !spec.dtype.is_float() && t.dtype() != spec.dtype;
        again.then(|| (spec.name.clone(), t.dtype(), spec.dtype))
    };
    let all: Vec<_> = specs.iter().zip(ckpt.tensors()).filter_map(rounded).collect();
    let Some((name, from, to)) = all.first() else { return Ok(()) };
    let what = format!(
        "{} tensors are quantised already, such as {name}: from {from} to {to} they are rounded twice",
        all.len()
    );
    Err(Failure::new(what).hint("take the model's F16 or BF16 file, or say --allow-requantize"))
}

/// Which tensors do not get the format that the mix has for them, and why: a line for each kind.
fn shorter_rows(ckpt: &Checkpoint, mix: Mix, specs: &[TensorSpec]) -> Outcome<Vec<String>> {
    let about = about(ckpt)?;
    let mut kinds: Vec<((DType, DType, usize), usize)> = vec![];
    for spec in specs {
        let (Some(cols), Some(wanted)) = (spec.shape.last(), mix.wanted(&about, &spec.name, &spec.shape)) else {
            continue;
        };
        if wanted == spec.dtype {
            continue;
        }
        let kind = (wanted, spec.dtype, *cols);
        match kinds.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, n)) => *n += 1,
            None => kinds.push((kind, 1)),
        }
    }
    let line = |((wanted, got, cols), n): &((DType, DType, usize), usize)| {
        let block = wanted.layout().block;
        format!(
            "{n} tensors are {got} instead of {wanted}: rows of {cols} weights are no whole number of its blocks of {block}"
        )
    };
    Ok(kinds.iter().map(line).collect())
}

/// The file that will be written, with the tensors that stay as they are, and nothing in those that are still to be made.
fn planned(ckpt: &Checkpoint, meta: &Metadata, pieces: &[Piece]) -> Outcome<Checkpoint> {
    let read: Vec<&Tensor> = ckpt.tensors().map(|(_, t)| t).collect();
    let tensor = |Piece { source, spec, .. }: &Piece| -> Result<(String, Tensor)> {
        let t = read[*source];
        let impossible = || Error::Invalid(format!("tensor `{}` {:?} cannot be {}", spec.name, spec.shape, spec.dtype));
        let t = match spec.dtype == t.dtype() && spec.shape == t.shape() {
            true => t.clone(),
            false => {
                let bytes = Bytes::from_fn(spec.byte_len().ok_or_else(impossible)?, Vec::new);
                Tensor::new(spec.dtype, spec.shape.clone(), vec![bytes])?
            }
        };
        Ok((spec.name.clone(), t))
    };
    let tensors = pieces.iter().map(tensor).collect::<Result<Vec<_>>>()?;
    Ok(Checkpoint::from_parts(meta.clone(), tensors)?)
}

/// What the mixes' rules ask about the model.
fn about(ckpt: &Checkpoint) -> Outcome<Model> {
    let meta = ckpt.meta();
    let arch = meta.str("general.architecture").ok_or_else(|| Failure::new("the file names no architecture"))?;
    let number = |key: &str| meta.u64(&format!("{arch}.{key}")).map(|n| n as usize);
    let heads = number("attention.head_count").unwrap_or(1).max(1);
    let kv_heads = number("attention.head_count_kv").unwrap_or(heads).max(1);
    Ok(Model {
        layers: number("block_count").ok_or_else(|| Failure::new(format!("the file has no {arch}.block_count")))?,
        experts: number("expert_count").unwrap_or(0),
        heads_per_kv: heads / kv_heads,
        tied: ckpt.info("output.weight").is_none(),
    })
}

fn metadata(ckpt: &Checkpoint, mix: Mix) -> Metadata {
    let mut meta = ckpt.meta().clone();
    meta.set("general.file_type", Value::U32(mix.file_type()));
    meta.set("general.quantization_version", Value::U32(2));
    meta
}

/// The work under way.
struct Job {
    cancel: CancelToken,
    bar: Bar,
    done: u64,
    total: u64,
    threads: usize,
}

impl Job {
    /// Writes rows of a tensor as `dtype`, some at a time.
    fn rows(&mut self, name: &str, t: &Tensor, all: Range<usize>, dtype: DType, sink: &mut Sink<'_>) -> Result<()> {
        let each = (PIECE / t.cols().max(1)).max(1);
        let mut floats = Vec::new();
        for first in all.clone().step_by(each) {
            self.cancel.check()?;
            let rows = first..(first + each).min(all.end);
            let n = rows.len();
            if t.dtype() == dtype {
                rows.into_iter().try_for_each(|r| sink.write(t.row(r)))?;
            } else {
                floats.resize(n * t.cols(), 0.0);
                for (r, row) in rows.zip(floats.chunks_exact_mut(t.cols())) {
                    dequantize(t.dtype(), t.row(r), row)?;
                }
                let blocks = quantize_rows(dtype, n, t.cols(), &floats, self.threads);
                sink.write(&blocks.map_err(|e| named(name, e))?)?;
            }
            self.done += (n * t.row_bytes()) as u64;
            self.bar.show(Progress { phase: "quantizing", done: self.done, total: self.total });
        }
        Ok(())
    }
}

/// An error of numbers, with the tensor that they are of.
fn named(tensor: &str, e: Error) -> Error {
    match e {
        Error::Model(what) => Error::Model(format!("{tensor}: {what}")),
        Error::Invalid(what) => Error::Invalid(format!("{tensor}: {what}")),
        other => other,
    }
}

fn summary(output: &str, specs: &[TensorSpec], before: u64) {
    let after: usize = specs.iter().filter_map(TensorSpec::byte_len).sum();
    let weights: usize = specs.iter().map(|s| s.shape.iter().product::<usize>()).sum();
    say(format_args!(
        "{output}: {} tensors, {} from {}, {:.2} bits a weight",
        specs.len(),
        units::bytes(after as u64),
        units::bytes(before),
        8.0 * after as f64 / weights.max(1) as f64
    ));
}
