//! Weights packed and streamed to the device.

use super::{RunOptions, device::Submission, expert_slots, gpu::Gpu};
use crate::{
    backend::{OnProgress, Program, Progress, host::HostExperts},
    error::{Error, Result},
    file::Tensor,
    graph,
    ir::Graph,
    kernels::Variant,
    plan::{self, Matrix, Segment, VectorPart, Weights},
    quant::{self, DType, KvType, gpu},
    threads,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

/// Bytes that a thread packs into one piece of staging memory.
const PIECE: usize = 4 << 20;

/// Bytes of a batch of pieces: two batches of staging memory are on their way at most.
const BATCH: usize = 32 << 20;

/// Bytes of a file that are packed at once: what stays in a core's cache.
const STRIDE: usize = 128 << 10;

/// Pieces begin at a multiple of so many rows: at a multiple of 4 bytes in every plane of every format.
const ALIGN_ROWS: usize = 32;

/// Most threads that pack.
const MOST_THREADS: usize = 16;

/// The weights of a program on a device. Shared by its runners.
pub(super) struct DeviceWeights {
    pub gpu: Gpu,
    pub graph: Graph,
    pub weights: Weights,
    pub run: RunOptions,
    /// Experts that the host computes, where the graph leaves it any.
    pub host: Option<Arc<dyn HostExperts>>,
    /// Segments of each matrix of the plan.
    pub matrices: Vec<Vec<wgpu::Buffer>>,
    pub vectors: wgpu::Buffer,
    pub zero: wgpu::Buffer,
}

impl DeviceWeights {
    /// The layout of the weights that a graph reads.
    pub fn layout(graph: &Graph, dtypes: &[DType], gpu: &Gpu, run: &RunOptions) -> Result<Weights> {
        match run.expert_slots {
            Some(_) => plan::weights_by_expert(graph, dtypes, gpu.caps()),
            None => plan::weights(graph, dtypes, gpu.caps()),
        }
    }

    /// The graph as it is planned.
    pub fn graph(graph: &Graph, run: &RunOptions) -> Graph {
        if run.fuse { graph::fuse(graph) } else { graph.clone() }
    }

    /// Plans the layout of the weights that a graph of a program reads, packs them and sends them to buffers made once.
    pub fn new(
        gpu: Gpu,
        program: &Program,
        (graph, host): (&Graph, Option<Arc<dyn HostExperts>>),
        run: RunOptions,
        progress: OnProgress<'_>,
    ) -> Result<Self> {
        let graph = Self::graph(graph, &run);
        let dtypes: Vec<_> = program.weights.iter().map(|t| t.dtype()).collect();
        let weights = Self::layout(&graph, &dtypes, &gpu, &run)?;
        // What no runner could run is refused before anything is sent: the smallest plan must work.
        let (reduction, expert_slots) = (run.reduction, run.expert_slots);
        let options = plan::Options { reduction, expert_slots, ..smallest() };
        plan::plan(&graph, &weights, &gpu.device.caps, &options)?;
        let away = expert_slots::read_from_host(&gpu, &weights, &run)?;
        gpu.check_weights(weights.bytes() - away.iter().map(|m| weights.matrices[*m as usize].bytes()).sum::<u64>())?;
        let total = weights.bytes();
        let mut up = Uploader::new(&gpu, total, progress);
        up.on_host = away;
        let kernels = first_kernels(&graph, &weights, &gpu, &run);
        // Drivers compile while the weights are on their way.
        let (matrices, vectors) = std::thread::scope(|s| {
            let compiling = s.spawn(|| gpu.pipelines.prepare(&gpu.device, kernels.iter()));
            let sent = up.everything(program, &weights);
            while sent.is_ok() && !compiling.is_finished() {
                up.waiting(gpu.pipelines.len().min(kernels.len()), kernels.len())?;
                std::thread::sleep(LOOK);
            }
            sent
        })?;
        let zero = gpu.device.buffer("zeros", plan::ZERO_BYTES, wgpu::BufferUsages::STORAGE)?;
        Ok(DeviceWeights { graph, weights, run, host, matrices, vectors, zero, gpu })
    }
}

/// How often a host hears how many kernels are compiled.
const LOOK: std::time::Duration = std::time::Duration::from_millis(10);

/// The kernels of a single token and of its choice, as most runners have them: one sequence, keys and values in f16. What a runner
/// wants beyond these is compiled when it is made.
fn first_kernels(graph: &Graph, weights: &Weights, gpu: &Gpu, run: &RunOptions) -> Vec<Variant> {
    let options = plan::Options {
        reduction: run.reduction,
        tiles: run.tiles,
        subgroups: run.subgroups,
        expert_slots: run.expert_slots,
        ..plan::Options::new(USUAL_CTX, 1, KvType::F16)
    };
    let Ok(plan) = plan::plan(graph, weights, &gpu.device.caps, &options) else { return vec![] };
    let picks = plan.sampling.iter().flat_map(|s| &s.steps[0]);
    let all = plan.decode.steps.iter().chain(picks).map(|s| (s.variant.label(), s.variant.clone()));
    all.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// A context that is long enough for every kernel of a token.
const USUAL_CTX: usize = 2048;

/// The smallest plan that there is.
fn smallest() -> plan::Options {
    plan::Options::new(1, 1, KvType::F16)
}

/// Sends weights, a few pieces at a time.
pub(super) struct Uploader<'a> {
    gpu: &'a Gpu,
    total: u64,
    done: u64,
    threads: usize,
    /// Bytes written since the last submission.
    batch: usize,
    last: Option<Submission>,
    progress: OnProgress<'a>,
    /// Matrices that kernels read in memory of the host.
    pub on_host: BTreeSet<u32>,
}

/// A segment on its way, with its planes.
struct Target<'a> {
    gpu: &'a Gpu,
    tensors: &'a [Tensor],
    matrix: &'a Matrix,
    segment: &'a Segment,
    buffer: &'a wgpu::Buffer,
    planes: [Range<usize>; 4],
    /// Bytes of a row in each plane.
    row: [usize; 4],
}

