//! A model on a backend whose device takes an optimizer's steps by itself.

use super::ModelLearner;
use crate::{
    backend::training::{Moments, OnDevice, ParameterStep, Training},
    error::{Error, Result},
    graph::TrainProgram,
    train::learner::DeviceLearner,
};

#[cfg(feature = "gpu")]
use crate::backend::wgpu::{self, Gpu};

impl ModelLearner {
    #[cfg(feature = "gpu")]
    pub(super) fn start_on_gpu(&mut self, program: TrainProgram) -> Result<Box<dyn Training>> {
        let gpu = match &self.gpu {
            Some(gpu) => gpu.clone(),
            None => {
                let device = self.device.clone();
                Gpu::open(&wgpu::Options { device, ..Default::default() })?
            }
        };
        self.gpu = Some(gpu.clone());
        wgpu::train(&gpu, program)
    }

    #[cfg(not(feature = "gpu"))]
    pub(super) fn start_on_gpu(&mut self, _: TrainProgram) -> Result<Box<dyn Training>> {
        Err(Error::Unsupported("backend = \"wgpu\": this build has no GPU backend (feature `gpu`)".into()))
    }

    /// Trains on this device, which the host has opened, in the place of one that the learner opens by itself; takes effect where
    /// the configuration says `backend = "wgpu"`, before anything is chosen to be trained.
    #[cfg(feature = "gpu")]
    pub fn use_gpu(&mut self, gpu: Gpu) {
        self.gpu = Some(gpu);
    }

    /// Notes which slices of the parameters tokens used.
    pub(super) fn note_used(&mut self) {
        self.in_use = self.parameters.iter().map(|p| p.used(&self.loads)).collect();
    }

    pub(super) fn on_device(&mut self) -> Result<&mut dyn OnDevice> {
        let device = self.training()?.device();
        device.ok_or_else(|| Error::Unsupported("the backend leaves an optimizer's steps to the host".into()))
    }

    /// Gives the moments that the device has to another training of the same parameters.
    pub(super) fn carry_moments(&mut self, next: &mut dyn Training) -> Result<()> {
        if self.begun.is_empty() {
            return Ok(());
        }
        let all = (0..self.begun.len()).map(|i| self.moments(i)).collect::<Result<Vec<_>>>()?;
        let all: Vec<[&[f32]; 2]> = all.iter().map(|[first, second]| [&first[..], &second[..]]).collect();
        next.device().map_or(Ok(()), |d| d.begin(&self.begun, &all))
    }
}

impl DeviceLearner for ModelLearner {
    fn used(&mut self) -> Vec<(usize, Vec<bool>)> {
        self.note_used();
        self.places.iter().map(|i| (*i, self.in_use[*i].clone())).collect()
    }

    fn square_sum(&mut self) -> Result<f64> {
        self.on_device()?.square_sum()
    }

    fn has_moments(&self) -> bool {
        !self.begun.is_empty()
    }

    fn give_moments(&mut self, steps: &[ParameterStep], moments: &[[&[f32]; 2]]) -> Result<()> {
        self.on_device()?.begin(steps, moments)?;
        self.begun = steps.to_vec();
        Ok(())
    }

    fn update(&mut self, steps: &[ParameterStep]) -> Result<()> {
        self.on_device()?.update(steps)
    }

    fn moments(&mut self, n: usize) -> Result<Moments> {
        self.on_device()?.moments(n)
    }
}
