//! Several models behind one server. A model is loaded when it is asked for first; it goes when its memory is wanted for another one,
//! or after some time in which nobody asked. What runs is never cut off: a model goes only while no request has it.
//!
//! Loads come one after the other, so that two of them never take the same memory. Requests to models that are there do not wait
//! for loads.
//!
//! Deliberately absent: files, names on disks, devices: how an [`App`] is made is its [`Source`]'s matter.

use super::{
    app::{App, ServeOptions, now},
    error::{ApiError, ApiResult},
    ids::Ids,
    metrics::Metrics,
};
use crate::error::{Error, Result};
use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Makes what serves a model, which counts in these metrics.
pub type Load = Arc<dyn Fn(Arc<Metrics>) -> Result<App> + Send + Sync>;

/// A model that can be loaded.
#[derive(Clone)]
pub struct Source {
    /// Its name in requests.
    pub name: String,
    /// Bytes that its weights take, as far as can be told beforehand.
    pub bytes: u64,
    /// Loads it; may take minutes.
    pub load: Load,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("name", &self.name).field("bytes", &self.bytes).finish()
    }
}

/// When models go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetOptions {
    /// Bytes that all loaded models may take together; one alone may always be loaded.
    pub memory: Option<u64>,
    /// Time without requests after which a model goes.
    pub idle: Option<Duration>,
}

/// See the description of the module.
#[derive(Debug)]
pub struct Fleet {
    /// What the operator chose for all of them.
    pub options: ServeOptions,
    /// Whether the server takes no more work.
    pub draining: AtomicBool,
    limits: FleetOptions,
    models: Vec<Arc<Entry>>,
    /// Held while a model is loaded.
    loading: Arc<tokio::sync::Mutex<()>>,
    /// Requests that wait for a model.
    waiting: AtomicUsize,
    ids: Ids,
}

#[derive(Debug)]
struct Entry {
    source: Source,
    metrics: Arc<Metrics>,
    created: u64,
    /// Bytes that it took beside its weights when it was loaded last.
    beside: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    app: Option<Arc<App>>,
    /// When it was asked for last.
    used: Option<Instant>,
    /// Whether it never goes.
    stays: bool,
}

/// How a model stands.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its name in requests.
    pub name: String,
    /// Seconds since 1970 when it became known.
    pub created: u64,
    /// What serves it, where it is loaded.
    pub app: Option<Arc<App>>,
}

/// Time between two looks for memory that has become free.
const LOOK: Duration = Duration::from_millis(50);
/// Time after which a request is told that others keep the memory: a model that is asked for all the time never goes.
const PATIENCE: Duration = Duration::from_secs(120);

impl Entry {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What serves it, where it is loaded and its device is not lost.
    fn app(&self) -> Option<Arc<App>> {
        let mut state = self.state();
        state.used = Some(Instant::now());
        state.app.clone().filter(|app| state.stays || app.engine.is_alive())
    }

    /// Bytes that it takes now.
    fn taken(&self) -> u64 {
        self.state().app.as_ref().map_or(0, |app| self.source.bytes + app.engine.status().memory_bytes)
    }

    /// When it was used last, where it could go now.
    fn idle_since(&self) -> Option<Instant> {
        let mut state = self.state();
        let app = state.app.as_ref().filter(|_| !state.stays)?;
        if in_use(app) {
            state.used = Some(Instant::now());
            return None;
        }
        state.used
    }

    /// Takes it out, if it still could go.
    fn take(&self) -> Option<Arc<App>> {
        let mut state = self.state();
        state.app.take_if(|app| !in_use(app))
    }
}

/// Whether a request has it. Whoever takes one more does so under the lock of the model's state. The jobs of an engine that has ended
/// will not run.
fn in_use(app: &Arc<App>) -> bool {
    Arc::strong_count(app) > 1 || (app.engine.is_alive() && app.metrics.jobs() > 0)
}

impl Fleet {
    /// Models of which none is loaded.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none, or two have the same name.
    pub fn new(options: ServeOptions, limits: FleetOptions, sources: Vec<Source>) -> Result<Fleet> {
        if sources.is_empty() {
            return Err(Error::Invalid("there is no model to serve".into()));
        }
        let twice = |(i, s): &(usize, &Source)| sources[..*i].iter().any(|other| other.name == s.name);
        if let Some((_, s)) = sources.iter().enumerate().find(twice) {
            return Err(Error::Invalid(format!("two models have the name {:?}", s.name)));
        }
        let entry = |source| {
            let (metrics, state, beside) = (Arc::default(), Mutex::default(), AtomicU64::default());
            Arc::new(Entry { source, metrics, created: now(), beside, state })
        };
        Ok(Fleet::with(options, limits, sources.into_iter().map(entry).collect()))
    }