fn too_large(m: &Matrix) -> Error {
    Error::Model(format!("{} is too large", m.name))
}

impl<'a> Uploader<'a> {
    /// For `total` bytes, counted as files have them.
    pub fn new(gpu: &'a Gpu, total: u64, progress: OnProgress<'a>) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        Uploader { gpu, total, done: 0, threads, batch: 0, last: None, progress, on_host: BTreeSet::new() }
    }

    fn report(&mut self) -> Result<()> {
        (self.progress)(Progress { phase: "weights to the GPU", done: self.done, total: self.total })
    }

    /// Kernels are still being compiled.
    fn waiting(&mut self, done: usize, total: usize) -> Result<()> {
        (self.progress)(Progress { phase: "kernels for the GPU", done: done as u64, total: total as u64 })
    }

    /// Packs and sends all weights: the segments of each matrix, and the vectors.
    fn everything(&mut self, program: &Program, weights: &Weights) -> Result<(Vec<Vec<wgpu::Buffer>>, wgpu::Buffer)> {
        self.report()?;
        let mut matrices = Vec::with_capacity(weights.matrices.len());
        for (i, m) in (0..).zip(&weights.matrices) {
            let more =
                if self.on_host.contains(&i) { wgpu::BufferUsages::MAP_READ } else { wgpu::BufferUsages::empty() };
            let segment = |s: &Segment| self.segment_for(&program.weights, m, s, more);
            matrices.push(m.segments.iter().map(segment).collect::<Result<_>>()?);
        }
        let vectors = self.vectors(program, weights)?;
        self.finish()?;
        Ok((matrices, vectors))
    }

    /// Packs and sends a segment of a matrix, whose parts are of `tensors` by weight.
    pub fn segment(&mut self, tensors: &[Tensor], m: &Matrix, s: &Segment) -> Result<wgpu::Buffer> {
        self.segment_for(tensors, m, s, wgpu::BufferUsages::empty())
    }

    /// As [`Uploader::segment`], to a buffer that has more uses than kernels make of it.
    fn segment_for(
        &mut self,
        tensors: &[Tensor],
        m: &Matrix,
        s: &Segment,
        more: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | more;
        let buffer = self.gpu.device.buffer(&m.name, s.bytes, usage)?;
        let table: &[u8] = bytemuck::cast_slice(gpu::table(m.dtype));
        if !table.is_empty() {
            self.gpu.device.queue.write_buffer(&buffer, 0, table);
        }
        let planes = gpu::plane_ranges(m.dtype, s.rows, m.cols);
        let planes = planes.ok_or_else(|| too_large(m))?;
        let row = gpu::row_planes(m.dtype, m.cols);
        let row_bytes = row.iter().sum::<usize>().max(1);
        let target = Target { gpu: self.gpu, tensors, matrix: m, segment: s, buffer: &buffer, planes, row };
        let piece = (PIECE / row_bytes).max(1).next_multiple_of(ALIGN_ROWS);
        let pieces: Vec<Range<usize>> = (0..s.rows).step_by(piece).map(|r| r..(r + piece).min(s.rows)).collect();
        for batch in pieces.chunks((BATCH / (piece * row_bytes).max(1)).max(self.threads)) {
            target.pieces(batch, self.threads)?;
            let rows = batch.iter().map(Range::len).sum::<usize>();
            self.sent(rows * row_bytes)?;
        }
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
        let buffer = self.gpu.device.buffer("norms and biases", weights.vector_bytes, usage)?;
        self.gpu.device.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&all));
        self.sent(4 * all.len())?;
        Ok(buffer)
    }

    /// Counts what was handed to the queue; lets at most two batches be on their way.
    pub fn sent(&mut self, bytes: usize) -> Result<()> {
        self.done += bytes as u64;
        self.batch += bytes;
        if self.batch >= BATCH {
            self.batch = 0;
            let before = self.last.replace(self.gpu.device.submit([]));
            before.map_or(Ok(()), |b| self.gpu.device.wait(&b, "weights on their way"))?;
            self.report()?;
        }
        Ok(())
    }

    /// Waits for all that was sent.
    pub fn finish(&mut self) -> Result<()> {
        self.gpu.device.wait_idle("the last of the weights")?;
        self.done = self.total;
        self.report()
    }
}

