//! `moeray merge`: adapters into their model.

use super::apart;
use crate::{
    cli::{
        args::{LoraArgs, MergeArgs},
        failure::{Failure, Outcome, say},
        load,
        output::check_place,
        units,
    },
    file::{Tensor, TensorSpec, write_gguf},
    graph::LowRank,
    model,
    quant::DType,
};
use std::path::Path;

/// Runs the verb.
pub fn merge(args: &MergeArgs, quiet: bool) -> Outcome {
    if args.output.exists() && !args.force {
        return Err(Failure::new(format!("{} exists already", args.output.display())).hint("--force writes over it"));
    }
    let source = load::open(args.model.path())?;
    let adapters = load::adapters(&LoraArgs { lora: args.lora.clone() })?;
    let read: Vec<&Path> = source.path().into_iter().chain(adapters.iter().map(|f| f.path.as_path())).collect();
    apart(&args.output, &read)?;
    check_place("-o", &args.output)?;
    let wanted = args.weight_type.as_deref().map(named).transpose()?;
    let ckpt = model::to_gguf(&source)?;
    let definition = model::build(&ckpt, &model::Options::default())?;
    let mut pairs: Vec<LowRank> = vec![];
    for f in adapters {
        pairs.extend(model::read_adapter(&definition, &ckpt, &f)?);
    }
    // The graph says which pairs fit: before anything is written.
    crate::graph::with_low_rank(&definition.program, &pairs)?;
    let quantised = pairs.iter().filter_map(|p| ckpt.tensor(&p.weight)).find(|t| !t.dtype().is_float());
    if let Some(t) = quantised.filter(|_| wanted.is_none() && !args.allow_requantize) {
        return Err(Failure::new(format!("weights that change are {}, which would round them once more", t.dtype()))
            .hint("--type F16 stores them in half precision, --allow-requantize as they are"));
    }
    let dtype = |name: &str, t: &Tensor| match pairs.iter().any(|p| p.weight == name) {
        true => wanted.unwrap_or(t.dtype()),
        false => t.dtype(),
    };
    if let Some(p) = pairs.iter().find(|p| ckpt.tensor(&p.weight).is_none()) {
        let what = format!("the adapter changes {}, which the file has only as a part of another tensor", p.weight);
        return Err(Failure::new(what));
    }
    let spec =
        |(name, t): (&str, &Tensor)| TensorSpec { name: name.into(), dtype: dtype(name, t), shape: t.shape().to_vec() };
    let specs: Vec<TensorSpec> = ckpt.tensors().map(spec).collect();
    let tensors: Vec<&Tensor> = ckpt.tensors().map(|(_, t)| t).collect();
    write_gguf(&args.output, ckpt.meta(), &specs, &mut |i, sink| {
        let spec = &specs[i];
        match pairs.iter().any(|p| p.weight == spec.name) {
            true => sink.write(&model::merged(&spec.name, tensors[i], &pairs, spec.dtype)?),
            false => tensors[i].parts().iter().try_for_each(|p| sink.write(p)),
        }
    })?;
    if !quiet {
        let bytes: usize = specs.iter().filter_map(TensorSpec::byte_len).sum();
        let (n, size) = (pairs.len(), units::bytes(bytes as u64));
        say(format_args!("{}: {n} of {} tensors changed, {size}", args.output.display(), specs.len()));
    }
    Ok(())
}

/// The type that a person names.
fn named(name: &str) -> Outcome<DType> {
    let found = DType::ALL.into_iter().find(|d| d.layout().name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let all: Vec<&str> = DType::ALL.iter().map(|d| d.layout().name).collect();
        Failure::new(format!("--type {name} is none of {}", all.join(", ")))
    })
}
