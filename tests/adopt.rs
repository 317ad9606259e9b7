//! A host that renders with wgpu lends its device: it keeps its callbacks, hears of its own errors and of the device's loss,
//! and what is loaded on the device ends in typed errors, within a second, whatever happens.

use crate::{
    goldens::{definition, folder},
    support::{
        Target, compare, gpu, load,
        one::{OneSequence, Step, one},
    },
};
use moeray::{
    Error,
    backend::{
        Loaded, Program,
        wgpu::{DeviceCallbacks, Gpu, Options, Requirements},
    },
    quant::KvType,
    session::{BackendChoice, LoadOptions, Model, Session, SessionOptions},
};
use std::{
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// A host with a device of its own, opened with exactly what is required, and both callbacks set.
struct Host {
    adapter: wgpu::Adapter,
    device: wgpu::Device,
    queue: wgpu::Queue,
    errors: Arc<Mutex<Vec<String>>>,
    lost: Arc<Mutex<Vec<String>>>,
    /// Whom the host tells of the loss.
    guest: Arc<OnceLock<Gpu>>,
}

impl Host {
    /// `None` where there is no GPU, see [`gpu`].
    fn open(limits: &wgpu::Limits) -> Option<Host> {
        let name = gpu()?.name().split(" (").next().unwrap().to_string();
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
        let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()));
        let adapter = adapters.into_iter().find(|a| a.get_info().name.contains(&name)).unwrap();
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("host"),
            required_features: Requirements::minimum().features,
            required_limits: limits.clone(),
            memory_hints: Requirements::minimum().memory_hints,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor)).unwrap();
        let (errors, lost, guest) = (Arc::<Mutex<Vec<String>>>::default(), Arc::default(), Arc::default());
        let host = Host { adapter, device, queue, errors, lost, guest };
        let (errors, lost, guest) = (host.errors.clone(), host.lost.clone(), host.guest.clone());
        host.device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| errors.lock().unwrap().push(e.to_string())));
        host.device.set_device_lost_callback(move |reason, _| {
            lost.lock().unwrap().push(format!("{reason:?}"));
            if let Some(guest) = guest.get() {
                guest.lost("the host's renderer lost it");
            }
        });
        Some(host)
    }

    fn lend(&self, callbacks: DeviceCallbacks) -> moeray::Result<Gpu> {
        let options = Options { checked: true, ..Options::default() };
        Gpu::adopt(&self.adapter, self.device.clone(), self.queue.clone(), callbacks, &options)
    }

    /// A buffer that cannot be: a validation error of the host's own.
    fn provoke(&self) {
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::STORAGE;
        let wrong = wgpu::BufferDescriptor { label: Some("wrong"), size: 16, usage, mapped_at_creation: false };
        drop(self.device.create_buffer(&wrong));
    }

    fn destroy(&self) {
        self.device.destroy();
        self.device.poll(wgpu::PollType::Poll).unwrap();
    }
}

/// Logits of a step of some tokens from the beginning on.
fn logits(loaded: &dyn Loaded) -> moeray::Result<Vec<f32>> {
    let mut runner = loaded.runner(one(8, 4, KvType::F32))?;
    let mut out = vec![];
    runner.run(Step { tokens: &[5, 6, 7], past: 0, outputs: 1, inputs: &[] }, &mut out)?;
    runner.run(Step { tokens: &[8], past: 3, outputs: 1, inputs: &[] }, &mut out)?;
    Ok(out.swap_remove(0).f32)
}

fn program() -> Program {
    definition("qwen3_moe").program
}

/// The error comes, is the device's, and comes within a second: the first of three times on a machine that does other work, and always
/// before a wait for the device would have run into its bound of ten seconds.
fn refused<T>(what: &str, mut result: impl FnMut() -> moeray::Result<T>) -> String {
    let mut timed = || {
        let begin = Instant::now();
        let e = result().err().unwrap_or_else(|| panic!("{what} on a lost device"));
        assert!(begin.elapsed() < Duration::from_secs(8), "{what} took {:?}", begin.elapsed());
        assert!(matches!(e, Error::Device(_)), "{what}: {e}");
        (e.to_string(), begin.elapsed() < Duration::from_secs(1))
    };
    let (said, mut soon) = timed();
    for _ in 0..2 {
        soon = soon || timed().1;
    }
    assert!(soon, "{what} took more than a second, three times");
    said
}

/// Runs, provokes an error, destroys the device; `told`: whether the host forwards the loss.
fn survives(told: bool) {
    let Some(host) = Host::open(&Requirements::minimum().limits) else { return };
    let guest = host.lend(DeviceCallbacks::KeptByHost).unwrap();
    if told {
        assert!(host.guest.set(guest.clone()).is_ok());
    }
    let loaded = guest.load(program(), &mut |_| Ok(())).unwrap();
    let want = logits(&*load(Target::Reference, &program()).unwrap()).unwrap();
    compare::check(&logits(&*loaded).unwrap(), &want, 1e-9).unwrap();
    host.provoke();
    assert_eq!(host.errors.lock().unwrap().len(), 1, "the host's own error is the host's");
    compare::check(&logits(&*loaded).unwrap(), &want, 1e-9).unwrap();

    let options = one(8, 4, KvType::F16);
    let mut runner = loaded.runner(options).unwrap();
    host.destroy();
    assert_eq!(*host.lost.lock().unwrap(), ["Destroyed"], "the host's callback");
    assert_eq!(guest.is_lost(), told);
    let step = Step { tokens: &[1], past: 0, outputs: 1, inputs: &[] };
    let e = refused("a step", || runner.run(step, &mut vec![]));
    assert!(!told || e.contains("the host's renderer lost it"), "{e}");
    refused("a runner", || loaded.runner(options).map(drop));
    refused("a model", || guest.load(program(), &mut |_| Ok(())).map(drop));
    assert_eq!(host.errors.lock().unwrap().len(), 1, "the guest's errors are the guest's");

    // A new device carries on.
    let again = Host::open(&Requirements::minimum().limits).unwrap();
    let guest = again.lend(DeviceCallbacks::KeptByHost).unwrap();
    let loaded = guest.load(program(), &mut |_| Ok(())).unwrap();
    compare::check(&logits(&*loaded).unwrap(), &want, 1e-9).unwrap();
}