impl Target<'_> {
    /// Packs pieces of rows, several threads taking them in turn.
    fn pieces(&self, pieces: &[Range<usize>], threads: usize) -> Result<()> {
        let device = &self.gpu.device;
        threads::for_each(threads.min(pieces.len()), pieces.iter(), Vec::new, |packed, p| {
            device.catching(|| self.piece(p.clone(), packed))
        })
    }

    /// Packs rows of the segment into staging memory, a plane at a time. The last rows bring the planes' padding.
    fn piece(&self, rows: Range<usize>, packed: &mut Vec<u32>) -> Result<()> {
        let (dtype, cols) = (self.matrix.dtype, self.matrix.cols);
        let last = rows.end == self.segment.rows;
        let mut views = Vec::with_capacity(4);
        for (plane, row) in self.planes.iter().zip(self.row) {
            let start = plane.start + rows.start * row;
            let end = if last { plane.end } else { plane.start + rows.end * row };
            let size = wgpu::BufferSize::new((end - start) as u64);
            let view = size.map(|size| {
                let view = self.gpu.device.queue.write_buffer_with(self.buffer, start as u64, size);
                view.ok_or_else(|| Error::Device(format!("no staging memory for {}", self.matrix.name)))
            });
            views.push(view.transpose()?);
        }
        let stride = (STRIDE / self.row.iter().sum::<usize>().max(1)).max(1);
        let mut done = 0;
        while done < rows.len() {
            let most = stride.min(rows.len() - done);
            let at = self.segment.row0 + rows.start + done;
            let (bytes, n) = run_of_rows(self.tensors, self.matrix, at, most)?;
            let ranges = gpu::plane_ranges(dtype, n, cols).ok_or_else(|| too_large(self.matrix))?;
            packed.clear();
            packed.resize(gpu::words(dtype, n, cols), 0);
            gpu::pack(dtype, n, cols, bytes, packed)?;
            let packed: &[u8] = bytemuck::cast_slice(packed);
            for ((view, row), range) in views.iter_mut().zip(self.row).zip(&ranges) {
                if let Some(view) = view {
                    let from = &packed[range.start..range.start + n * row];
                    view.slice(done * row..(done + n) * row).copy_from_slice(from);
                }
            }
            done += n;
        }
        for (view, row) in views.iter_mut().zip(self.row) {
            if let Some(view) = view {
                view.slice(rows.len() * row..).fill(0);
            }
        }
        Ok(())
    }
}

/// The bytes of rows from `row` of the stacked matrix on, as many as lie together, at most `most`; and how many they are.
fn run_of_rows<'a>(tensors: &'a [Tensor], m: &Matrix, row: usize, most: usize) -> Result<(&'a [u8], usize)> {
    let mut first = 0;
    for w in &m.parts {
        let t = &tensors[w.0 as usize];
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
