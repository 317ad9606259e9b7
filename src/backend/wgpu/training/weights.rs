//! Weights, gradients and the random key on the device.

use super::places::Place;
use crate::{
    backend::wgpu::{gpu::Gpu, upload::Uploader},
    error::Result,
    graph::TrainProgram,
};

/// Bytes of f32 that are made of a weight's rows at a time.
const PIECE: usize = 4 << 20;

/// What is bound beside the values of a graph.
pub struct Weights {
    /// By weight; those that no node reads have none.
    pub places: Vec<Option<Place>>,
    /// By weight: a buffer for each segment.
    pub weights: Vec<Vec<wgpu::Buffer>>,
    /// By weight, of those that are trained: the same.
    pub gradients: Vec<Vec<wgpu::Buffer>>,
    /// The random key.
    pub draw: wgpu::Buffer,
    /// The form of products.
    pub direct: bool,
}

impl Weights {
    /// Uploads weights to where they lie, and makes buffers of gradients.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory is short.
    pub fn new(gpu: &Gpu, program: &TrainProgram, places: Vec<Option<Place>>, direct: bool) -> Result<Weights> {
        let device = &*gpu.device;
        let place = |w: u32| places[w as usize].iter();
        let frozen: u64 = places.iter().flatten().map(Place::bytes).sum();
        let gradients: u64 = program.parameters.iter().flat_map(|p| place(p.weight.0)).map(Place::bytes).sum();
        let help = "a smaller model helps, fewer weights that are trained, or the cpu backend";
        gpu.memory.check(gpu.name(), frozen + gradients, "weights and their gradients", help)?;
        let nobody = &mut |_| Ok(());
        let mut up = Uploader::new(gpu, frozen, nobody);
        let mut weights = vec![vec![]; places.len()];
        for (w, place) in places.iter().enumerate() {
            let Some(place) = place else { continue };
            for s in 0..place.matrix.segments.len() {
                weights[w].push(if place.plain {
                    plain(gpu, program, place, s, &mut up)?
                } else {
                    up.segment(&program.weights, &place.matrix, &place.matrix.segments[s])?
                });
            }
        }
        up.finish()?;
        let mut gradients = vec![vec![]; places.len()];
        for p in &program.parameters {
            let label = format!("gradient of {}", p.name);
            for place in place(p.weight.0) {
                gradients[p.weight.0 as usize] = segments(gpu, &label, place)?;
            }
        }
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        Ok(Weights { weights, gradients, draw: device.buffer("random key", 16, usage)?, places, direct })
    }
}

/// Storage that kernels read and write, and that can be copied.
pub fn storage() -> wgpu::BufferUsages {
    wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::COPY_SRC
}

/// Buffers like a weight's.
pub fn segments(gpu: &Gpu, label: &str, place: &Place) -> Result<Vec<wgpu::Buffer>> {
    place.matrix.segments.iter().map(|s| gpu.device.buffer(label, s.bytes, storage())).collect()
}

/// Sends a segment as f32, some rows at a time.
fn plain(
    gpu: &Gpu,
    program: &TrainProgram,
    place: &Place,
    segment: usize,
    up: &mut Uploader<'_>,
) -> Result<wgpu::Buffer> {
    let (m, s) = (&place.matrix, place.matrix.segments[segment]);
    let buffer = gpu.device.buffer(&m.name, s.bytes, storage())?;
    let t = &program.weights[m.parts[0].0 as usize];
    let step = (PIECE / (4 * m.cols).max(1)).max(1);
    for first in (0..s.rows).step_by(step) {
        let count = step.min(s.rows - first);
        let mut numbers = vec![0f32; count * m.cols];
        for (r, row) in numbers.chunks_mut(m.cols.max(1)).enumerate() {
            crate::quant::dequantize(t.dtype(), t.row(s.row0 + first + r), row)?;
        }
        gpu.device.queue.write_buffer(&buffer, 4 * (first * m.cols) as u64, bytemuck::cast_slice(&numbers));
        up.sent(4 * numbers.len())?;
    }
    Ok(buffer)
}