#[test]
fn a_host_that_forwards_the_loss() {
    survives(true);
}

#[test]
fn a_host_that_keeps_the_loss_to_itself() {
    survives(false);
}

/// A model is loaded through the public interface onto a host's device, and two models share it.
#[test]
fn models_on_a_hosts_device() {
    let Some(host) = Host::open(&Requirements::minimum().limits) else { return };
    let guest = host.lend(DeviceCallbacks::KeptByHost).unwrap();
    let logits = |backend: BackendChoice| {
        let options = LoadOptions { backend, ..LoadOptions::default() };
        let model = Model::load(&folder("llama"), &options, &mut |_| {}).unwrap();
        let mut session =
            Session::new(&model, SessionOptions { kv: KvType::F32, ..SessionOptions::default() }).unwrap();
        session.prefill(&[1, 2, 3]).unwrap().to_vec()
    };
    let want = logits(BackendChoice::Reference);
    for _ in 0..2 {
        compare::check(&logits(BackendChoice::Gpu(guest.clone())), &want, 1e-9).unwrap();
    }
    assert!(host.errors.lock().unwrap().is_empty());
}

/// Callbacks that the host hands over are Moeray's.
#[test]
fn callbacks_that_are_handed_over() {
    let Some(host) = Host::open(&Requirements::minimum().limits) else { return };
    let guest = host.lend(DeviceCallbacks::HandedOver).unwrap();
    let loaded = guest.load(program(), &mut |_| Ok(())).unwrap();
    logits(&*loaded).unwrap();
    host.destroy();
    assert!(host.lost.lock().unwrap().is_empty() && guest.is_lost());
    let e = refused("a step", || logits(&*loaded));
    assert!(e.contains("lost: Destroyed"), "{e}");
}

/// A host that polls its device and submits to it all the time, from a thread of its own, as renderers do: steps go on and end.
#[test]
fn a_host_that_polls_and_submits_meanwhile() {
    let Some(host) = Host::open(&Requirements::minimum().limits) else { return };
    let guest = host.lend(DeviceCallbacks::KeptByHost).unwrap();
    let loaded = guest.load(program(), &mut |_| Ok(())).unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let polls = Arc::new(AtomicU32::new(0));
    let polling = {
        let (device, queue, end, polls) = (host.device.clone(), host.queue.clone(), end.clone(), polls.clone());
        std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                if polls.fetch_add(1, Ordering::Relaxed) % 8 == 0 {
                    queue.submit([]);
                }
                device.poll(wgpu::PollType::Poll).unwrap();
            }
        })
    };
    let mut runner = loaded.runner(one(600, 4, KvType::F32)).unwrap();
    let (begin, mut out, mut steps) = (Instant::now(), vec![], 0);
    // However slow the machine is: some of both.
    let few = |steps: usize| steps <= 20 || polls.load(Ordering::Relaxed) <= 100;
    while steps < 600 && (few(steps) || begin.elapsed() < Duration::from_secs(4)) {
        runner.run(Step { tokens: &[steps as u32 % 300], past: steps, outputs: 1, inputs: &[] }, &mut out).unwrap();
        steps += 1;
    }
    end.store(true, Ordering::Relaxed);
    polling.join().unwrap();
    println!("{steps} steps, {} polls of the host", polls.load(Ordering::Relaxed));
    assert!(!few(steps) && !guest.is_lost());
}

/// A device that was opened with less than is required is refused by name, before anything is made on it.
#[test]
fn a_device_that_is_too_small() {
    let limits = wgpu::Limits { max_storage_buffers_per_shader_stage: 4, ..Requirements::minimum().limits };
    let Some(host) = Host::open(&limits) else { return };
    let e = host.lend(DeviceCallbacks::KeptByHost).unwrap_err().to_string();
    assert!(e.contains("4 storage buffers") && e.contains("Requirements::minimum"), "{e}");
}

/// Whatever the adapter has beyond the requirements may be asked for, and is granted.
#[test]
fn the_best_that_an_adapter_has() {
    let Some(host) = Host::open(&Requirements::minimum().limits) else { return };
    let wanted = Requirements::minimum();
    let descriptor = wgpu::DeviceDescriptor {
        required_features: wanted.best_features(&host.adapter),
        required_limits: wanted.best_limits(&host.adapter),
        ..Default::default()
    };
    let (device, queue) = pollster::block_on(host.adapter.request_device(&descriptor)).unwrap();
    let gpu = Gpu::adopt(&host.adapter, device, queue, DeviceCallbacks::HandedOver, &Options::default()).unwrap();
    assert_eq!(gpu.caps().max_buffer, host.adapter.limits().max_buffer_size);
    assert_eq!(gpu.caps().features.f16, host.adapter.features().contains(wgpu::Features::SHADER_F16));
}
