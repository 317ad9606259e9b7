//! Results of `bench` in llama-bench's words, as a table, Markdown, JSON or CSV.

use super::args::Format;
use serde::Serialize;
use std::{
    io::{self, Write},
    time::Duration,
};

/// One test. The field names and their order are those of llama-bench's JSON (`tools/llama-bench/llama-bench.cpp`); what
/// follows `samples_ts` is ours.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Version of the program.
    pub build_commit: String,
    /// Name of the processor.
    pub cpu_info: String,
    /// Name of the GPU, where one computed.
    pub gpu_info: String,
    /// `cpu`, `wgpu` or `reference`.
    pub backends: String,
    /// The file, or the synthetic model's name.
    pub model_filename: String,
    /// Architecture and weight type.
    pub model_type: String,
    /// Bytes of weights.
    pub model_size: u64,
    /// Number of weights.
    pub model_n_params: u64,
    /// Most tokens of one step.
    pub n_batch: usize,
    /// The same: a step is not split further.
    pub n_ubatch: usize,
    /// Threads of the cpu backend.
    pub n_threads: usize,
    /// Storage of keys.
    pub type_k: String,
    /// Storage of values.
    pub type_v: String,
    /// Tokens of the prompt; 0 in a test of generation.
    pub n_prompt: usize,
    /// Tokens generated; 0 in a test of the prompt.
    pub n_gen: usize,
    /// Tokens in the context before the test.
    pub n_depth: usize,
    /// When the test began, UTC, ISO 8601.
    pub test_time: String,
    /// Mean time of a repetition.
    pub avg_ns: u64,
    /// Its standard deviation.
    pub stddev_ns: u64,
    /// Mean speed, tokens a second.
    pub avg_ts: f64,
    /// Its standard deviation.
    pub stddev_ts: f64,
    /// Time of every repetition.
    pub samples_ns: Vec<u64>,
    /// Speed of every repetition.
    pub samples_ts: Vec<f64>,
    /// Sequences that generated side by side.
    pub n_seq: usize,
    /// The text whose tokens were fed; none for random ones.
    pub text: Option<String>,
    /// The preset whose shape was measured with random weights; none for a real model.
    pub preset: Option<String>,
    /// Transformer layers.
    pub n_layers: usize,
    /// Bytes of weights that one generated token reads.
    pub bytes_per_token: u64,
    /// Bytes of keys and values that a token of this test reads at its place, on average.
    pub kv_bytes_per_token: u64,
    /// Bandwidth of memory, bytes a second, measured in this run: of reading on the cpu backend, of copying on a GPU.
    pub read_bandwidth: Option<f64>,
    /// Speed of generation in percent of what that bandwidth allows.
    pub roofline_percent: Option<f64>,
    /// Seconds of an empty dispatch that waits for the one before it; only on a GPU.
    pub dispatch_seconds: Option<f64>,
    /// Slots of each layer's experts; none where these have no slots.
    pub expert_slots: Option<usize>,
    /// Experts that were found in slots, in percent, in a test of generation by one sequence.
    pub expert_hits_percent: Option<f64>,
    /// Bytes of experts that were copied to slots for a token, in such a test.
    pub expert_bytes_per_token: Option<f64>,
    /// Time of every kernel (op, on the cpu backend) in one step, with `--profile`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<Kernel>,
}

/// A kernel of a profiled step.
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    /// Its variant.
    pub kernel: String,
    /// The op.
    pub op: &'static str,
    /// How many.
    pub dispatches: usize,
    /// Time of all of them.
    pub ns: u64,
    /// Bytes that they have to move at least.
    pub bytes: u64,
}

/// Mean and sample standard deviation.
pub fn mean_deviation(x: &[f64]) -> (f64, f64) {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let squares: f64 = x.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, if x.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 })
}

impl Row {
    /// `pp512`, `tg128`, with ` x 8` where there are several sequences and ` @ d4096` where there is a depth.
    pub fn test(&self) -> String {
        let name = match (self.n_prompt, self.n_gen) {
            (p, 0) => format!("pp{p}"),
            (0, n) => format!("tg{n}"),
            (p, n) => format!("pp{p}+tg{n}"),
        };
        let name = if self.n_seq > 1 { format!("{name} x {}", self.n_seq) } else { name };
        if self.n_depth > 0 { format!("{name} @ d{}", self.n_depth) } else { name }
    }

    /// Fills the times and speeds from the repetitions.
    pub fn set_samples(&mut self, times: &[Duration]) {
        let tokens = ((self.n_prompt + self.n_gen) * self.n_seq) as f64;
        self.samples_ns = times.iter().map(|t| t.as_nanos() as u64).collect();
        self.samples_ts = times.iter().map(|t| tokens / t.as_secs_f64().max(1e-9)).collect();
        let ns: Vec<f64> = self.samples_ns.iter().map(|n| *n as f64).collect();
        let (avg, dev) = mean_deviation(&ns);
        (self.avg_ns, self.stddev_ns) = (avg as u64, dev as u64);
        (self.avg_ts, self.stddev_ts) = mean_deviation(&self.samples_ts);
    }

    fn cells(&self) -> [String; 8] {
        let gib = self.model_size as f64 / f64::from(1 << 30);
        let size = if gib >= 1.0 { format!("{gib:.2} GiB") } else { format!("{:.2} MiB", gib * 1024.0) };
        let params = self.model_n_params as f64;
        let params = if params >= 1e9 { format!("{:.2} B", params / 1e9) } else { format!("{:.2} M", params / 1e6) };
        [
            self.model_type.clone(),
            size,
            params,
            self.backends.clone(),
            self.n_threads.to_string(),
            self.test(),
            format!("{:.2} ± {:.2}", self.avg_ts, self.stddev_ts),
            self.roofline_percent.map_or("-".into(), |p| format!("{p:.0} %")),
        ]
    }
}

