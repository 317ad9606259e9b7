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
    // A model that cannot be run here may be quantised all the same; one that can must stay so.
    let runs = source.format() == Format::SafeTensors || model::readable(&checkpoint).is_ok();
    if runs {
        model::readable(&planned(&checkpoint, &meta, &specs)?)?;
    }
    let total: u64 = checkpoint.tensors().map(|(_, t)| t.byte_len() as u64).sum();
    // Each is let go of when it is written: some are made from what the file holds, and nobody else keeps them.
    let mut tensors: Vec<Option<Tensor>> = checkpoint.into_tensors().into_iter().map(|(_, t)| Some(t)).collect();
    let mut job = Job { cancel: CancelToken::new(), bar: Bar::new(quiet), done: 0, total, threads: threads() };
    let guard = interrupt::Guard::new(&job.cancel);
    write_gguf(&args.output, &meta, &specs, &mut |i, sink| {
        let tensor = tensors[i].take();
        let tensor = tensor.ok_or_else(|| Error::Invalid(format!("tensor `{}` is asked for twice", specs[i].name)))?;
        job.tensor(&specs[i].name, &tensor, specs[i].dtype, sink)
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
fn planned(ckpt: &Checkpoint, meta: &Metadata, specs: &[TensorSpec]) -> Outcome<Checkpoint> {
    let tensor = |(spec, (_, t)): (&TensorSpec, (&str, &Tensor))| -> Result<(String, Tensor)> {
        let impossible = || Error::Invalid(format!("tensor `{}` {:?} cannot be {}", spec.name, spec.shape, spec.dtype));
        let t = match spec.dtype == t.dtype() {
            true => t.clone(),
            false => {
                let bytes = Bytes::from_fn(spec.byte_len().ok_or_else(impossible)?, Vec::new);
                Tensor::new(spec.dtype, spec.shape.clone(), vec![bytes])?
            }
        };
        Ok((spec.name.clone(), t))
    };
    let tensors = specs.iter().zip(ckpt.tensors()).map(tensor).collect::<Result<Vec<_>>>()?;
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
    /// Writes one tensor as `dtype`, some rows at a time.
    fn tensor(&mut self, name: &str, t: &Tensor, dtype: DType, sink: &mut Sink<'_>) -> Result<()> {
        let each = (PIECE / t.cols().max(1)).max(1);
        let mut floats = Vec::new();
        for first in (0..t.rows()).step_by(each) {
            self.cancel.check()?;
            let rows = first..(first + each).min(t.rows());
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
