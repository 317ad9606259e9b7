//! What all requests share: the model, its engine, and what the operator chose.

use super::{
    engine::{Engine, EngineOptions, Event, Job},
    error::{ApiError, ApiResult},
    ids::Ids,
    metrics::{Metrics, Style},
};
use crate::{
    error::Result,
    grammar::GrammarEngine,
    ir::RESIDUAL,
    session::Model,
    session::Pooling,
    tokenizer::{ChatTemplate, DateTime, Tokenizer},
};
use std::{
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// How a server behaves.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Size of the engine.
    pub engine: EngineOptions,
    /// The model's name in requests and answers.
    pub name: String,
    /// Keys of which clients must send one; none: everybody may ask.
    pub keys: Vec<String>,
    /// A chat template in place of the model's.
    pub chat_template: Option<String>,
    /// Web pages of these origins may ask; `*`: all.
    pub cors: Vec<String>,
    /// Most bytes of a request's body.
    pub body_limit: usize,
    /// Most open connections.
    pub connections: usize,
    /// Time in which a head and a body must have come.
    pub read_timeout: Duration,
    /// Quiet time after which a stream gets a ping.
    pub ping: Duration,
    /// Time that running answers have once the server is told to end.
    pub grace: Duration,
    /// How hidden states become the vectors of `/v1/embeddings`, in place of what the model says; [`Pooling::Last`] where neither
    /// does.
    pub pooling: Option<Pooling>,
    /// The folder for saved slots; `None`: none are saved.
    pub slot_folder: Option<PathBuf>,
    /// Names of metrics.
    pub metrics: Style,
    /// The local time for chat templates that write a date.
    pub now: fn() -> Option<DateTime>,
}

/// See the description of the module.
#[derive(Debug)]
pub struct App {
    /// What the operator chose.
    pub options: ServeOptions,
    /// What is said of the model.
    pub model: ModelFacts,
    /// The model's, with the chat template that is used.
    pub tokenizer: Tokenizer,
    /// That template.
    pub template: ChatTemplate,
    /// What generates.
    pub engine: Engine,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    grammars: OnceLock<std::result::Result<GrammarEngine, String>>,
    ids: Ids,
}

/// What is said of the model.
#[derive(Clone, Debug)]
pub struct ModelFacts {
    /// Logits a position.
    pub vocab: usize,
    /// The context that it was made for; 0 where it does not say.
    pub trained_context: usize,
    /// Numbers of a vector of `/v1/embeddings`.
    pub hidden: usize,
    /// How hidden states become such a vector, or why they cannot.
    pub pooling: std::result::Result<Pooling, String>,
    /// The architecture's name.
    pub architecture: String,
    /// Backend and device.
    pub device: String,
    /// Seconds since 1970 when it was loaded.
    pub created: u64,
}

/// For models without a chat template: a play's form, which any text model can continue.
const TRANSCRIPT: &str = "{% for m in messages %}{{ m.role | upper }}:\n{{ m.content }}\n\n{% endfor %}\
                          {% if add_generation_prompt %}ASSISTANT:\n{% endif %}";

impl App {
    /// Starts the engine.
    ///
    /// # Errors
    /// As [`Engine::start`]; [`crate::Error::Tokenizer`] for a chat template that does not parse.
    pub fn new(model: &Model, options: ServeOptions) -> Result<App> {
        App::counting(model, options, Arc::default())
    }

    /// The same, counting in these metrics.
    ///
    /// # Errors
    /// As [`App::new`].
    pub fn counting(model: &Model, options: ServeOptions, metrics: Arc<Metrics>) -> Result<App> {
        let mut tokenizer = model.require_tokenizer()?.clone();
        if let Some(source) = &options.chat_template {
            tokenizer = tokenizer.with_chat_template(source.as_str());
        }
        let template = match tokenizer.chat_template()? {
            Some(template) => template.clone(),
            None => {
                tracing::warn!("the model has no chat template: conversations are written like a play");
                ChatTemplate::new(TRANSCRIPT, "", "")?
            }
        };
        let engine = Engine::start(model, options.engine, metrics.clone())?;
        let facts = ModelFacts {
            vocab: model.vocab(),
            trained_context: model.hyper().context,
            hidden: model.hyper().hidden,
            pooling: pooling(model, options.pooling),
            architecture: model.definition().arch.clone(),
            device: model.describe(),
            created: now(),
        };
        Ok(App {
            options,
            model: facts,
            tokenizer,
            template,
            engine,
            metrics,
            grammars: OnceLock::new(),
            ids: Ids::default(),
        })
    }

    /// Whether a request's model is this one.
    ///
    /// # Errors
    /// 404 for another name.
    pub fn check_model(&self, name: &str) -> ApiResult<()> {
        if name == self.options.name { Ok(()) } else { Err(ApiError::no_model(name)) }
    }

    /// The bytes of a token; of a vocabulary in which they depend on its neighbours, those that it has alone.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.tokenizer.token_bytes(id) {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(_) => self.tokenizer.decode_with(&[id], true).into_bytes(),
        }
    }

    /// What compiles grammars for the model's vocabulary; made when it is needed first, which takes some hundred milliseconds.
    ///
    /// # Errors
    /// 400 where the vocabulary allows none.
    pub fn grammars(&self) -> ApiResult<&GrammarEngine> {
        let make = || GrammarEngine::new(&self.tokenizer, self.model.vocab).map_err(|e| e.to_string());
        self.grammars.get_or_init(make).as_ref().map_err(|e| ApiError::new(400, e.clone()))
    }

    /// An id that no other answer has, with this beginning.
    pub fn id(&self, beginning: &str) -> String {
        self.ids.id(beginning)
    }

    /// A word that cannot be foreseen.
    pub fn random_word(&self) -> u64 {
        self.ids.word()
    }

    /// Queues jobs, which `make` makes with where their events go.
    ///
    /// # Errors
    /// 429 where the queue is full, 503 while the server ends.
    pub fn submit(
        &self,
        make: impl FnOnce(tokio::sync::mpsc::UnboundedSender<(usize, Event)>) -> Vec<Job>,
    ) -> ApiResult<UnboundedReceiver<(usize, Event)>> {
        let (to, events) = unbounded_channel();
        self.engine.submit(make(to))?;
        Ok(events)
    }
}

/// How texts become vectors. Files of language models say nothing of it; of those the last token has seen all the others, as vLLM
/// and Ollama have it too.
fn pooling(model: &Model, chosen: Option<Pooling>) -> std::result::Result<Pooling, String> {
    if !model.definition().program.graph.outputs.iter().any(|(name, _)| name == RESIDUAL) {
        return Err("its graph has no output for hidden states".into());
    }
    match chosen.map_or_else(|| model.pooling(), |p| Ok(Some(p))) {
        Ok(Some(Pooling::None)) => {
            Err("its file says that every token keeps a vector of its own (pooling none)".into())
        }
        Ok(known) => Ok(known.unwrap_or(Pooling::Last)),
        Err(e) => Err(e.to_string()),
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs())
}

/// Who asks.
#[derive(Clone, Debug)]
pub struct Client {
    /// The same for all requests of one client.
    pub id: u64,
    /// When the request came.
    pub arrived: std::time::Instant,
}
