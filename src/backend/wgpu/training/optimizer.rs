//! Steps of optimizers on the device: the norm of all gradients, and updates of weights by their own numbers.
//!
//! Squares are summed in pieces of 256, these again, and so on until few are left, which the host adds up in f64. The order is
//! fixed. Of a step the host sends some numbers for each parameter and slice, and reads at most 1 KiB.

use super::{
    kernel::{Body, Buffer, Kernel, Kind, Operand, RESERVED, Shape, Work},
    places::Place,
    record::{STRIDE, Slice, Step, bound, bound_uniforms, encode_slices, step},
    text::parameter,
    weights::segments,
};
use crate::{
    backend::{
        training::{Parameter, ParameterStep, SliceStep, Update},
        wgpu::{device::Device, gpu::Gpu, mapping::map_read, pipeline::Pipelines},
    },
    error::{Error, Result},
    plan::Segment,
};

/// Numbers that an invocation sums.
const PIECE: usize = 256;
/// Sums that are left for the host.
const LEFT: usize = 256;

/// Any operand: what it is bound to is said when a kernel is recorded.
const OPERAND: Operand = Operand { buffer: Buffer::Scratch(0), kind: Kind::Numbers };

fn kernel(name: &'static str, [reads, writes]: [usize; 2], count: usize, numbers: &[u32], body: String) -> Kernel {
    let numbers = [&[u32::try_from(count).unwrap_or(u32::MAX), 0], numbers].concat();
    let (reads, writes) = (vec![OPERAND; reads], vec![OPERAND; writes]);
    // A look at some numbers is little beside products of matrices: one dispatch is never too long.
    let work = Work::of(count as f64);
    Kernel { name, reads, writes, shape: Shape::Each(count), numbers, work, body: Body::Each(body) }
}

/// Dispatches with the numbers that they read.
struct Batch {
    steps: Vec<Step>,
    uniforms: wgpu::Buffer,
}

impl Batch {
    /// Of kernels with what each binds behind the two uniform buffers.
    fn new(
        device: &Device,
        pipelines: &Pipelines,
        draw: &wgpu::Buffer,
        kernels: &[(Kernel, Vec<&wgpu::Buffer>)],
    ) -> Result<Batch> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let uniforms = device.buffer("numbers of a step", STRIDE * kernels.len().max(1) as u64, usage)?;
        let steps = kernels.iter().enumerate().map(|(i, (k, operands))| {
            let operands = operands.iter().map(|b| b.as_entire_binding());
            step(device, pipelines, k, bound_uniforms(&uniforms, i, draw).into_iter().chain(operands))
        });
        let batch = Batch { steps: steps.collect::<Result<_>>()?, uniforms };
        batch.write(device, kernels.iter().map(|(k, _)| &k.numbers[..]));
        Ok(batch)
    }

    /// Writes the numbers of the kernels.
    fn write<'a>(&self, device: &Device, numbers: impl Iterator<Item = &'a [u32]>) {
        let mut words = vec![0u32; self.steps.len() * (STRIDE / 4) as usize];
        for (own, n) in words.chunks_mut((STRIDE / 4) as usize).zip(numbers) {
            own[..n.len()].copy_from_slice(n);
        }
        device.queue.write_buffer(&self.uniforms, 0, bytemuck::cast_slice(&words));
    }
}

/// The sum of squares of some buffers.
pub struct SquareSum {
    batch: Batch,
    last: wgpu::Buffer,
    left: usize,
    most: Slice,
    results: wgpu::Buffer,
}

