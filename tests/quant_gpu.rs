//! Each format's WGSL on a real device: repack, run, compare with the dequantisation of the same blocks.

use crate::quant::{Truth, dequantized, unpack_kernel};
use moeray::quant::{DType, gpu};

/// A device with WebGPU's default limits, and its name. `None` where there is no adapter and none is demanded.
fn device() -> Option<(wgpu::Device, wgpu::Queue, String)> {
    crate::support::gpu()?;
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = wgpu::Backends::PRIMARY;
    let instance = wgpu::Instance::new(desc);
    let options = wgpu::RequestAdapterOptions::default();
    let adapter = pollster::block_on(instance.request_adapter(&options)).unwrap();
    let info = adapter.get_info();
    let (device, queue) = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor::default())).unwrap();
    Some((device, queue, format!("{} ({} {})", info.name, info.driver, info.driver_info)))
}

/// Runs a kernel that reads `data` and fills `len` floats.
fn run(device: &wgpu::Device, queue: &wgpu::Queue, source: &str, data: &[u32], len: usize) -> Vec<f32> {
    let size = 4 * len as u64;
    let buffer = |size, usage| {
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    };
    use wgpu::BufferUsages as U;
    let input = buffer(4 * data.len() as u64, U::STORAGE | U::COPY_DST);
    let output = buffer(size, U::STORAGE | U::COPY_SRC | U::COPY_DST);
    let host = buffer(size, U::MAP_READ | U::COPY_DST);
    queue.write_buffer(&input, 0, bytemuck::cast_slice(data));
    // What the kernel leaves out stays NaN.
    queue.write_buffer(&output, 0, bytemuck::cast_slice(&vec![f32::NAN; len]));
    let module = device.create_shader_module(wgpu::ShaderModuleDescriptor {
        label: None,
        source: wgpu::ShaderSource::Wgsl(source.into()),
    });
    let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
        label: None,
        layout: None,
        module: &module,
        entry_point: None,
        compilation_options: Default::default(),
        cache: None,
    });
    let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.get_bind_group_layout(0),
        entries: &[
            wgpu::BindGroupEntry { binding: 0, resource: input.as_entire_binding() },
            wgpu::BindGroupEntry { binding: 1, resource: output.as_entire_binding() },
        ],
    });
    let mut encoder = device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        pass.dispatch_workgroups(len.div_ceil(32 * 32) as u32, 1, 1);
    }
    encoder.copy_buffer_to_buffer(&output, 0, &host, 0, size);
    queue.submit([encoder.finish()]);
    host.map_async(wgpu::MapMode::Read, .., |r| r.unwrap());
    device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    bytemuck::pod_collect_to_vec(&host.get_mapped_range(..).unwrap())
}

/// Whether a group of the device's weights may stand for the host's.
///
/// Formats without an offset have one rounding a weight (and one for the scale), which no device does otherwise, so
/// their bits must agree. In `d * q - m` a device may keep the product unrounded (contraction): the difference is at
/// most half a unit in the last place of the product, and the group's largest weight bounds the products up to a small
/// factor. Results below the smallest normal f32 may be flushed to zero; f16 denormals may not, because real
/// checkpoints are full of them (scales of scales).
fn agree(contracts: bool, got: &[f32], want: &[f32]) -> bool {
    let largest = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    got.iter().zip(want).all(|(&g, &w)| {
        g.to_bits() == w.to_bits()
            || (w.abs() < f32::MIN_POSITIVE && (g == 0.0 || g == w))
            || (contracts && (g - w).abs() <= largest * 2f32.powi(-22))
            || (contracts && w == 0.0 && g == 0.0)
    })
}

/// The blocks of a format whose weights are all finite: infinities are outside what WGSL promises.
fn finite_blocks(truth: &Truth, dtype: DType) -> Vec<u8> {
    let blocks = truth.blocks(dtype);
    let whole = blocks.chunks_exact(dtype.layout().bytes);
    whole.filter(|b| dequantized(dtype, b).iter().all(|v| v.is_finite())).flatten().copied().collect()
}

#[test]
#[allow(clippy::print_stdout)]
fn shaders_read_what_was_packed() {
    let Some((device, queue, name)) = device() else {
        println!("skipped: no adapter (MOERAY_REQUIRE_GPU makes this a failure)");
        return;
    };
    println!("{name}");
    let truth = Truth::open("blocks.safetensors");
    for dtype in DType::ALL {
        let contracts = matches!(dtype, DType::Q4_1 | DType::Q5_1 | DType::Q2K | DType::Q4K | DType::Q5K);
        let blocks = finite_blocks(&truth, dtype);
        // 36 columns: float rows are padded. Odd numbers of rows: planes end within 16 bytes.
        for (cols, rows) in if dtype.is_float() { [(36, 5), (32, 1)] } else { [(dtype.layout().block, 11), (256, 1)] } {
            let row = dtype.row_bytes(cols).unwrap();
            assert!(blocks.len() >= rows * row, "{dtype}: {} bytes of blocks", blocks.len());
            let bytes = &blocks[..rows * row];
            let mut data = vec![!0; gpu::words(dtype, rows, cols)];
            gpu::pack(dtype, rows, cols, bytes, &mut data).unwrap();
            let groups = rows * gpu::groups_per_row(cols);
            let got = run(&device, &queue, &unpack_kernel(dtype, groups), &data, 32 * groups);
            let mut want = dequantized(dtype, bytes);
            if dtype.is_float() {
                let pad = |row: &[f32]| [row, &vec![0.0; 32 * gpu::groups_per_row(cols) - cols]].concat();
                want = want.chunks_exact(cols).flat_map(pad).collect();
            }
            for (i, (g, w)) in got.chunks_exact(32).zip(want.chunks_exact(32)).enumerate() {
                assert!(agree(contracts, g, w), "{dtype}, group {i} of {groups}:\n{g:?}\n{w:?}");
            }
        }
    }
}

#[test]
fn alarm_the_comparison_sees_one_wrong_weight() {
    let want: Vec<f32> = (0..32).map(|i| i as f32 * 0.01 - 0.1).collect();
    for contracts in [false, true] {
        assert!(agree(contracts, &want, &want));
        for wrong in [-want[3], want[3] * 1.00001, f32::NAN, 0.0] {
            let mut got = want.clone();
            got[3] = wrong;
            assert!(!agree(contracts, &got, &want), "{wrong}");
        }
    }
}
