//! Training on a GPU: a kernel or a few for each node, recorded once for a number of rows and submitted once a micro-batch.
//!
//! `lower` makes kernels of nodes, with `math`, `grad`, `attend`, `matrices` and `experts`; `kernel`, `tile`, `text`, `router` and
//! `router_groups` are their texts; `places` says where weights lie, and `weights` sends them there; `record` binds and dispatches; `feed`
//! checks what the host gives; `optimizer` takes steps.
//!
//! Weights and gradients stay on the device, frozen weights in their own format. Only the graph's outputs are read back. No kernel
//! adds floats atomically, so that two runs give equal bits. A submission holds at most the work that the device's options allow.

mod attend;
mod experts;
mod feed;
mod fold;
mod grad;
mod kernel;
mod lower;
mod math;
mod matrices;
mod optimizer;
mod places;
mod record;
mod router;
mod router_groups;
mod text;
mod tile;
mod weights;

use super::{device::Device, gpu::Gpu, mapping::map_read};
use crate::{
    backend::training::{Feed, Moments, Named, OnDevice, Parameter, ParameterStep, Slot, Training},
    error::{Error, Result},
    graph::TrainProgram,
    ir::{Graph, ValueId},
    kernels::Reduction,
};
use optimizer::{SquareSum, Trained, Updater};
use places::Place;
use record::Recorded;
use std::{collections::BTreeSet, sync::Arc};
use weights::Weights;

/// Trains a program on a GPU.
///
/// # Errors
/// [`Error::Unsupported`] for an op without a kernel, by name; [`Error::Device`] where memory is short or a weight is larger than
/// what the device's kernels can bind.
pub fn train(gpu: &Gpu, program: TrainProgram) -> Result<Box<dyn Training>> {
    train_with(gpu, program, gpu.run.reduction)
}

/// The same with the kernels of GPUs, or of processors that emulate one; `None`: what suits the device.
///
/// # Errors
/// As [`train`].
pub fn train_with(gpu: &Gpu, mut program: TrainProgram, reduction: Option<Reduction>) -> Result<Box<dyn Training>> {
    let direct = reduction.unwrap_or_else(|| gpu.device.caps.reduction()) == Reduction::Invocation;
    let evaluation = program.evaluation.clone().unwrap_or_else(|| Arc::new(forward(&program)));
    let places = places::places(&program, &[&program.graph, &evaluation], gpu.caps())?;
    // Lowered once to refuse here what has no kernel.
    for graph in [&*program.graph, &*evaluation] {
        lower::lower(graph, 1, direct, &places, gpu.caps().max_binding)?;
    }
    let device = gpu.device.clone();
    let weights = device.catching(|| Weights::new(gpu, &program, places, direct))?;
    program.release_trained();
    let recorded = [None, None];
    let (square_sum, updater) = (None, None);
    let mut training = GpuTraining { gpu: gpu.clone(), program, evaluation, weights, recorded, square_sum, updater };
    training.clear()?;
    Ok(Box::new(training))
}

/// The forward nodes as a graph of their own.
fn forward(program: &TrainProgram) -> Graph {
    let mut graph = (*program.graph).clone();
    graph.nodes.truncate(program.forward);
    let made: BTreeSet<ValueId> = graph.nodes.iter().flat_map(|n| &n.outputs).copied().collect();
    graph.outputs.retain(|(_, v)| made.contains(v));
    graph
}

struct GpuTraining {
    gpu: Gpu,
    program: TrainProgram,
    evaluation: Arc<Graph>,
    weights: Weights,
    /// What was recorded for the last number of rows: of a micro-batch, and of an evaluation.
    recorded: [Option<Recorded>; 2],
    /// What sums the squares of all gradients, once it is wanted.
    square_sum: Option<SquareSum>,
    /// What takes steps, once it is wanted.
    updater: Option<Updater>,
}

impl GpuTraining {
    fn gpu_device(&self) -> Arc<Device> {
        self.gpu.device.clone()
    }