impl SquareSum {
    /// Of gradients.
    pub fn new(gpu: &Gpu, draw: &wgpu::Buffer, gradients: &[(&wgpu::Buffer, usize)]) -> Result<SquareSum> {
        let (device, pipelines) = (&*gpu.device, &*gpu.pipelines);
        // Whole groups of 64: sums behind the end are 0.
        let pieces = |n: usize| n.div_ceil(64 * PIECE) * 64;
        let mut counts = vec![gradients.iter().map(|(_, n)| pieces(*n)).sum::<usize>()];
        while let Some(n) = counts.last().copied().filter(|n| *n > LEFT) {
            counts.push(pieces(n));
        }
        let sums = counts.iter().map(|n| bound(device, "sums of squares", *n)).collect::<Result<Vec<_>>>()?;
        // Invocations that run together read numbers that lie together.
        let body = |term: &str| {
            format!(
                "let first = i / 64u * {} + i % 64u; var sum = 0.0;
    for (var o = 0u; o < {PIECE}u; o++) {{
        let at = first + o * 64u;
        if (at < {}) {{ sum += {term}; }}
    }}
    y[{} + i] = sum;",
                64 * PIECE,
                parameter(RESERVED),
                parameter(RESERVED + 1),
            )
        };
        let mut kernels = vec![];
        let mut at = 0;
        for (buffer, n) in gradients {
            let numbers = [*n as u32, at as u32];
            kernels.push((
                kernel("square_sum", [1, 1], pieces(*n), &numbers, body("a[at] * a[at]")),
                vec![*buffer, &sums[0]],
            ));
            at += pieces(*n);
        }
        for (i, n) in counts.iter().enumerate().skip(1) {
            let numbers = [counts[i - 1] as u32, 0];
            kernels.push((kernel("sum", [1, 1], *n, &numbers, body("a[at]")), vec![&sums[i - 1], &sums[i]]));
        }
        let batch = Batch::new(device, pipelines, draw, &kernels)?;
        let left = counts.last().copied().unwrap_or(0);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let results = device.buffer("norm", 4 * left as u64, usage)?;
        let last = sums.last().cloned().ok_or_else(|| Error::Graph("a norm of nothing".into()))?;
        Ok(SquareSum { batch, last, left, most: Slice::of(&gpu.run), results })
    }

    /// Sums, by one submission.
    pub fn run(&self, device: &Device) -> Result<f64> {
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encode_slices(device, &self.batch.steps, self.most, 0, &mut encoder);
        let bytes = 4 * self.left as u64;
        encoder.copy_buffer_to_buffer(&self.last, 0, &self.results, 0, bytes);
        let submission = device.submit([encoder.finish()]);
        let view = map_read(device, &self.results, 0..bytes, &submission, "the norm of gradients")?;
        let sum = view.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).sum();
        drop(view);
        self.results.unmap();
        Ok(sum)
    }
}

/// Updates of all parameters.
pub struct Updater {
    batch: Batch,
    /// `[step, root, used]` of each slice.
    slices: wgpu::Buffer,
    /// By parameter: the first moments, and the second, in segments; none where there are none.
    pub moments: Vec<[Vec<wgpu::Buffer>; 2]>,
    most: Slice,
}

/// What an updater is made of: a parameter, where it lies, its weights and its gradients.
pub struct Trained<'a> {
    pub parameter: &'a Parameter,
    pub place: &'a Place,
    pub weight: &'a [wgpu::Buffer],
    pub gradient: &'a [wgpu::Buffer],
}

impl Updater {
    /// For steps like these; `moments` are those that there are already, else they begin as zeros.
    pub fn new(gpu: &Gpu, draw: &wgpu::Buffer, trained: &[Trained<'_>], steps: &[ParameterStep]) -> Result<Updater> {
        let (device, pipelines) = (&*gpu.device, &*gpu.pipelines);
        let all = steps.iter().map(|s| s.slices.len()).sum::<usize>();
        let slices = bound(device, "slices of a step", 3 * all)?;
        let mut moments = vec![];
        for (s, t) in steps.iter().zip(trained) {
            let one = |there: bool, which: &str| {
                let label = format!("{which} moments of {}", t.parameter.name);
                if there { segments(gpu, &label, t.place) } else { Ok(vec![]) }
            };
            let [first, second] = s.update.moments();
            moments.push([one(first, "first")?, one(second, "second")?]);
        }
        let mut kernels = vec![];
        let mut numbers = all_numbers(steps, trained.iter().map(|t| t.place));
        for ((s, t), own) in steps.iter().zip(trained).zip(&moments) {
            for (i, (weight, gradient)) in t.weight.iter().zip(t.gradient).enumerate() {
                let Some(n) = numbers.next() else { continue };
                let own = own.iter().filter_map(|m| m.get(i));
                let written: Vec<&wgpu::Buffer> = std::iter::once(weight).chain(own).collect();
                let (count, counts) = (n[0] as usize, [2, written.len()]);
                let k = kernel(s.update.name(), counts, count, &n[RESERVED..], statements(&s.update));
                kernels.push((k, [vec![gradient, &slices], written].concat()));
            }
        }
        let batch = Batch::new(device, pipelines, draw, &kernels)?;
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        moments.iter().flatten().flatten().for_each(|m| encoder.clear_buffer(m, 0, None));
        device.submit([encoder.finish()]);
        Ok(Updater { batch, slices, moments, most: Slice::of(&gpu.run) })
    }

    /// Whether the steps have the moments that this one has.
    pub fn fits(&self, steps: &[ParameterStep]) -> bool {
        let own = self.moments.iter().map(|m| [!m[0].is_empty(), !m[1].is_empty()]);
        own.eq(steps.iter().map(|s| s.update.moments()))
    }

    /// Takes a step of parameters that lie so.
    pub fn run<'a>(&self, device: &Device, steps: &[ParameterStep], places: impl Iterator<Item = &'a Place>) {
        let numbers: Vec<Vec<u32>> = all_numbers(steps, places).collect();
        self.batch.write(device, numbers.iter().map(|n| &n[..]));
        let one = |s: &SliceStep| [s.step, s.root, f32::from(u8::from(s.used))];
        let slices: Vec<f32> = steps.iter().flat_map(|s| &s.slices).flat_map(one).collect();
        device.queue.write_buffer(&self.slices, 0, bytemuck::cast_slice(&slices));
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        encode_slices(device, &self.batch.steps, self.most, 0, &mut encoder);
        device.submit([encoder.finish()]);
    }
}

