//! The load of experts: counted only while somebody looks at it, for the choices of routers stay on the device otherwise.

use crate::{backend::Output, ir::Graph, routing::Trace};
use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// Seconds for which a look makes the next steps count.
const LOOKED_AT: u64 = 20;
/// Tokens that are looked back at.
const TOKENS: usize = 512;

/// How often each expert of a layer was chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerLoad {
    /// The layer's number.
    pub layer: usize,
    /// Times that each expert was chosen.
    pub load: Vec<u64>,
}

/// The load over the last tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertLoad {
    /// Experts that a token takes.
    pub used: usize,
    /// Tokens that were counted.
    pub tokens: usize,
    /// Layers with experts.
    pub layers: Vec<LayerLoad>,
}

/// What the engine's thread and its clients both see.
#[derive(Debug)]
pub(super) struct Experts {
    begin: Instant,
    /// Seconds after `begin` until which steps are counted.
    until: AtomicU64,
    window: Option<Mutex<Window>>,
}

/// The choices of the last steps.
#[derive(Debug)]
struct Window {
    trace: Trace,
    steps: VecDeque<(usize, Vec<Vec<u64>>)>,
}

impl Experts {
    /// Of a graph; without a window where it has no experts, or does not give out its routers' choices.
    pub(super) fn new(graph: &Graph) -> Self {
        let window = Trace::new(graph).map(|trace| Mutex::new(Window { trace, steps: VecDeque::new() }));
        Experts { begin: Instant::now(), until: AtomicU64::new(0), window }
    }

    /// Whether the next step is to be counted.
    pub(super) fn are_wanted(&self) -> bool {
        self.window.is_some() && self.begin.elapsed().as_secs() < self.until.load(Ordering::Relaxed)
    }

    /// Counts a step.
    pub(super) fn count(&self, outputs: &[Output]) {
        let Some(window) = &self.window else { return };
        let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
        let Window { trace, steps } = &mut *window;
        if let Err(e) = trace.push(outputs) {
            return tracing::warn!("the load of experts could not be counted: {e}");
        }
        steps.push_back((trace.tokens(), trace.loads().into_iter().map(|l| l.counts).collect()));
        trace.truncate(0);
        let mut tokens: usize = steps.iter().map(|s| s.0).sum();
        while let Some(first) = steps.front().filter(|s| tokens - s.0 >= TOKENS) {
            tokens -= first.0;
            steps.pop_front();
        }
    }

    /// The load so far; from now on steps are counted for some time.
    pub(super) fn look(&self) -> Option<ExpertLoad> {
        let window = self.window.as_ref()?;
        self.until.store(self.begin.elapsed().as_secs() + LOOKED_AT, Ordering::Relaxed);
        let window = window.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = |l: &crate::routing::LayerTrace| LayerLoad { layer: l.layer, load: vec![0; l.experts] };
        let mut layers: Vec<LayerLoad> = window.trace.layers().iter().map(empty).collect();
        for (_, step) in &window.steps {
            for (layer, counts) in layers.iter_mut().zip(step) {
                layer.load.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n);
            }
        }
        let used = window.trace.layers().first().map_or(0, |l| l.used);
        Some(ExpertLoad { used, tokens: window.steps.iter().map(|s| s.0).sum(), layers })
    }
}
