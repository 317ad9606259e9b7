//! A loaded model: weights on a device, from which runners are made.

use super::{RunOptions, gpu::Gpu, profile, runner::GpuRunner, upload::DeviceWeights};
use crate::{
    backend::{
        Loaded, OnProgress, Program, Roofline,
        host::HostExperts,
        runner::{Executor, RunnerOptions},
    },
    error::{Error, Result},
    graph::Split,
    ir::Graph,
    kernels::Tiles,
};
use std::sync::Arc;

/// A model on a device.
struct Model {
    weights: Arc<DeviceWeights>,
    program: Program,
}

impl Gpu {
    /// Puts a program's weights on the device.
    ///
    /// # Errors
    /// [`Error::Device`] where memory is short or something does not fit the device's limits; [`Error::Unsupported`] for
    /// sizes that no kernel takes.
    pub fn load(&self, program: Program, progress: OnProgress<'_>) -> Result<Box<dyn Loaded>> {
        self.load_with(program, self.run, progress)
    }

    /// As [`Gpu::load`], run in another way than the device was opened for.
    ///
    /// # Errors
    /// As [`Gpu::load`].
    pub fn load_with(&self, program: Program, run: RunOptions, progress: OnProgress<'_>) -> Result<Box<dyn Loaded>> {
        let graph = program.graph.clone();
        self.load_graph(program, (&graph, None), run, progress)
    }

    /// As [`Gpu::load_with`], with the experts that `split` takes out of the program's graph left to `host`.
    ///
    /// # Errors
    /// As [`Gpu::load`].
    pub fn load_split(
        &self,
        program: Program,
        split: &Split,
        host: Arc<dyn HostExperts>,
        run: RunOptions,
        progress: OnProgress<'_>,
    ) -> Result<Box<dyn Loaded>> {
        self.load_graph(program, (&split.device, Some(host)), run, progress)
    }

    /// As [`Gpu::load_with`], of a graph with regions that `host` computes.
    ///
    /// # Errors
    /// As [`Gpu::load`].
    pub fn load_with_host(
        &self,
        program: Program,
        host: Arc<dyn HostExperts>,
        run: RunOptions,
        progress: OnProgress<'_>,
    ) -> Result<Box<dyn Loaded>> {
        let graph = program.graph.clone();
        self.load_graph(program, (&graph, Some(host)), run, progress)
    }

    fn load_graph(
        &self,
        program: Program,
        parts: (&Graph, Option<Arc<dyn HostExperts>>),
        run: RunOptions,
        progress: OnProgress<'_>,
    ) -> Result<Box<dyn Loaded>> {
        if let Some(row) = run.tiles.map(Tiles::row).filter(|r| !(r.runs)(&self.caps().features)) {
            let (name, device) = (row.name, self.name());
            let lacks =
                format!("{name} tiles on {device}, which lacks what they need (or experimental features are not on)");
            return Err(Error::Unsupported(format!("{lacks}; f32 ones run everywhere")));
        }
        let weights = self.device.catching(|| DeviceWeights::new(self.clone(), &program, parts, run, progress))?;
        Ok(Box::new(Model { weights: Arc::new(weights), program }))
    }
}

impl Loaded for Model {
    fn describe(&self) -> String {
        let name = self.weights.gpu.name();
        match (&self.weights.host, self.weights.run.expert_slots) {
            (None, None) => format!("wgpu ({name})"),
            (None, Some(s)) => format!("wgpu ({name}), {} slots for the experts of a layer", s.slots),
            (Some(host), _) => format!("wgpu ({name}), experts on {}", host.describe()),
        }
    }

    fn program(&self) -> &Program {
        &self.program
    }

    fn executor(&self, options: RunnerOptions) -> Result<Box<dyn Executor>> {
        let device = &self.weights.gpu.device;
        Ok(Box::new(device.catching(|| GpuRunner::new(self.weights.clone(), options))?))
    }

    fn weight_bytes(&self) -> u64 {
        self.weights.weights.bytes() + self.weights.host.as_ref().map_or(0, |h| h.weight_bytes())
    }

    fn roofline(&self) -> Result<Option<Roofline>> {
        // Two memories have no one roofline.
        match self.weights.host {
            Some(_) => Ok(None),
            None => profile::roofline(&self.weights.gpu).map(Some),
        }
    }
}