/// What the kernel of each segment reads: its weights, the reserved number, the weights of a slice, where the parameter's slices are,
/// which of the parameter's weights is the segment's first, and the numbers of the update.
fn all_numbers<'a>(steps: &[ParameterStep], places: impl Iterator<Item = &'a Place>) -> impl Iterator<Item = Vec<u32>> {
    let mut at = 0;
    steps.iter().zip(places).flat_map(move |(s, place)| {
        let m = &place.matrix;
        let slice = m.rows * m.cols / s.slices.len().max(1);
        let slices = at;
        at += 3 * s.slices.len();
        let own: Vec<f32> = match s.update {
            Update::Adam { factor, coupled, keep, beta1, take1, beta2, take2, eps } => {
                vec![factor, coupled, keep, beta1, take1, beta2, take2, eps]
            }
            Update::Sgd { factor, coupled, momentum, nesterov } => {
                vec![factor, coupled, momentum, f32::from(u8::from(nesterov))]
            }
        };
        let own: Vec<u32> = own.into_iter().map(f32::to_bits).collect();
        let one = move |segment: &Segment| {
            let sizes = [segment.rows * m.cols, 0, slice, slices, segment.row0 * m.cols];
            let sizes = sizes.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            sizes.into_iter().chain(own.iter().copied()).collect()
        };
        m.segments.iter().map(one)
    })
}

/// Statements that change weight i: a the gradient, b the slices, y the weights, then the moments that there are.
fn statements(update: &Update) -> String {
    let n = |i: usize| format!("bitcast<f32>({})", parameter(RESERVED + 3 + i));
    let ([first, _], [factor, coupled]) = (update.moments(), [n(0), n(1)]);
    let begin = format!(
        "let at = {} + 3u * (({} + i) / {}); let w = y[i];
    if (b[at + 2u] == 0.0) {{ return; }}
    let g = a[i] * {factor} + {coupled} * w;",
        parameter(RESERVED + 1),
        parameter(RESERVED + 2),
        parameter(RESERVED),
    );
    match update {
        Update::Adam { .. } => {
            let [keep, beta1, take1, beta2, take2, eps] = [2, 3, 4, 5, 6, 7].map(n);
            // PyTorch's `lerp`, which has two forms.
            let moved = format!("select(g - (g - z[i]) * {beta1}, z[i] + {take1} * (g - z[i]), {take1} < 0.5)");
            let (m, v) = if first { (format!("let m = {moved}; z[i] = m;"), "u") } else { ("let m = g;".into(), "z") };
            format!(
                "{begin}
    {m}
    let v = {v}[i] * {beta2} + {take2} * g * g;
    {v}[i] = v;
    y[i] = w * {keep} + b[at] * m / (sqrt(v) / b[at + 1u] + {eps});"
            )
        }
        Update::Sgd { .. } => {
            let [momentum, nesterov] = [2, 3].map(n);
            let along = match first {
                true => format!(
                    "let m = z[i] * {momentum} + g; z[i] = m; let along = select(m, g + {momentum} * m, {nesterov} != 0.0);"
                ),
                false => "let along = g;".into(),
            };
            format!("{begin}\n    {along}\n    y[i] = w + b[at] * along;")
        }
    }
}
