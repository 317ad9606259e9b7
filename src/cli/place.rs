//! From the arguments to the places where a model runs: a backend, a device, or several of them.

use super::{
    args::{ActivationsName, BackendName, DeviceArgs, ReductionName, SimdName, TilesName},
    failure::{self, Failure, Outcome},
    ranks, shaders,
};
use crate::{
    backend::{self, cpu::SimdLevel},
    kernels::{Reduction, Tiles},
    ops::linear::Activations,
    session::BackendChoice,
};

/// The library's word for a backend. An option that is about a GPU chooses one, an option that is about the CPU chooses that.
pub fn choice(name: Option<BackendName>, device: &DeviceArgs) -> Outcome<BackendChoice> {
    if device.devices().len() > 1 || !device.split.is_empty() {
        return split_choice(name, device);
    }
    let both = device.experts.word();
    let named = match (name, device.of_gpu(), device.of_cpu()) {
        (Some(name), ..) => name,
        // Both have something to do.
        (None, Some(_), Some(_)) if both.is_some() => BackendName::Wgpu,
        (None, None, Some(_)) if both.is_some() => BackendName::Auto,
        (None, Some(gpu), Some(cpu)) => {
            return Err(Failure::new(format!("{gpu} is about a GPU, and {cpu} about the CPU"))
                .hint("--backend says where to run; with --backend auto both count, each where it runs there"));
        }
        (None, Some(_), None) => BackendName::Wgpu,
        (None, None, Some(_)) => BackendName::Cpu,
        (None, None, None) => BackendName::Auto,
    };
    let idle = match named {
        BackendName::Auto => None,
        BackendName::Wgpu if both.is_some() => None,
        BackendName::Wgpu => {
            device.of_cpu().map(|o| format!("{o} is about the CPU, which --backend wgpu does not use"))
        }
        BackendName::Cpu => {
            let gpu = device.of_gpu().or(both.map(str::to_owned));
            gpu.map(|o| format!("{o} is about a GPU, which --backend cpu does not use"))
        }
        BackendName::Reference => {
            let cpu = device.of_cpu().filter(|o| *o != "--threads").map(str::to_owned);
            let gpu = device.of_gpu().or(both.map(str::to_owned));
            gpu.or(cpu).map(|o| format!("{o} is nothing that --backend reference knows"))
        }
    };
    if let Some(what) = idle {
        return Err(Failure::new(what).hint("leave one of the two out"));
    }
    failure::on_gpu(matches!(named, BackendName::Auto | BackendName::Wgpu));
    let cpu = cpu_options(device);
    let gpu = || gpu_options(device, device.device.clone());
    Ok(match named {
        BackendName::Auto => BackendChoice::Prefer(gpu(), cpu),
        BackendName::Wgpu => BackendChoice::Wgpu(gpu()),
        BackendName::Cpu => BackendChoice::Cpu(cpu),
        BackendName::Reference => BackendChoice::Reference,
    })
}

/// The layers split over several devices.
fn split_choice(name: Option<BackendName>, device: &DeviceArgs) -> Outcome<BackendChoice> {
    let names = device.devices();
    let given = device.device.as_deref().unwrap_or_default();
    if let Some(name) = name {
        let what = format!("--device {given} says where to run, and so does --backend");
        let only = name == BackendName::Wgpu && !names.contains(&"cpu");
        if !only {
            return Err(Failure::new(what).hint("leave --backend out; cpu among the devices stands for the processor"));
        }
    }
    if names.iter().any(|n| n.is_empty()) {
        return Err(Failure::new(format!("--device {given}: a name between the commas is empty")));
    }
    if !device.split.is_empty() && device.split.len() != names.len() {
        let (shares, devices) = (device.split.len(), names.len());
        return Err(Failure::new(format!("--split has {shares} shares, and --device {given} names {devices}")));
    }
    if device.split.contains(&0) {
        let what = "--split: a share of 0 of the layers";
        return Err(Failure::new(what).hint("leave the device out that is to have none"));
    }
    failure::on_gpu(names.iter().any(|n| *n != "cpu"));
    let place = |(i, name): (usize, &&str)| {
        let choice = match *name {
            "cpu" => BackendChoice::Cpu(cpu_options(device)),
            name => BackendChoice::Wgpu(gpu_options(device, Some(name.to_owned()))),
        };
        (choice, device.split.get(i).copied().unwrap_or(1))
    };
    Ok(BackendChoice::Split(names.iter().enumerate().map(place).collect()))
}

/// How the person wants this GPU.
fn gpu_options(device: &DeviceArgs, name: Option<String>) -> backend::wgpu::Options {
    backend::wgpu::Options {
        device: name,
        checked: device.checked,
        shaders: shaders::cache(),
        tuning: shaders::tuning(),
        experimental: device.experimental,
        run: run_options(device),
        ..backend::wgpu::Options::default()
    }
}

/// How the person wants the processor's kernels.
pub fn cpu_options(device: &DeviceArgs) -> backend::cpu::Options {
    let activations = match device.activations {
        Some(ActivationsName::Int8) | None => Activations::Int8,
        Some(ActivationsName::Int16) => Activations::Int16,
    };
    let simd_level = device.simd.map(|level| match level {
        SimdName::Scalar => SimdLevel::Scalar,
        SimdName::Neon => SimdLevel::NeonDotprod,
        SimdName::Avx2 => SimdLevel::Avx2,
        SimdName::AvxVnni => SimdLevel::AvxVnni,
        SimdName::Avx512 => SimdLevel::Avx512Vnni,
    });
    let (threads, repack) = (device.threads.map(|t| t as usize).or_else(ranks::threads), !device.no_repack);
    backend::cpu::Options { threads, simd_level, activations, repack, memory: device.ram }
}

/// How the person wants a GPU's kernels.
fn run_options(device: &DeviceArgs) -> backend::wgpu::RunOptions {
    let tiles = device.tiles.map(|t| match t {
        TilesName::F32 => Tiles::F32,
        TilesName::F16 => Tiles::F16,
        TilesName::Int8 => Tiles::Int8,
        TilesName::Coop16 => Tiles::Coop16,
        TilesName::Coop8 => Tiles::Coop8,
    });
    let reduction = device.reduction.map(|r| match r {
        ReductionName::Workgroup => Reduction::Workgroup,
        ReductionName::Invocation => Reduction::Invocation,
    });
    backend::wgpu::RunOptions { tiles, reduction, ..Default::default() }
}
