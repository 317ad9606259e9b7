//! What the server says of itself and of its model, and the tokenizer by itself: `/v1/models`, `/props`, `/slots`, `/health`,
//! `/tokenize`, `/detokenize`, `/apply-template`.

use super::chat;
use crate::{
    sampler::SamplerOptions,
    serve::{
        app::App,
        error::{ApiError, ApiResult},
        fields::Fields,
    },
    tokenizer::EncodeOptions,
};
use serde_json::{Value, json};

/// A model as OpenAI's API has it, with what llama-server adds.
pub fn model(app: &App) -> Value {
    json!({
        "id": app.options.name,
        "object": "model",
        "created": app.model.created,
        "owned_by": "moeray",
        "meta": {
            "n_vocab": app.model.vocab,
            "n_ctx": app.engine.ctx(),
            "n_ctx_train": app.model.trained_context,
            "architecture": app.model.architecture,
        },
    })
}

/// `/v1/models`.
pub fn models(app: &App) -> Value {
    json!({"object": "list", "data": [model(app)]})
}

/// `/health`.
///
/// # Errors
/// 503 while the server ends, or where the engine has stopped.
pub fn health(app: &App) -> ApiResult<Value> {
    match app.is_healthy() {
        true => Ok(json!({"status": "ok"})),
        false => Err(ApiError::new(503, "the server gives no answers: it is shutting down, or its device is lost")),
    }
}

/// `/props`.
pub fn props(app: &App) -> Value {
    let s = SamplerOptions::default();
    json!({
        "model_alias": app.options.name,
        "architecture": app.model.architecture,
        "device": app.model.device,
        "total_slots": app.engine.options().runner.sequences,
        "n_ctx": app.engine.ctx(),
        "n_ctx_train": app.model.trained_context,
        "queue": app.engine.options().queue,
        "chat_template": app.template.source(),
        "bos_token": app.tokenizer.bos().and_then(|id| app.tokenizer.token_text(id)),
        "eos_token": app.tokenizer.eos().and_then(|id| app.tokenizer.token_text(id)),
        "default_generation_settings": {
            "temperature": s.temperature,
            "top_k": s.top_k,
            "top_p": s.top_p,
            "min_p": s.min_p,
            "repeat_penalty": s.repeat_penalty,
            "repeat_last_n": s.repeat_last_n,
        },
        "build_info": concat!("moeray ", env!("CARGO_PKG_VERSION")),
    })
}

/// `/slots`: no text of anybody's.
pub fn slots(app: &App) -> Value {
    let status = app.engine.status();
    let slot = |(id, s): (usize, &crate::serve::engine::SlotStatus)| {
        json!({
            "id": id,
            "n_ctx": app.engine.ctx(),
            "is_processing": s.busy,
            "state": if !s.busy { "idle" } else if s.reading { "prompt" } else { "generation" },
            "n_prompt_tokens": s.prompt,
            "n_cached_tokens": s.tokens,
            "n_decoded": s.generated,
        })
    };
    status.slots.iter().enumerate().map(slot).collect()
}

/// `/tokenize`: `content` to `tokens`.
///
/// # Errors
/// 400 with the field.
pub fn tokenize(app: &App, body: &Value) -> ApiResult<Value> {
    let f = Fields::of(body)?;
    let text = f.require_string("content")?;
    let add_bos = f.boolean("add_special")?.unwrap_or(false);
    let parse_special = f.boolean("parse_special")?.unwrap_or(true);
    let pieces = f.boolean("with_pieces")?.unwrap_or(false);
    let ids = app.tokenizer.encode(text, EncodeOptions { add_bos, parse_special })?;
    if !pieces {
        return Ok(json!({"tokens": ids}));
    }
    let piece = |id: &u32| {
        let bytes = app.token_bytes(*id);
        // What is no text by itself comes as its bytes.
        let piece = String::from_utf8(bytes).map_or_else(|e| json!(e.into_bytes()), Value::from);
        json!({"id": id, "piece": piece})
    };
    Ok(json!({"tokens": ids.iter().map(piece).collect::<Vec<_>>()}))
}

/// `/detokenize`: `tokens` to `content`.
///
/// # Errors
/// 400 with the field.
pub fn detokenize(app: &App, body: &Value) -> ApiResult<Value> {
    let f = Fields::of(body)?;
    f.require("tokens")?;
    let vocab = app.model.vocab as u64;
    let mut ids = vec![];
    for (i, v) in f.array("tokens")?.unwrap_or_default().iter().enumerate() {
        let id = v.as_u64().filter(|id| *id < vocab);
        let wrong = || ApiError::field(format!("tokens[{i}]"), format!("{v} is no token id below {vocab}"));
        ids.push(id.ok_or_else(wrong)? as u32);
    }
    Ok(json!({"content": app.tokenizer.decode_with(&ids, true)}))
}

/// `/apply-template`: what a conversation becomes.
///
/// # Errors
/// 400 with the field, or what the template says.
pub fn apply_template(app: &App, body: &Value) -> ApiResult<Value> {
    let f = Fields::of(body)?;
    let prompt = chat::conversation(&f)?.render(app)?;
    Ok(json!({"prompt": prompt.text}))
}