    /// One model that is loaded, and stays so.
    pub fn of(app: Arc<App>) -> Fleet {
        let gone = |_| Err(Error::Invalid("this model cannot be loaded again".into()));
        let source = Source { name: app.options.name.clone(), bytes: 0, load: Arc::new(gone) };
        let (options, metrics, created) = (app.options.clone(), app.metrics.clone(), app.model.created);
        let state = Mutex::new(State { app: Some(app), used: None, stays: true });
        let entry = Entry { source, metrics, created, beside: AtomicU64::default(), state };
        Fleet::with(options, FleetOptions::default(), vec![Arc::new(entry)])
    }

    fn with(options: ServeOptions, limits: FleetOptions, models: Vec<Arc<Entry>>) -> Fleet {
        Fleet {
            options,
            draining: AtomicBool::new(false),
            limits,
            models,
            loading: Arc::default(),
            waiting: AtomicUsize::new(0),
            ids: Ids::default(),
        }
    }

    /// The model of this name, or any, where it is loaded.
    ///
    /// # Errors
    /// 404 for an unknown name, 503 where it is not loaded.
    pub fn loaded(&self, name: Option<&str>) -> ApiResult<Arc<App>> {
        if let Some(name) = name.filter(|name| !self.models.iter().any(|e| e.source.name == *name)) {
            return Err(ApiError::no_model(name));
        }
        let mut wanted = self.models.iter().filter(|e| name.is_none_or(|name| e.source.name == name));
        wanted.find_map(|e| e.state().app.clone()).ok_or_else(|| {
            let message = "this model is not loaded now: a request for an answer loads it";
            ApiError { code: Some("model_not_loaded"), ..ApiError::new(503, message) }
        })
    }

    /// All models.
    pub fn standing(&self) -> Vec<Standing> {
        let of =
            |e: &Arc<Entry>| Standing { name: e.source.name.clone(), created: e.created, app: e.state().app.clone() };
        self.models.iter().map(of).collect()
    }

    /// The metrics of each, with its name where there are several.
    pub fn metrics(&self) -> Vec<(Option<&str>, &Metrics)> {
        let several = self.models.len() > 1;
        self.models.iter().map(|e| (several.then_some(e.source.name.as_str()), &*e.metrics)).collect()
    }

    /// The model of this name, or the first one. It is loaded where it is not; a client that goes away meanwhile does not stop that.
    ///
    /// # Errors
    /// 404 for an unknown name, 429 where too many wait, 503 where it cannot be loaded or the server ends.
    pub async fn app(self: &Arc<Self>, name: Option<&str>) -> ApiResult<Arc<App>> {
        let entry = match name {
            None => self.models.first(),
            Some(name) => self.models.iter().find(|e| e.source.name == name),
        };
        let entry = entry.ok_or_else(|| ApiError::no_model(name.unwrap_or_default()))?;
        if let Some(app) = entry.app() {
            return Ok(app);
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(ending());
        }
        let place = Place::take(self)?;
        let (fleet, entry) = (self.clone(), entry.clone());
        let loading = tokio::spawn(async move {
            let loaded = fleet.load(&entry).await;
            drop(place);
            loaded
        });
        loading.await.unwrap_or_else(|e| Err(ApiError::new(500, format!("a model could not be loaded: {e}"))))
    }

    async fn load(&self, entry: &Arc<Entry>) -> ApiResult<Arc<App>> {
        let _one = self.loading.clone().lock_owned().await;
        // Somebody else may have loaded it meanwhile.
        if let Some(app) = entry.app() {
            return Ok(app);
        }
        drop_elsewhere(entry.take()).await;
        self.make_room(self.expected(entry)).await?;
        loop {
            if self.draining.load(Ordering::Relaxed) {
                return Err(ending());
            }
            tracing::info!("loading {}", entry.source.name);
            let (load, metrics) = (entry.source.load.clone(), entry.metrics.clone());
            let loaded = tokio::task::spawn_blocking(move || load(metrics)).await;
            let failed = |why: String| {
                tracing::error!("{} could not be loaded: {why}", entry.source.name);
                let message = format!("the model {:?} could not be loaded: {why}", entry.source.name);
                ApiError { code: Some("model_not_loaded"), ..ApiError::new(503, message) }
            };
            match loaded.map_err(|e| failed(e.to_string()))? {
                Ok(app) => {
                    let app = Arc::new(app);
                    entry.beside.store(app.engine.status().memory_bytes, Ordering::Relaxed);
                    let mut state = entry.state();
                    (state.app, state.used) = (Some(app.clone()), Some(Instant::now()));
                    drop(state);
                    if self.draining.load(Ordering::Relaxed) {
                        app.engine.close();
                    }
                    return Ok(app);
                }
                // The device may have less room than was thought.
                Err(e @ Error::Device(_)) if self.unload_oldest().await => {
                    tracing::info!("{e}; another model has gone")
                }
                Err(e) => return Err(failed(e.to_string())),
            }
        }
    }

