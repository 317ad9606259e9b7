//! What goes between a step on the device and the processor that computes its experts.

use super::{
    begun::Ubatch,
    host::{HostRead, copied},
    mapping::if_mapped,
    runner::GpuRunner,
    schedules::buffer_of,
};
use crate::error::{Error, Result};

impl GpuRunner {
    /// Copies what the host's next call reads to where it can be mapped.
    pub fn copy_to_host(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        ubatch: Ubatch,
        which: usize,
        call: usize,
    ) -> Result<HostRead> {
        let (schedule, prepared) = self.schedule(which)?;
        let host = self.host.as_ref().ok_or_else(|| Error::Graph("no processor for the experts of a plan".into()))?;
        let mut at = 0;
        for input in &schedule.host_calls[call].inputs {
            let from = buffer_of(&self.weights, &self.buffers, &prepared.scratch, input.view.buffer)?;
            let (first, bytes) = copied(input, ubatch.rows);
            encoder.copy_buffer_to_buffer(from, first, &host.staging, at, bytes);
            at += bytes;
        }
        Ok(HostRead { ubatch, which, call, bytes: at })
    }

    /// Where what the host reads has come back: computes, sends the results, and lets the step go on. Whether it had come back.
    pub fn exchange(&mut self, read: HostRead) -> Result<bool> {
        let device = self.device();
        let Some(host) = &mut self.host else { return Err(Error::Graph("no processor for the experts".into())) };
        let bytes = 0..read.bytes.next_multiple_of(8);
        let Some(view) = if_mapped(&device, &host.staging, bytes, &host.signal)? else { return Ok(false) };
        let schedule = self.plan.schedules()[read.which].1;
        let call = schedule.and_then(|s| s.host_calls.get(read.call));
        let call = call.ok_or_else(|| Error::Graph("a call of the host that is not there".into()))?;
        let done = host.compute(call, read.ubatch.rows, bytemuck::cast_slice(&view));
        drop(view);
        host.call_off();
        done?;
        let to = self.buffers.host.as_ref();
        let to = to.ok_or_else(|| Error::Graph("no buffer for what the processor computes".into()))?;
        device.queue.write_buffer(to, 0, bytemuck::cast_slice(&host.words));
        self.flights.pop_front();
        if let Some(step) = self.begun.iter_mut().find(|s| s.progress.on_host) {
            step.progress.on_host = false;
            step.progress.host_calls += 1;
        }
        Ok(true)
    }
}
