//! Counters, gauges and histograms, and their text in the format of Prometheus
//! ([exposition format 0.0.4](https://prometheus.io/docs/instrumenting/exposition_formats/)).
//!
//! All of it is atomic numbers: whoever reads `/metrics` waits for nobody.

use crate::generate::FinishReason;
use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// Upper bounds of a histogram of seconds, from half a millisecond to minutes.
const SECONDS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

/// A histogram of seconds.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Of each bound, and of what is beyond the last.
    counts: [AtomicU64; SECONDS.len() + 1],
    /// Nanoseconds.
    sum: AtomicU64,
}

impl Histogram {
    /// Takes in a time.
    pub fn observe(&self, seconds: f64) {
        let seconds = seconds.max(0.0);
        let at = SECONDS.partition_point(|bound| *bound < seconds);
        self.counts[at].fetch_add(1, Relaxed);
        self.sum.fetch_add((seconds * 1e9) as u64, Relaxed);
    }

    fn count(&self) -> u64 {
        self.counts.iter().map(|c| c.load(Relaxed)).sum()
    }

    fn seconds(&self) -> f64 {
        self.sum.load(Relaxed) as f64 / 1e9
    }
}

/// How jobs end, as the label `outcome` says.
const OUTCOMES: [&str; 6] = ["stop", "length", "client_disconnected", "error", "refused", "embedding"];

/// How beginnings are copied, as the label `way` says.
const COPIES: [&str; 3] = ["sequence", "store", "fetch"];

/// Which names the metrics have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Style {
    /// `moeray_…`.
    #[default]
    Moeray,
    /// The names of llama-server, for dashboards made for it: `llamacpp:…`.
    LlamaCpp,
}

/// What a server counts.
#[derive(Debug, Default)]
pub struct Metrics {
    jobs: AtomicUsize,
    running: AtomicUsize,
    cache_tokens: AtomicUsize,
    cache_capacity: AtomicUsize,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    prefix_queries: AtomicU64,
    prefix_hits: AtomicU64,
    store_bytes: AtomicU64,
    store_evicted: AtomicU64,
    steps: AtomicU64,
    rows: [AtomicU64; 2],
    busy_nanos: [AtomicU64; 2],
    outcomes: [AtomicU64; OUTCOMES.len()],
    /// From a request to its first token.
    pub first_token: Histogram,
    /// Between two tokens of an answer.
    pub inter_token: Histogram,
    /// From a request to its end.
    pub request: Histogram,
    /// From a request to its sequence.
    pub queue: Histogram,
    /// Of a step.
    pub step: Histogram,
    /// Of copies of beginnings: between sequences, to the prefix cache, from it.
    copies: [Histogram; COPIES.len()],
}

impl Metrics {
    /// Jobs that wait or run.
    pub fn jobs(&self) -> usize {
        self.jobs.load(Relaxed)
    }

    /// Jobs came.
    pub fn submitted(&self, n: usize) {
        self.jobs.fetch_add(n, Relaxed);
    }

    /// Jobs went without a word.
    pub fn ended(&self, n: usize) {
        self.jobs.fetch_sub(n, Relaxed);
    }

    /// A request was not taken.
    pub fn refused(&self) {
        self.outcomes[4].fetch_add(1, Relaxed);
    }

    /// A job ended, so many seconds after its request.
    pub fn finished(&self, reason: FinishReason, seconds: f64) {
        let outcome = match reason {
            FinishReason::EndOfText(_) | FinishReason::StopString(_) | FinishReason::StopToken(_) => 0,
            FinishReason::MaxTokens | FinishReason::ContextFull => 1,
            FinishReason::Cancelled => 2,
            FinishReason::Failed => 3,
        };
        self.outcomes[outcome].fetch_add(1, Relaxed);
        self.request.observe(seconds);
        self.ended(1);
    }

    /// A job ended with a vector, so many seconds after its request.
    pub fn embedded(&self, seconds: f64) {
        self.outcomes[5].fetch_add(1, Relaxed);
        self.request.observe(seconds);
        self.ended(1);
    }

    /// A job begins: tokens of its prompt, and how many of them are there already.
    pub fn prompt(&self, tokens: usize, cached: usize) {
        self.prompt_tokens.fetch_add(tokens as u64, Relaxed);
        self.cached_tokens.fetch_add(cached as u64, Relaxed);
        self.prefix_queries.fetch_add(1, Relaxed);
        self.prefix_hits.fetch_add(u64::from(cached > 0), Relaxed);
    }

    /// A beginning was copied from one sequence to another.
    pub fn copied_from_sequence(&self, seconds: f64) {
        self.copies[0].observe(seconds);
    }

