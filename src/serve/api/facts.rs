//! What the server says of itself and of its model, and the tokenizer by itself: `/v1/models`, `/props`, `/slots`, `/health`,
//! `/tokenize`, `/detokenize`, `/apply-template`.

use super::chat;
use crate::{
    sampler::SamplerOptions,
    serve::{
        app::App,
        error::{ApiError, ApiResult},
        fields::Fields,
        fleet::{Fleet, Standing},
        form::{self, Form},
    },
    tokenizer::EncodeOptions,
};
use serde_json::{Value, json};

/// A model as OpenAI's API has it, with what llama-server adds.
fn described(s: &Standing) -> Value {
    let meta = s.app.as_ref().map_or_else(
        || json!({}),
        |app| {
            json!({
                "n_vocab": app.model.vocab,
                "n_ctx": app.engine.ctx(),
                "n_ctx_train": app.model.trained_context,
                "n_embd": app.model.hidden,
                "architecture": app.model.architecture,
            })
        },
    );
    let status = if s.app.is_some() { "loaded" } else { "unloaded" };
    json!({
        "id": s.name,
        "object": "model",
        "created": s.created,
        "owned_by": "moeray",
        "meta": meta,
        "status": {"value": status},
    })
}

/// `/v1/models`.
pub fn models(fleet: &Fleet) -> Value {
    json!({"object": "list", "data": fleet.standing().iter().map(described).collect::<Vec<_>>()})
}

/// `/v1/models/{id}`.
///
/// # Errors
/// 404 for an unknown name.
pub fn model(fleet: &Fleet, id: &str) -> ApiResult<Value> {
    let standing = fleet.standing().into_iter().find(|s| s.name == id);
    standing.as_ref().map(described).ok_or_else(|| ApiError::no_model(id))
}

/// `/health`.
///
/// # Errors
/// 503 while the server ends, or where the engine has stopped.
pub fn health(fleet: &Fleet) -> ApiResult<Value> {
    match fleet.is_healthy() {
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

/// `/v1/experts`: how often each expert was chosen by the last tokens.
///
/// # Errors
/// 404 for a model without experts.
pub fn experts(app: &App) -> ApiResult<Value> {
    let Some(load) = app.engine.experts() else {
        let why = format!("the model {:?} has no experts that could be looked at", app.options.name);
        return Err(ApiError { code: Some("no_experts"), ..ApiError::new(404, why) });
    };
    let experts = load.layers.iter().map(|l| l.load.len()).max().unwrap_or(0);
    let layers: Vec<Value> = load.layers.iter().map(|l| json!({"layer": l.layer, "load": l.load})).collect();
    Ok(json!({"object": "experts", "experts": experts, "used": load.used, "tokens": load.tokens, "layers": layers}))
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
    f.string("model")?;
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
    f.string("model")?;
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

/// `/apply-template`: what a conversation becomes, with the tools that its model would be shown.
///
/// # Errors
/// 400 with the field, or what the template says.
pub fn apply_template(app: &App, body: &Value) -> ApiResult<Value> {
    let f = Fields::of(body)?;
    f.string("model")?;
    let mut conversation = chat::conversation(&f)?;
    let form = Form::of(app, form::of_chat(&f)?)?;
    conversation.variables.extend(form.shown().map(|tools| ("tools".to_owned(), tools)));
    Ok(json!({"prompt": conversation.render(app)?.text}))
}