    fn run(&mut self, feed: &Feed, backward: bool) -> Result<Vec<Named>> {
        let device = self.gpu_device();
        device.errors.take()?;
        let graph = if backward { self.program.graph.clone() } else { self.evaluation.clone() };
        let inputs = feed::inputs(&graph, feed)?;
        device.catching(|| {
            let slot = &mut self.recorded[usize::from(!backward)];
            if slot.as_ref().is_none_or(|r| r.rows != feed.rows) {
                // The buffers of the old one go first.
                *slot = None;
                *slot = Some(Recorded::new(&self.gpu, graph.clone(), feed.rows, &self.weights)?);
            }
            let Some(recorded) = slot else { return Err(Error::Device("nothing is recorded".into())) };
            let mix = feed.step.wrapping_mul(0x9e37_79b1).wrapping_add(feed.micro.wrapping_mul(0x85eb_ca6b));
            let draw = [feed.seed as u32, (feed.seed >> 32) as u32, mix, 0];
            device.queue.write_buffer(&self.weights.draw, 0, bytemuck::cast_slice(&draw));
            recorded.write(&device, &inputs);
            recorded.run(&device, feed::longest(&graph, feed))
        })
    }

    /// The numbers of a parameter's buffers, one after the other.
    fn read_buffers(&self, from: &[wgpu::Buffer], p: &Parameter, what: &str) -> Result<Vec<f32>> {
        let (device, place) = (self.gpu_device(), self.place(p)?);
        device.errors.take()?;
        let mut all = Vec::with_capacity(p.len());
        for (i, from) in from.iter().enumerate() {
            device.catching(|| {
                let size = 4 * place.numbers(i) as u64;
                let to = device.buffer(what, size, wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST)?;
                let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
                encoder.copy_buffer_to_buffer(from, 0, &to, 0, size);
                let submission = device.submit([encoder.finish()]);
                let view = map_read(&device, &to, 0..size, &submission, what)?;
                all.extend(view.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
                drop(view);
                to.unmap();
                Ok(())
            })?;
        }
        Ok(all)
    }

    /// Overwrites a parameter's buffers.
    fn write_buffers(&self, to: &[wgpu::Buffer], p: &Parameter, numbers: &[f32]) -> Result<()> {
        let (place, device) = (self.place(p)?, self.gpu_device());
        let mut rest = numbers;
        for (i, buffer) in to.iter().enumerate() {
            let own;
            (own, rest) = rest.split_at(place.numbers(i).min(rest.len()));
            device.catching(|| {
                device.queue.write_buffer(buffer, 0, bytemuck::cast_slice(own));
                // Staging memory is given back when what was written is submitted.
                device.submit([]);
                Ok(())
            })?;
        }
        Ok(())
    }

    fn place(&self, p: &Parameter) -> Result<&Place> {
        let found = self.weights.places[p.weight.0 as usize].as_ref();
        found.ok_or_else(|| Error::Device(format!("{} has no place", p.name)))
    }

    fn parameter(&self, i: usize) -> Result<&Parameter> {
        self.program.parameters.get(i).ok_or_else(|| Error::Invalid(format!("there is no parameter {i}")))
    }

    fn weight(&self, p: &Parameter) -> &[wgpu::Buffer] {
        &self.weights.weights[p.weight.0 as usize]
    }

    fn gradient_of(&self, p: &Parameter) -> &[wgpu::Buffer] {
        &self.weights.gradients[p.weight.0 as usize]
    }
}

impl OnDevice for GpuTraining {
    fn square_sum(&mut self) -> Result<f64> {
        let device = self.gpu_device();
        device.errors.take()?;
        if self.square_sum.is_none() {
            let mut all = vec![];
            for p in &self.program.parameters {
                let place = self.place(p)?;
                all.extend(self.gradient_of(p).iter().enumerate().map(|(i, b)| (b, place.numbers(i))));
            }
            let make = || SquareSum::new(&self.gpu, &self.weights.draw, &all);
            self.square_sum = Some(device.catching(make)?);
        }
        match &self.square_sum {
            Some(sum) => device.catching(|| sum.run(&device)),
            None => Err(Error::Device("nothing sums squares".into())),
        }
    }

    fn begin(&mut self, steps: &[ParameterStep], moments: &[[&[f32]; 2]]) -> Result<()> {
        let (device, parameters) = (self.gpu_device(), &self.program.parameters);
        if steps.len() != parameters.len() || moments.len() != parameters.len() {
            return Err(Error::Invalid(format!("{} steps for {} parameters", steps.len(), parameters.len())));
        }
        device.errors.take()?;
        let bytes: usize = steps
            .iter()
            .zip(parameters)
            .map(|(s, p)| 4 * p.len() * s.update.moments().into_iter().filter(|m| *m).count())
            .sum();
        let help = "optimizer = \"sgd\" or expert_moments = \"factored_only\" takes less";
        self.gpu.memory.check(self.gpu.name(), bytes as u64, "the optimizer's moments", help)?;
        let trained = parameters.iter().map(|p| {
            let (weight, gradient) = (self.weight(p), self.gradient_of(p));
            Ok(Trained { parameter: p, place: self.place(p)?, weight, gradient })
        });
        let trained = trained.collect::<Result<Vec<_>>>()?;
        let made = device.catching(|| Updater::new(&self.gpu, &self.weights.draw, &trained, steps))?;
        for ((buffers, numbers), p) in made.moments.iter().zip(moments).zip(parameters) {
            for (buffers, numbers) in buffers.iter().zip(numbers).filter(|(_, n)| !n.is_empty()) {
                if buffers.is_empty() || numbers.len() != p.len() {
                    return Err(Error::Invalid(format!("moments of another size than {}", p.name)));
                }
                self.write_buffers(buffers, p, numbers)?;
            }
        }
        self.updater = Some(made);
        device.errors.take()
    }

