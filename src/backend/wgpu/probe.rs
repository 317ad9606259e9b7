//! What a device really does where WGSL leaves it open, found out by one small dispatch when it is opened: see `probe.wgsl`.

use super::{gpu::Gpu, mapping::map_read};
use crate::{
    error::{Error, Result},
    kernels::{
        Variant, catalogue,
        params::{Frame, ProbeParams},
        tiles::DeviceFeatures,
    },
    plan,
};

/// Halves whose conversion is looked at, and what singles they are: the smallest and the largest subnormal one, a negative one; the
/// smallest normal one, and one.
const HALVES: [(u32, f32); 5] = [
    (0x0001, 5.960_464_5e-8),
    (0x03ff, 6.097_555e-5),
    (0x8001, -5.960_464_5e-8),
    (0x0400, 6.103_515_6e-5),
    (0x3c00, 1.0),
];

/// What was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// Invocations of a subgroup, where everything that was looked at fits together.
    pub subgroup_size: Option<u32>,
    /// Whether subnormal halves become zeros.
    pub flushes_halves: bool,
}

impl Probed {
    /// From the words that the kernel left: marks of `places` invocations, the size, singles. `None` where they make no sense.
    fn read(words: &[u32], places: usize) -> Option<Probed> {
        let (marks, rest) = words.split_at_checked(places)?;
        let (size, singles) = rest.split_first()?;
        let singles = singles.get(..HALVES.len())?;
        let is = |(got, want): (&u32, f32)| *got == want.to_bits();
        let (subnormal, normal) = HALVES.split_at(3);
        let right = |from: usize, list: &[(u32, f32)]| singles[from..].iter().zip(list.iter().map(|h| h.1)).all(is);
        let sound = marks.iter().all(|m| *m == 1) && size.is_power_of_two();
        right(3, normal)
            .then_some(Probed { subgroup_size: sound.then_some(*size), flushes_halves: !right(0, subnormal) })
    }

    /// The features of a device that was seen to be so.
    pub(super) fn applied(self, features: &DeviceFeatures) -> DeviceFeatures {
        DeviceFeatures { subgroup_size: self.subgroup_size, flushes_halves: self.flushes_halves, ..*features }
    }
}

impl Gpu {
    /// Looks at the device.
    ///
    /// # Errors
    /// [`Error::Device`] where it does not run the kernel, or converts even normal halves to something else.
    #[doc(hidden)]
    pub fn probe(&self) -> Result<Probed> {
        let variant = Variant::new(&catalogue::PROBE).with("SUBGROUPS", self.caps().features.subgroups.into());
        let places = variant.get("WG")? as usize;
        let words = self.run_probe(&variant, places + 1 + HALVES.len())?;
        let wrong = || Error::Device(format!("{} converts halves to wrong numbers: its driver is broken", self.name()));
        Probed::read(&words, places).ok_or_else(wrong)
    }

    fn run_probe(&self, variant: &Variant, words: usize) -> Result<Vec<u32>> {
        use wgpu::BufferUsages as U;
        let device = &self.device;
        let bytes = 4 * (words as u64).next_multiple_of(2);
        let filled = |data: &[u8], usage| {
            let buffer = device.buffer("probe", plan::PARAMS_STRIDE, usage | U::COPY_DST)?;
            device.queue.write_buffer(&buffer, 0, data);
            Ok::<_, Error>(buffer)
        };
        let frame = filled(bytemuck::bytes_of(&Frame::default()), U::UNIFORM)?;
        let params = filled(bytemuck::bytes_of(&ProbeParams { halves: HALVES.len() as u32 }), U::UNIFORM)?;
        let x = filled(bytemuck::cast_slice(&HALVES.map(|h| h.0)), U::STORAGE)?;
        let y = device.buffer("probe", bytes, U::STORAGE | U::COPY_SRC)?;
        let staging = device.buffer("probe", bytes, U::MAP_READ | U::COPY_DST)?;
        let pipeline = self.pipelines.get(device, variant)?;
        let entry = |b: &crate::kernels::Binding| {
            let buffer = match b.name.as_str() {
                "frame" => &frame,
                "p" => &params,
                "x" => &x,
                _ => &y,
            };
            wgpu::BindGroupEntry { binding: b.index, resource: buffer.as_entire_binding() }
        };
        let entries: Vec<_> = pipeline.reflection.bindings.iter().map(entry).collect();
        let descriptor =
            wgpu::BindGroupDescriptor { label: Some("probe"), layout: &pipeline.layout, entries: &entries };
        let group =
            device.scoped(|d| d.create_bind_group(&descriptor)).map_err(|e| Error::Device(format!("probing: {e}")))?;
        let mut encoder = device.raw.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        pass.set_pipeline(&pipeline.pipeline);
        pipeline.runs();
        pass.set_bind_group(0, &group, &[]);
        pass.dispatch_workgroups(1, 1, 1);
        drop(pass);
        encoder.copy_buffer_to_buffer(&y, 0, &staging, 0, bytes);
        let submission = device.submit([encoder.finish()]);
        let view = map_read(device, &staging, 0..bytes, &submission, "a look at the device")?;
        Ok(bytemuck::pod_collect_to_vec(&view))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(places: usize, size: u32) -> Vec<u32> {
        let singles = HALVES.map(|h| h.1.to_bits());
        [vec![1; places], vec![size], singles.to_vec(), vec![0]].concat()
    }

    #[test]
    fn what_does_not_fit_together_is_not_used() {
        let seen = |w: &[u32]| Probed::read(w, 64);
        let good = words(64, 32);
        assert_eq!(seen(&good), Some(Probed { subgroup_size: Some(32), flushes_halves: false }));
        for (at, word) in [(63, 0), (5, 2), (64, 0), (64, 24)] {
            let mut bad = good.clone();
            bad[at] = word;
            assert_eq!(seen(&bad), Some(Probed { subgroup_size: None, flushes_halves: false }), "word {at}");
        }
        for at in 65..68 {
            let mut flushed = good.clone();
            flushed[at] &= 0x8000_0000;
            assert!(seen(&flushed).unwrap().flushes_halves, "word {at}");
        }
        let mut broken = good.clone();
        broken[69] = 0;
        assert_eq!((seen(&broken), seen(&good[..66])), (None, None));
    }
}
