//! `/v1/embeddings` ([reference](https://platform.openai.com/docs/api-reference/embeddings)): a vector for each text, of length 1.

use super::options::Options;
use crate::{
    serve::{
        app::{App, Client},
        engine::{Event, Job},
        error::{ApiError, ApiResult},
        fields::Fields,
        http::Writer,
        prompt::{self, Encoded},
    },
    session::Pooled,
};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// Most texts of a request, as OpenAI's reference says.
const MOST_INPUTS: usize = 2048;

/// A request that was read.
#[derive(Debug)]
pub struct EmbeddingsRequest {
    inputs: Vec<Encoded>,
    pooled: Pooled,
    base64: bool,
}

/// Reads a request and its texts.
///
/// # Errors
/// 400 with the field, or where the model makes no vectors; 404 for another model.
pub fn read(app: &App, body: &Value) -> ApiResult<EmbeddingsRequest> {
    let f = Fields::of(body)?;
    app.check_model(f.require_string("model")?)?;
    f.require("input")?;
    let base64 = f.word("encoding_format", &["float", "base64"])? == Some("base64");
    f.string("user")?;
    let pooling = app.model.pooling.clone().map_err(|why| {
        let message = format!("the model {:?} makes no vectors of texts: {why}", app.options.name);
        ApiError { code: Some("unsupported_model"), ..ApiError::field("model", message) }
    })?;
    let hidden = app.model.hidden;
    if f.count("dimensions", 1..=i64::MAX)?.is_some_and(|n| n != hidden) {
        let why = format!("this model's vectors have {hidden} numbers, and mean nothing when they are cut");
        return Err(ApiError::unsupported("dimensions", why));
    }
    Ok(EmbeddingsRequest { inputs: inputs(app, &f)?, pooled: Pooled::new(pooling)?, base64 })
}

/// A text, some texts, ids, or some lists of ids.
fn inputs(app: &App, f: &Fields<'_>) -> ApiResult<Vec<Encoded>> {
    let wrong = |at: &str| {
        ApiError::field(
            at,
            "must be a string, an array of strings, of token ids, or of arrays of token ids, none empty",
        )
    };
    let one = |at: &str, v: &Value| match v {
        Value::String(s) if !s.is_empty() => prompt::encode_whole_text(app, at, s),
        Value::Array(ids) if !ids.is_empty() => prompt::check_ids(app, at, ids),
        _ => Err(wrong(at)),
    };
    match f.require("input")? {
        Value::Array(a) if !a.is_empty() && !a.iter().all(Value::is_number) => {
            if a.len() > MOST_INPUTS {
                return Err(ApiError::field("input", format!("at most {MOST_INPUTS} texts, not {}", a.len())));
            }
            a.iter().enumerate().map(|(i, v)| one(&format!("input[{i}]"), v)).collect()
        }
        other => Ok(vec![one("input", other)?]),
    }
}

impl EmbeddingsRequest {
    /// A job for each text.
    pub fn jobs(&self, client: &Client, events: &UnboundedSender<(usize, Event)>) -> Vec<Job> {
        let plain = Options { n: 1, ..Options::default() };
        let inputs = self.inputs.iter().enumerate();
        let mut jobs: Vec<Job> = inputs.flat_map(|(i, p)| plain.jobs(client, p, i, events)).collect();
        jobs.iter_mut().for_each(|job| job.pooled = Some(self.pooled.clone()));
        jobs
    }
}

/// Gathers the vectors of a request.
#[derive(Debug)]
pub struct EmbeddingsWriter {
    app: Arc<App>,
    base64: bool,
    tokens: usize,
    vectors: Vec<Option<Vec<f32>>>,
    error: Option<ApiError>,
}

impl EmbeddingsWriter {
    /// A writer of the answer to a request.
    pub fn new(app: &Arc<App>, request: &EmbeddingsRequest) -> Self {
        EmbeddingsWriter {
            app: app.clone(),
            base64: request.base64,
            tokens: request.inputs.iter().map(|i| i.ids.len()).sum(),
            vectors: vec![None; request.inputs.len()],
            error: None,
        }
    }

    /// The whole answer.
    ///
    /// # Errors
    /// Where the engine failed.
    pub fn answer(self) -> ApiResult<Value> {
        if let Some(e) = self.error {
            return Err(e);
        }
        let mut data = vec![];
        for (index, vector) in self.vectors.into_iter().enumerate() {
            let vector = vector.ok_or_else(|| ApiError::new(500, "the engine gave no answer"))?;
            let embedding: Value =
                if self.base64 { base64(&vector).into() } else { vector.iter().map(|x| short(*x)).collect() };
            data.push(json!({"object": "embedding", "index": index, "embedding": embedding}));
        }
        let usage = json!({"prompt_tokens": self.tokens, "total_tokens": self.tokens});
        Ok(json!({"object": "list", "data": data, "model": self.app.options.name, "usage": usage}))
    }
}

impl Writer for EmbeddingsWriter {
    fn write(&mut self, index: usize, event: Event, _: &mut String) {
        match event {
            Event::Embedding(vector) => {
                if let Some(v) = self.vectors.get_mut(index) {
                    *v = Some(vector);
                }
            }
            Event::Failed(e) => self.error = Some(e.into()),
            Event::Started { .. } | Event::Prompt(_) | Event::Piece(_) | Event::Finished(_) => {}
        }
    }

    fn end(&mut self, _: &mut String) {}
}

/// A number with the digits that tell it from other numbers of its kind: as an `f64` it would have twice as many.
fn short(x: f32) -> Value {
    x.to_string().parse::<f64>().unwrap_or(f64::from(x)).into()
}

/// Numbers as little-endian bytes in base 64 (RFC 4648), a quarter of their size in JSON.
fn base64(numbers: &[f32]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = char::from(DIGITS[(word >> (18 - 6 * i)) as usize & 63]);
            out.push(if i > three.len() { '=' } else { digit });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::base64;

    /// Values of Python's `base64.b64encode(struct.pack("<…f", …))`.
    #[test]
    fn base64_of_numbers() {
        assert_eq!(base64(&[]), "");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[0.1, 3.0e38, -0.0]), "zczMPeaxYX8AAACA");
    }
}