    fn update(&mut self, steps: &[ParameterStep]) -> Result<()> {
        let device = self.gpu_device();
        let parameters = &self.program.parameters;
        let fits = steps.len() == parameters.len()
            && steps.iter().zip(parameters).all(|(s, p)| !s.slices.is_empty() && p.len() % s.slices.len() == 0);
        let updater = self.updater.as_ref().filter(|u| fits && u.fits(steps));
        let updater = updater.ok_or_else(|| Error::Invalid("a step that was not begun so".into()))?;
        let places = parameters.iter().map(|p| self.place(p)).collect::<Result<Vec<_>>>()?;
        device.catching(|| {
            updater.run(&device, steps, places.into_iter());
            Ok(())
        })?;
        device.errors.take()
    }

    fn moments(&mut self, parameter: usize) -> Result<Moments> {
        let p = self.parameter(parameter)?;
        let Some(updater) = &self.updater else { return Ok(Moments::default()) };
        let [first, second] = &updater.moments[parameter];
        Ok([self.read_buffers(first, p, "moments")?, self.read_buffers(second, p, "moments")?])
    }
}

impl Training for GpuTraining {
    fn describe(&self) -> String {
        self.gpu.describe()
    }

    fn parameters(&self) -> &[Parameter] {
        &self.program.parameters
    }

    fn micro(&mut self, feed: &Feed) -> Result<Vec<Named>> {
        self.run(feed, true)
    }

    fn evaluate(&mut self, feed: &Feed) -> Result<Vec<Named>> {
        self.run(feed, false)
    }

    fn each(&mut self, each: &mut dyn FnMut(Slot<'_>) -> Result<()>) -> Result<()> {
        for (index, parameter) in self.program.parameters.iter().enumerate() {
            let (weight, gradient) = (self.weight(parameter), self.gradient_of(parameter));
            let mut w = self.read_buffers(weight, parameter, &parameter.name)?;
            let mut g = self.read_buffers(gradient, parameter, &parameter.name)?;
            let before = [w.clone(), g.clone()];
            each(Slot { index, parameter, weight: &mut w, gradient: &mut g })?;
            for (buffers, old, new) in [(weight, &before[0], &w), (gradient, &before[1], &g)] {
                // Not-a-number differs from itself, and is written once more.
                if old != new {
                    self.write_buffers(buffers, parameter, new)?;
                }
            }
        }
        self.gpu.device.errors.take()
    }

    fn clear(&mut self) -> Result<()> {
        let device = self.gpu_device();
        device.catching(|| {
            let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            self.weights.gradients.iter().flatten().for_each(|g| encoder.clear_buffer(g, 0, None));
            device.submit([encoder.finish()]);
            Ok(())
        })?;
        device.errors.take()
    }

    fn read(&mut self, parameter: usize) -> Result<Vec<f64>> {
        let p = self.parameter(parameter)?;
        let numbers = self.read_buffers(self.weight(p), p, &p.name)?;
        Ok(numbers.into_iter().map(f64::from).collect())
    }

    fn write(&mut self, parameter: usize, values: &[f64]) -> Result<()> {
        let p = self.parameter(parameter)?;
        if p.len() != values.len() {
            return Err(Error::Invalid(format!("{} numbers for {} of {:?}", values.len(), p.name, p.shape)));
        }
        let numbers: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        self.write_buffers(self.weight(p), p, &numbers)?;
        self.gpu.device.errors.take()
    }

    fn device(&mut self) -> Option<&mut dyn OnDevice> {
        Some(self)
    }

    fn gradient(&mut self, parameter: usize) -> Result<Vec<f64>> {
        let p = self.parameter(parameter)?;
        let numbers = self.read_buffers(self.gradient_of(p), p, &p.name)?;
        Ok(numbers.into_iter().map(f64::from).collect())
    }
}
