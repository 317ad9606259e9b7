//! What must be equal for a run to go on from a checkpoint: keys of the configuration, the data, and the model that is trained on.

use super::{
    config::{SchedulerName, TrainConfig},
    data::Feed,
    learner::Learner,
};
use crate::error::{Error, Result};

/// Keys of the configuration that weights do not depend on: a run may go on with others.
const FREE: &[&str] = &[
    "output_dir",
    "eval_batch_size",
    "eval_steps",
    "eval_max_batches",
    "early_stopping_patience",
    "save_steps",
    "save_total_limit",
    "resume",
    "max_skipped_steps",
    "recompute",
    "export",
    "log",
    "logging_steps",
    "threads",
    "backend",
    "device",
    "max_steps",
    "num_epochs",
];

/// What must be equal for a run to go on as it was.
pub(super) fn lasting(
    config: &TrainConfig,
    steps: u64,
    feed: &Feed,
    learner: &dyn Learner,
) -> Result<serde_json::Map<String, serde_json::Value>> {
    let bad = |what: String| Error::Invalid(format!("the configuration cannot be kept in checkpoints: {what}"));
    let all = match serde_json::to_value(config).map_err(|e| bad(e.to_string()))? {
        serde_json::Value::Object(all) => all,
        other => return Err(bad(other.to_string())),
    };
    let mut kept: serde_json::Map<_, _> = all.into_iter().filter(|(k, _)| !FREE.contains(&k.as_str())).collect();
    // The files may have changed under their names.
    kept.insert("tokens of the data".into(), feed.corpus().text_tokens().into());
    kept.insert("checksum of the data".into(), feed.corpus().digest().hex().into());
    if let Some(origin) = learner.origin() {
        kept.insert("checksum of the model that is trained on".into(), origin.into());
    }
    // Under a constant rate a run may become longer; under another the rate depends on its end.
    let depends = !matches!(config.lr_scheduler, SchedulerName::Constant) || config.warmup_ratio > 0.0;
    if depends {
        kept.insert("steps in all".into(), steps.into());
    }
    Ok(kept)
}
