//! Weights to the device, and the loaded model.

use super::{RunOptions, device::Gpu, runner::GpuRunner};
use crate::{
    backend::{Loaded, Program, Progress, Runner, RunnerOptions},
    error::{Error, Result},
    graph,
    ir::Graph,
    plan::{self, Matrix, Segment, VectorPart, Weights},
    quant::{self, gpu},
};
use std::sync::Arc;

/// Bytes handed to the queue at once; it copies them.
const PIECE: usize = 16 << 20;

/// Bytes after which the queue is waited for, so that its copies stay bounded.
const IN_FLIGHT: usize = 64 << 20;

/// Weights on a device. Shared by runners.
pub(super) struct Placed {
    pub gpu: Gpu,
    pub graph: Graph,
    pub weights: Weights,
    pub run: RunOptions,
    /// Of each matrix, its segments.
    pub matrices: Vec<Vec<wgpu::Buffer>>,
    pub vectors: wgpu::Buffer,
    pub zero: wgpu::Buffer,
}

/// A model on a device.
pub(super) struct Model {
    placed: Arc<Placed>,
}

impl Model {
    pub fn new(gpu: Gpu, program: &Program, run: RunOptions, progress: &mut dyn FnMut(Progress)) -> Result<Self> {
        let graph = if run.fuse { graph::fuse(&program.graph) } else { (*program.graph).clone() };
        let dtypes: Vec<_> = program.weights.iter().map(|t| t.dtype()).collect();
        let weights = plan::weights(&graph, &dtypes, &gpu.caps)?;
        // What no runner could run is refused before anything is sent: the smallest plan must work.
        plan::plan(&graph, &weights, &gpu.caps, &plan::Options { style: run.style, ..smallest() })?;
        let mut up = Uploader { gpu: &gpu, total: weights.bytes(), done: 0, in_flight: 0, words: vec![], progress };
        up.report();
        let mut matrices = Vec::with_capacity(weights.matrices.len());
        for m in &weights.matrices {
            let segments = m.segments.iter().map(|s| up.segment(program, m, s)).collect::<Result<_>>()?;
            matrices.push(segments);
        }
        let vectors = up.vectors(program, &weights)?;
        let zero = gpu.buffer("zeros", plan::ZERO_BYTES, wgpu::BufferUsages::STORAGE)?;
        up.wait()?;
        Ok(Model { placed: Arc::new(Placed { graph, weights, run, matrices, vectors, zero, gpu }) })
    }
}

fn smallest() -> plan::Options {
    plan::Options::new(1, 1, crate::backend::KvType::F16)
}

impl Loaded for Model {
    fn describe(&self) -> String {
        format!("wgpu ({})", self.placed.gpu.name())
    }

    fn runner(&self, options: RunnerOptions) -> Result<Box<dyn Runner>> {
        if options.ctx == 0 || options.chunk == 0 {
            return Err(Error::Invalid("a context and a chunk have at least one token".into()));
        }
        Ok(Box::new(GpuRunner::new(self.placed.clone(), options)?))
    }

    fn weight_bytes(&self) -> u64 {
        self.placed.weights.bytes()
    }
}

struct Uploader<'a> {
    gpu: &'a Gpu,
    total: u64,
    done: u64,
    in_flight: usize,
    /// The segment that is being packed: the only copy of weights in host memory, one segment at most.
    words: Vec<u32>,
    progress: &'a mut dyn FnMut(Progress),
}

impl Uploader<'_> {
    fn report(&mut self) {
        (self.progress)(Progress { phase: "weights to the GPU", done: self.done, total: self.total });
    }

    fn segment(&mut self, program: &Program, m: &Matrix, s: &Segment) -> Result<wgpu::Buffer> {
        let words = gpu::words(m.dtype, s.rows, m.cols);
        self.words.clear();
        self.words.resize(words, 0);
        // Rows of the segment lie in several tensors, and in several parts of these.
        let mut row = s.row0;
        while row < s.row0 + s.rows {
            let bytes = run_of_rows(program, m, row, s.row0 + s.rows - row)?;
            gpu::pack_rows(m.dtype, s.rows, m.cols, row - s.row0, bytes.0, &mut self.words)?;
            row += bytes.1;
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let buffer = self.gpu.buffer(&m.name, s.bytes, usage)?;
        let words = std::mem::take(&mut self.words);
        self.send(&buffer, bytemuck::cast_slice(&words))?;
        self.words = words;
        Ok(buffer)
    }

    fn vectors(&mut self, program: &Program, weights: &Weights) -> Result<wgpu::Buffer> {
        let mut all = vec![0f32; weights.vector_bytes as usize / 4];
        for v in &weights.vectors {
            let mut at = v.offset as usize / 4;
            for part in &v.parts {
                at += match part {
                    VectorPart::Zeros(n) => *n,
                    VectorPart::Weight(w) => {
                        let t = &program.weights[w.0 as usize];
                        for r in 0..t.rows() {
                            let out = &mut all[at + r * t.cols()..at + (r + 1) * t.cols()];
                            quant::dequantize(t.dtype(), t.row(r), out)?;
                        }
                        t.rows() * t.cols()
                    }
                };
            }
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST;
        let buffer = self.gpu.buffer("norms and biases", weights.vector_bytes, usage)?;
        self.send(&buffer, bytemuck::cast_slice(&all))?;
        Ok(buffer)
    }

    fn send(&mut self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
        for (i, piece) in bytes.chunks(PIECE).enumerate() {
            self.gpu.queue.write_buffer(buffer, (i * PIECE) as u64, piece);
            self.in_flight += piece.len();
            self.done += piece.len() as u64;
            if self.in_flight >= IN_FLIGHT {
                self.wait()?;
                self.report();
            }
        }
        self.report();
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let submission = self.gpu.queue.submit([]);
        self.in_flight = 0;
        self.gpu.wait(Some(submission))
    }
}

/// The bytes of rows from `row` of the stacked matrix on, as many as lie together, at most `most`; and how many they are.
fn run_of_rows<'a>(program: &'a Program, m: &Matrix, row: usize, most: usize) -> Result<(&'a [u8], usize)> {
    let mut first = 0;
    for w in &m.parts {
        let t = &program.weights[w.0 as usize];
        if row < first + t.rows() {
            let (part, at) = ((row - first) / t.rows_per_part(), (row - first) % t.rows_per_part());
            let rows = most.min(t.rows_per_part() - at);
            let bytes = t.parts()[part].get(at * t.row_bytes()..(at + rows) * t.row_bytes());
            return bytes.map(|b| (b, rows)).ok_or_else(|| Error::Model(format!("{} is too short", m.name)));
        }
        first += t.rows();
    }
    Err(Error::Model(format!("{} has no row {row}", m.name)))
}
