//! A folder of PyTorch names with other numbers: models that no GGUF can say are trained and written in the form that they came in.

use super::hugging_face::{Piece, compared, fill, slice, vocabulary_files, written_whole};
use crate::{
    error::{Error, Result},
    file::{self, Checkpoint, Format, Tensor},
    model::{
        build::{find, quietly},
        common::{GROUP_ROUTER_COUNT, GROUP_ROUTER_USED_COUNT},
        families::MINI_MIXTRAL,
        options::Options,
        params::Params,
        tensors::same_sizes,
    },
};
use serde_json::json;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// What all weights of a model are trained as: under GGUF names, or, where a folder's tensors are the weights of the graph and no GGUF
/// may be able to say it, as the folder that it is.
///
/// # Errors
/// As [`super::to_gguf`].
pub fn trainable(ckpt: &Checkpoint) -> Result<Checkpoint> {
    let own = ckpt.format() == Format::SafeTensors && find(&Params::new(ckpt)?)?.hf == MINI_MIXTRAL;
    if own { Ok(ckpt.clone()) } else { super::to_gguf(ckpt) }
}

/// What the router's matrix is called in these folders.
const ROUTER: &str = "feed_forward.gate";

/// Whether the file has a weight of this canonical name as a tensor of its own, or one an expert.
///
/// # Errors
/// As `model::build`.
pub fn has_tensor_of(ckpt: &Checkpoint, canonical: &str) -> Result<bool> {
    if ckpt.format() == Format::Gguf {
        return Ok(ckpt.info(canonical).is_some());
    }
    Ok(ckpt.info(&published(ckpt, canonical)?.replace("{}", "0")).is_some())
}

/// The folder's name of a weight, `{}` standing for the number of an expert.
fn published(ckpt: &Checkpoint, canonical: &str) -> Result<String> {
    Ok(find(&Params::new(ckpt)?)?.names.candidates(canonical).swap_remove(0))
}

/// A folder with these weights, by canonical name, in the place of its own, and with `used` experts a token where it is said. Noise
/// before routers, which only training has, is added as a matrix of the file that inference leaves aside. `groups` are those of a
/// router over groups and how many a token uses, where routers' matrices have a row for each.
///
/// # Errors
/// [`Error::Model`] for a weight that the folder has not, or of another size.
pub fn with_weights(
    ckpt: &Checkpoint,
    weights: &HashMap<String, Tensor>,
    used: Option<u32>,
    groups: Option<[usize; 2]>,
) -> Result<Checkpoint> {
    let mut new: BTreeMap<String, Tensor> = BTreeMap::new();
    for (canonical, t) in weights {
        let name = published(ckpt, canonical)?;
        if !name.contains("{}") {
            new.insert(name, t.clone());
            continue;
        }
        let experts = t.shape().first().copied().unwrap_or(0);
        for e in 0..experts {
            new.insert(name.replace("{}", &e.to_string()), slice(t, e, experts)?);
        }
    }
    let mut tensors = vec![];
    for (name, old) in ckpt.tensors() {
        let t = new.remove(name).unwrap_or_else(|| old.clone());
        if groups.is_some() && name.contains(&format!(".{ROUTER}.")) {
            tensors.push((name.to_owned(), t));
            continue;
        }
        if !same_sizes(t.shape(), old.shape()) {
            let (new, old) = (t.shape(), old.shape());
            return Err(Error::Model(format!("`{name}` has shape {new:?}, and the folder {old:?}")));
        }
        tensors.push((name.to_owned(), t.reshaped(old.shape().to_vec())?));
    }
    let mut config = ckpt.config().cloned().unwrap_or_else(|| json!({}));
    if let Some(used) = used {
        config["top_k"] = json!(used);
    }
    if let Some([count, used]) = groups {
        config[GROUP_ROUTER_COUNT] = json!(count);
        config[GROUP_ROUTER_USED_COUNT] = json!(used);
    }
    for (name, t) in new {
        if !name.contains(".noise.") {
            return Err(Error::Model(format!("the folder has no tensor `{name}`")));
        }
        if matches!(config.get("router").and_then(|r| r.as_str()), None | Some("top_k")) {
            config["router"] = json!("noisy_top_k");
        }
        tensors.push((name, t));
    }
    ckpt.changed(config, tensors)
}

/// Writes a folder as it is in memory, beside its place, and renames it; one that is there already gives way.
///
/// # Errors
/// [`Error::Unsupported`] where what was written is not read back as the same model; [`Error::Write`]: nothing is left
/// half-written.
pub fn write_folder(folder: &Path, ckpt: &Checkpoint) -> Result<()> {
    let model = quietly(ckpt, &Options::default())?;
    let config = ckpt.config().cloned().unwrap_or_else(|| json!({}));
    let piece = |(name, t): (&str, &Tensor)| (name.to_owned(), Piece::new(t.clone()));
    let pieces = ckpt.tensors().map(piece).collect();
    let copied = ckpt.path().filter(|p| p.is_dir());
    written_whole(folder, |beside| {
        fill(beside, &config, pieces, copied)?;
        if copied.is_none() {
            vocabulary_files(beside, ckpt)?;
        }
        compared(&quietly(&file::open(beside)?, &Options::default())?, &model)
    })
}