    /// A text that left its sequence was copied to the prefix cache.
    pub fn copied_to_store(&self, seconds: f64) {
        self.copies[1].observe(seconds);
    }

    /// A beginning was copied from the prefix cache to a sequence.
    pub fn copied_from_store(&self, seconds: f64) {
        self.copies[2].observe(seconds);
    }

    /// What the prefix cache holds, and how many of its nodes went for others.
    pub fn store(&self, bytes: usize, evicted: u64) {
        self.store_bytes.store(bytes as u64, Relaxed);
        self.store_evicted.store(evicted, Relaxed);
    }

    /// Tokens were generated.
    pub fn generated(&self, n: u64) {
        self.generated_tokens.fetch_add(n, Relaxed);
    }

    /// A step was done.
    pub fn step(&self, seconds: f64, generating: usize, prompt: usize) {
        self.step.observe(seconds);
        self.steps.fetch_add(1, Relaxed);
        let rows = (generating + prompt).max(1) as f64;
        for (i, n) in [generating, prompt].into_iter().enumerate() {
            self.rows[i].fetch_add(n as u64, Relaxed);
            self.busy_nanos[i].fetch_add((1e9 * seconds * n as f64 / rows) as u64, Relaxed);
        }
    }

    /// What the sequences hold.
    pub fn state(&self, running: usize, tokens: usize, capacity: usize) {
        self.running.store(running, Relaxed);
        self.cache_tokens.store(tokens, Relaxed);
        self.cache_capacity.store(capacity, Relaxed);
    }

    /// Seconds after which there may be room in the queue.
    pub fn wait_estimate(&self, sequences: usize) -> u64 {
        let mean = self.request.seconds() / self.request.count().max(1) as f64;
        let waiting = self.jobs().saturating_sub(sequences).max(1);
        (mean * waiting as f64 / sequences.max(1) as f64).ceil().clamp(1.0, 60.0) as u64
    }

    /// The text of all metrics.
    pub fn text(&self, style: Style) -> String {
        text(&[(None, self)], style)
    }
}

/// The text of the metrics of some models, each with its name where that is to be a label.
pub fn text(all: &[(Option<&str>, &Metrics)], style: Style) -> String {
    let mut out = Text { out: String::new(), style, all };
    let of = |n: &AtomicU64| n.load(Relaxed) as f64;
    let size = |n: &AtomicUsize| n.load(Relaxed) as f64;
    let seconds = |n: &AtomicU64| n.load(Relaxed) as f64 / 1e9;
    let help = "Texts that are being read or generated";
    out.gauge("requests_running", "requests_processing", help, |m| size(&m.running));
    out.gauge("requests_waiting", "requests_deferred", "Texts that wait for a sequence", |m| {
        m.jobs().saturating_sub(m.running.load(Relaxed)) as f64
    });
    out.counter("prompt_tokens_total", "", "Tokens of prompts, cached ones included", |m| of(&m.prompt_tokens));
    out.counter("prompt_tokens_cached_total", "", "Tokens of prompts that were cached", |m| of(&m.cached_tokens));
    let help = "Tokens of prompts that were read";
    out.counter("prefill_tokens_total", "prompt_tokens_total", help, |m| of(&m.rows[1]));
    let name = "tokens_predicted_total";
    out.counter("generated_tokens_total", name, "Tokens that were generated", |m| of(&m.generated_tokens));
    let (help, name) = ("Seconds of steps that went to prompts", "prompt_seconds_total");
    out.counter("prefill_seconds_total", name, help, |m| seconds(&m.busy_nanos[1]));
    let (help, name) = ("Seconds of steps that went to generating", "tokens_predicted_seconds_total");
    out.counter("decode_seconds_total", name, help, |m| seconds(&m.busy_nanos[0]));
    out.counter("steps_total", "n_decode_total", "Steps of the engine", |m| of(&m.steps));
    let (help, name) = ("Sequences that generate in a step, mean", "n_busy_slots_per_decode");
    out.gauge("decode_rows_per_step", name, help, |m| of(&m.rows[0]) / of(&m.steps).max(1.0));
    out.counter("prefix_cache_queries_total", "", "Prompts looked up in the cache", |m| of(&m.prefix_queries));
    let help = "Prompts of which a beginning was cached";
    out.counter("prefix_cache_hits_total", "", help, |m| of(&m.prefix_hits));
    let help = "Bytes of texts that left their sequences, in host memory";
    out.gauge("prefix_cache_bytes", "", help, |m| of(&m.store_bytes));
    let help = "Texts or ends of texts that were dropped for others";
    out.counter("prefix_cache_evictions_total", "", help, |m| of(&m.store_evicted));
    out.copies();
    let help = "Tokens in the KV caches of all sequences";
    out.gauge("kv_cache_tokens", "kv_cache_tokens", help, |m| size(&m.cache_tokens));
    let help = "Part of the KV caches that holds tokens";
    out.gauge("kv_cache_usage_ratio", "kv_cache_usage_ratio", help, |m| {
        size(&m.cache_tokens) / size(&m.cache_capacity).max(1.0)
    });
    out.outcomes();
    out.histogram("time_to_first_token_seconds", "From a request to its first token", |m| &m.first_token);
    out.histogram("inter_token_latency_seconds", "Between two tokens of an answer", |m| &m.inter_token);
    out.histogram("request_duration_seconds", "From a request to its end", |m| &m.request);
    out.histogram("queue_time_seconds", "From a request to its sequence", |m| &m.queue);
    out.histogram("step_seconds", "Of a step of the engine", |m| &m.step);
    out.out
}