const HEADS: [&str; 8] = ["model", "size", "params", "backend", "threads", "test", "t/s", "of roofline"];

/// Writes all rows in the wanted form.
pub fn write(out: &mut dyn Write, format: Format, rows: &[Row]) -> io::Result<()> {
    match format {
        Format::Table => screen(out, rows),
        Format::Md => table(out, rows, &[0, 1, 2, 3, 4, 5, 6, 7], true),
        Format::Json => {
            serde_json::to_writer_pretty(&mut *out, rows)?;
            writeln!(out)
        }
        Format::Jsonl => rows.iter().try_for_each(|r| {
            serde_json::to_writer(&mut *out, r)?;
            writeln!(out)
        }),
        Format::Csv => csv(out, rows),
    }
}

/// A table for a terminal of 80 columns: what all rows have in common stands above it.
fn screen(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    let Some((first, more)) = rows.split_first() else { return Ok(()) };
    writeln!(out, "{}", first.model_filename)?;
    let cells = first.cells();
    writeln!(out, "{}, {}, {} parameters", cells[0], cells[1], cells[2])?;
    let same = |i: usize| more.iter().all(|r| r.cells()[i] == cells[i]);
    if same(3) && same(4) {
        writeln!(out, "{}, {} threads\n", cells[3], cells[4])?;
        return table(out, rows, &[5, 6, 7], false);
    }
    writeln!(out)?;
    table(out, rows, &[3, 4, 5, 6, 7], false)
}

/// The columns with these numbers.
fn table(out: &mut dyn Write, rows: &[Row], columns: &[usize], markdown: bool) -> io::Result<()> {
    let cells: Vec<[String; 8]> = rows.iter().map(Row::cells).collect();
    let width: [usize; 8] =
        std::array::from_fn(|i| cells.iter().map(|c| c[i].chars().count()).chain([HEADS[i].len()]).max().unwrap_or(0));
    let mut line = |cells: [&str; 8]| {
        let pad = |i: &usize| match *i {
            i if i < 4 => format!("{:<w$}", cells[i], w = width[i]),
            i => format!("{:>w$}", cells[i], w = width[i]),
        };
        let padded: Vec<String> = columns.iter().map(pad).collect();
        if markdown {
            writeln!(out, "| {} |", padded.join(" | "))
        } else {
            writeln!(out, "{}", padded.join("  ").trim_end())
        }
    };
    line(HEADS)?;
    let rules: [String; 8] = std::array::from_fn(|i| {
        let dashes = "-".repeat(width[i]);
        if markdown && i >= 4 { format!("{}:", &dashes[1..]) } else { dashes }
    });
    line(std::array::from_fn(|i| rules[i].as_str()))?;
    cells.iter().try_for_each(|c| line(std::array::from_fn(|i| c[i].as_str())))
}

fn csv(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    for (i, row) in rows.iter().enumerate() {
        let serde_json::Value::Object(fields) = serde_json::to_value(row)? else { continue };
        // The lists of samples have no place in a table of single values; llama-bench leaves them out too.
        let fields: Vec<_> = fields.iter().filter(|(_, v)| !v.is_array()).collect();
        if i == 0 {
            writeln!(out, "{}", fields.iter().map(|(k, _)| k.as_str()).collect::<Vec<_>>().join(","))?;
        }
        let values = fields.iter().map(|(_, v)| match v {
            serde_json::Value::String(s) => format!("\"{}\"", s.replace('"', "\"\"")),
            serde_json::Value::Null => String::new(),
            other => other.to_string(),
        });
        writeln!(out, "{}", values.collect::<Vec<_>>().join(","))?;
    }
    Ok(())
}

/// The kernels of each row that has them: share of the time, bandwidth, and that in percent of the roofline.
pub fn kernels(out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
    for row in rows.iter().filter(|r| !r.kernels.is_empty()) {
        let total: u64 = row.kernels.iter().map(|k| k.ns).sum();
        writeln!(out, "\n{} kernel by kernel, {:.3} ms in one step:", row.test(), total as f64 / 1e6)?;
        writeln!(out, "{:>9}  {:>5}  {:>4}  {:>9}  {:>7}  {:>8}  kernel", "ms", "share", "n", "MB", "GB/s", "of roof")?;
        let mut sorted: Vec<&Kernel> = row.kernels.iter().collect();
        sorted.sort_by_key(|k| std::cmp::Reverse(k.ns));
        for k in sorted {
            let speed = k.bytes as f64 / k.ns.max(1) as f64;
            let share = row.read_bandwidth.map_or("-".into(), |b| format!("{:.0} %", 100.0 * speed * 1e9 / b));
            writeln!(
                out,
                "{:>9.3}  {:>4.0}%  {:>4}  {:>9.2}  {speed:>7.1}  {share:>8}  {} ({})",
                k.ns as f64 / 1e6,
                100.0 * k.ns as f64 / total.max(1) as f64,
                k.dispatches,
                k.bytes as f64 / 1e6,
                k.kernel,
                k.op
            )?;
        }
    }
    Ok(())
}

/// Seconds since 1970.
pub fn seconds_now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs())
}

/// Seconds since 1970 as `2025-01-31T12:00:00Z`.
pub fn utc(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|s| chrono::DateTime::from_timestamp(s, 0)).unwrap_or_default();
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_deviations() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(utc(1_735_689_599), "2024-12-31T23:59:59Z");
        let (mean, deviation) = mean_deviation(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert!((mean - 5.0).abs() < 1e-12 && (deviation - (32.0f64 / 7.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean_deviation(&[3.0]), (3.0, 0.0));
    }
}
