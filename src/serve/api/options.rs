//! What a request says of how its text is generated: the fields that the APIs share.

use crate::{
    grammar::Matcher,
    sampler::SamplerOptions,
    serve::{
        app::{App, Client},
        engine::{Constraint, Event, Job},
        error::{ApiError, ApiResult},
        fields::Fields,
        form::Masked,
        prompt::Encoded,
    },
};
use tokio::sync::mpsc::UnboundedSender;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Most tokens; `None`: until the context ends.
    pub max_tokens: Option<usize>,
    /// Texts for each prompt.
    pub n: usize,
    /// How tokens are chosen.
    pub sampler: SamplerOptions,
    /// OpenAI's penalties.
    pub presence_penalty: f32,
    /// See [`Options::presence_penalty`].
    pub frequency_penalty: f32,
    /// Added to logits.
    pub bias: Vec<(u32, f32)>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Never end by itself.
    pub ignore_eos: bool,
    /// Log-probabilities.
    pub logprobs: Option<usize>,
    /// Of the prompt too.
    pub prompt_logprobs: bool,
    /// Which tokens may come.
    pub matcher: Option<Matcher>,
}

/// Most tokens that a request may ask for.
pub const MOST_TOKENS: i64 = 1 << 40;
/// Most texts of a request.
pub const MOST_TEXTS: i64 = 128;
/// Most stop strings, as OpenAI's reference says.
pub const MOST_STOPS: usize = 4;

impl Options {
    /// The fields of sampling that chat and text completions share, with those of llama-server beside them.
    ///
    /// # Errors
    /// 400 with the field.
    pub fn read(app: &App, f: &Fields<'_>) -> ApiResult<Options> {
        Ok(Options {
            n: f.count("n", 1..=MOST_TEXTS)?.unwrap_or(1),
            sampler: sampler(app, f, 2.0)?,
            presence_penalty: f.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            frequency_penalty: f.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            bias: bias(app, f)?,
            stop: f.strings("stop", MOST_STOPS)?,
            ignore_eos: f.boolean("ignore_eos")?.unwrap_or(false),
            ..Options::default()
        })
    }

    /// The jobs of one prompt, the first with this index.
    pub fn jobs(
        &self,
        client: &Client,
        prompt: &Encoded,
        first: usize,
        events: &UnboundedSender<(usize, Event)>,
    ) -> Vec<Job> {
        let job = |i: usize| Job {
            index: first + i,
            arrived: client.arrived,
            client: client.id,
            prompt: prompt.ids.clone(),
            max_tokens: self.max_tokens.unwrap_or(usize::MAX),
            sampler: SamplerOptions { seed: self.sampler.seed.wrapping_add(i as u64), ..self.sampler },
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            bias: self.bias.clone(),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            constraint: self.matcher.clone().map(|m| Box::new(Masked::new(m)) as Box<dyn Constraint>),
            pooled: None,
            events: events.clone(),
        };
        (0..self.n).map(job).collect()
    }
}

/// How tokens are chosen; what is not said is as the program's other verbs have it.
///
/// # Errors
/// 400 with the field.
pub fn sampler(app: &App, f: &Fields<'_>, hottest: f64) -> ApiResult<SamplerOptions> {
    let default = SamplerOptions::default();
    let seed = f.integer("seed", i64::MIN..=i64::MAX)?;
    // A mass of nothing still has the best token in it.
    let top_p = f.number("top_p", 0.0..=1.0)?.map(|p| p.max(f32::MIN_POSITIVE));
    let penalty = f.number("repeat_penalty", 0.01..=100.0)?;
    Ok(SamplerOptions {
        temperature: f.number("temperature", 0.0..=hottest)?.unwrap_or(default.temperature),
        top_p: top_p.unwrap_or(default.top_p),
        top_k: f.count("top_k", 0..=i64::from(u32::MAX))?.unwrap_or(default.top_k),
        min_p: f.number("min_p", 0.0..=1.0)?.unwrap_or(default.min_p),
        repeat_penalty: penalty.unwrap_or(default.repeat_penalty),
        repeat_last_n: f.count("repeat_last_n", 0..=i64::from(u32::MAX))?.unwrap_or(default.repeat_last_n),
        seed: seed.map_or_else(|| app.random_word(), |s| s as u64),
    })
}

fn bias(app: &App, f: &Fields<'_>) -> ApiResult<Vec<(u32, f32)>> {
    let Some(map) = f.object("logit_bias")? else { return Ok(vec![]) };
    let mut all: Vec<(u32, f32)> = vec![];
    for (key, _) in map.entries() {
        let id = key.parse::<u32>().ok().filter(|id| (*id as usize) < app.model.vocab);
        let Some(id) = id else {
            let vocab = app.model.vocab;
            return Err(ApiError::field(map.path(key), format!("{key:?} is no token id below {vocab}")));
        };
        if let Some(value) = map.number(key, -100.0..=100.0)? {
            match all.iter_mut().find(|b| b.0 == id) {
                Some(b) => b.1 = value,
                None => all.push((id, value)),
            }
        }
    }
    Ok(all)
}

/// `stream`, and `stream_options.include_usage`.
///
/// # Errors
/// 400 with the field.
pub fn streaming(f: &Fields<'_>) -> ApiResult<(bool, bool)> {
    let stream = f.boolean("stream")?.unwrap_or(false);
    let Some(options) = f.object("stream_options")? else { return Ok((stream, false)) };
    let usage = options.boolean("include_usage")?.unwrap_or(false);
    options.boolean("include_obfuscation")?;
    match stream {
        true => Ok((stream, usage)),
        false => Err(ApiError::field("stream_options", "is only allowed where stream is true")),
    }
}

/// Fields that are looked at for their kind alone: they change nothing here.
///
/// # Errors
/// 400 with the field.
pub fn accepted(f: &Fields<'_>) -> ApiResult<()> {
    f.string("user")?;
    f.boolean("store")?;
    f.string("service_tier")?;
    f.string("safety_identifier")?;
    f.string("prompt_cache_key")?;
    metadata(f)
}

/// `metadata`: up to 16 pairs of strings.
///
/// # Errors
/// 400 with the field.
pub fn metadata(f: &Fields<'_>) -> ApiResult<()> {
    let Some(map) = f.object("metadata")? else { return Ok(()) };
    for (key, _) in map.entries() {
        map.string(key)?;
    }
    Ok(())
}