struct Text<'a> {
    out: String,
    style: Style,
    all: &'a [(Option<&'a str>, &'a Metrics)],
}

/// Labels in braces; nothing where there are none.
fn labels(model: Option<&str>, more: &str) -> String {
    let model =
        model.map(|m| format!("model=\"{}\"", m.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")));
    let all: Vec<&str> = model.as_deref().into_iter().chain(Some(more).filter(|m| !m.is_empty())).collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

impl Text<'_> {
    /// Writes HELP and TYPE; gives the name. An empty name of llama.cpp: it has no such metric, and ours goes beside its own.
    fn head(&mut self, name: &str, llama: &str, help: &str, kind: &str) -> String {
        let name = match self.style {
            Style::Moeray => format!("moeray_{name}"),
            Style::LlamaCpp if llama.is_empty() => format!("llamacpp:moeray_{name}"),
            Style::LlamaCpp => format!("llamacpp:{llama}"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "# HELP {name} {help}.\n# TYPE {name} {kind}");
        name
    }

    fn counter(&mut self, name: &str, llama: &str, help: &str, value: impl Fn(&Metrics) -> f64) {
        self.values((name, llama, help, "counter"), value);
    }

    fn gauge(&mut self, name: &str, llama: &str, help: &str, value: impl Fn(&Metrics) -> f64) {
        self.values((name, llama, help, "gauge"), value);
    }

    fn values(&mut self, (name, llama, help, kind): (&str, &str, &str, &str), value: impl Fn(&Metrics) -> f64) {
        let name = self.head(name, llama, help, kind);
        for (model, m) in self.all {
            let _ = writeln!(self.out, "{name}{} {}", labels(*model, ""), value(m));
        }
    }

    fn outcomes(&mut self) {
        let name = self.head("requests_total", "", "Texts by how they ended", "counter");
        for (model, m) in self.all {
            for (outcome, n) in OUTCOMES.iter().zip(&m.outcomes) {
                let labels = labels(*model, &format!("outcome=\"{outcome}\""));
                let _ = writeln!(self.out, "{name}{labels} {}", n.load(Relaxed));
            }
        }
    }

    fn copies(&mut self) {
        let help = "Beginnings of texts copied: between sequences, to the prefix cache, from it";
        let name = self.head("prefix_copies_total", "", help, "counter");
        for (model, m) in self.all {
            for (way, h) in COPIES.iter().zip(&m.copies) {
                let _ = writeln!(self.out, "{name}{} {}", labels(*model, &format!("way=\"{way}\"")), h.count());
            }
        }
        let name = self.head("prefix_copy_seconds_total", "", "Seconds of these copies", "counter");
        for (model, m) in self.all {
            for (way, h) in COPIES.iter().zip(&m.copies) {
                let _ = writeln!(self.out, "{name}{} {}", labels(*model, &format!("way=\"{way}\"")), h.seconds());
            }
        }
    }

    fn histogram(&mut self, name: &str, help: &str, of: impl Fn(&Metrics) -> &Histogram) {
        let name = self.head(name, "", help, "histogram");
        for (model, m) in self.all {
            let h = of(m);
            // One reading of every number, so that the sums agree with each other.
            let counts: Vec<u64> = h.counts.iter().map(|c| c.load(Relaxed)).collect();
            let mut sum = 0;
            for (bound, n) in SECONDS.iter().zip(&counts) {
                sum += n;
                let _ = writeln!(self.out, "{name}_bucket{} {sum}", labels(*model, &format!("le=\"{bound}\"")));
            }
            let all: u64 = counts.iter().sum();
            let _ = writeln!(self.out, "{name}_bucket{} {all}", labels(*model, "le=\"+Inf\""));
            let plain = labels(*model, "");
            let _ = writeln!(self.out, "{name}_sum{plain} {}\n{name}_count{plain} {all}", h.seconds());
        }
    }
}