    /// Bytes that a model will take: with caches as large as last time, or before the first time as the largest of the others.
    fn expected(&self, entry: &Entry) -> u64 {
        let beside = |e: &Entry| e.beside.load(Ordering::Relaxed);
        let most = || self.models.iter().map(|e| beside(e)).max().unwrap_or(0);
        entry.source.bytes + Some(beside(entry)).filter(|n| *n > 0).unwrap_or_else(most)
    }

    /// Unloads models that nobody uses until so many bytes fit; waits some time for those in use.
    async fn make_room(&self, bytes: u64) -> ApiResult<()> {
        let Some(most) = self.limits.memory else { return Ok(()) };
        let begin = Instant::now();
        loop {
            let taken: u64 = self.models.iter().map(|e| e.taken()).sum();
            if taken == 0 || taken.saturating_add(bytes) <= most {
                return Ok(());
            }
            if self.draining.load(Ordering::Relaxed) {
                return Err(ending());
            }
            if !self.unload_oldest().await {
                if begin.elapsed() > PATIENCE {
                    let message = "the models that are loaded are in use, and there is no memory for another one";
                    let code = Some("model_not_loaded");
                    return Err(ApiError { code, retry_after: Some(10), ..ApiError::new(503, message) });
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Unloads the model that has been idle longest; `false` where all are in use.
    async fn unload_oldest(&self) -> bool {
        let idle = self.models.iter().filter_map(|e| Some((e.idle_since()?, e)));
        let Some((_, entry)) = idle.min_by_key(|i| i.0) else { return false };
        entry.unload().await
    }

    /// Unloads what has been idle for as long as the operator said.
    pub async fn unload_idle(&self) {
        let Some(most) = self.limits.idle else { return };
        // Memory is free only when a model is gone, so that none is loaded meanwhile.
        let Ok(_one) = self.loading.try_lock() else { return };
        for entry in &self.models {
            if entry.idle_since().is_some_and(|since| since.elapsed() >= most) {
                entry.unload().await;
            }
        }
    }

    /// Takes no more work; what runs may finish.
    pub fn close(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.models.iter().filter_map(|e| e.state().app.clone()).for_each(|app| app.engine.close());
    }

    /// Whether answers can be given.
    pub fn is_healthy(&self) -> bool {
        let stays_and_lost = |e: &Arc<Entry>| {
            let state = e.state();
            state.stays && !state.app.as_ref().is_some_and(|app| app.engine.is_alive())
        };
        !self.draining.load(Ordering::Relaxed) && !self.models.iter().any(stays_and_lost)
    }

    /// An id that no other request has.
    pub fn request_id(&self) -> String {
        self.ids.id("req_")
    }
}

impl Entry {
    async fn unload(&self) -> bool {
        let app = self.take();
        let gone = app.is_some();
        if gone {
            tracing::info!("unloading {}", self.source.name);
        }
        drop_elsewhere(app).await;
        gone
    }
}

/// An engine waits for its thread when it goes.
async fn drop_elsewhere(app: Option<Arc<App>>) {
    if let Some(app) = app
        && let Err(e) = tokio::task::spawn_blocking(move || drop(app)).await
    {
        tracing::error!("a model could not be unloaded: {e}");
    }
}

fn ending() -> ApiError {
    ApiError { retry_after: Some(5), ..ApiError::new(503, "the server is shutting down") }
}

/// A place among those that wait for a model.
struct Place(Arc<Fleet>);

impl Place {
    fn take(fleet: &Arc<Fleet>) -> ApiResult<Place> {
        let before = fleet.waiting.fetch_add(1, Ordering::Relaxed);
        let place = Place(fleet.clone());
        match before <= fleet.options.engine.queue {
            true => Ok(place),
            false => Err(ApiError {
                retry_after: Some(10),
                code: Some("queue_full"),
                ..ApiError::new(429, "too many requests wait for models to be loaded; try again in 10 s")
            }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}
