//! A model written as it is.

use crate::{
    error::Result,
    file::{Checkpoint, Tensor, TensorSpec, write_gguf},
};
use std::path::Path;

/// Writes all tensors of a model as GGUF, each in the format that it has; gives what was written.
///
/// # Errors
/// [`crate::Error::Write`]: nothing is left half-written.
pub(super) fn write_model(path: &Path, model: &Checkpoint) -> Result<Vec<TensorSpec>> {
    let spec =
        |(name, t): (&str, &Tensor)| TensorSpec { name: name.into(), dtype: t.dtype(), shape: t.shape().to_vec() };
    let specs: Vec<TensorSpec> = model.tensors().map(spec).collect();
    let tensors: Vec<&Tensor> = model.tensors().map(|(_, t)| t).collect();
    write_gguf(path, model.meta(), &specs, &mut |i, sink| tensors[i].parts().iter().try_for_each(|p| sink.write(p)))?;
    Ok(specs)
}
