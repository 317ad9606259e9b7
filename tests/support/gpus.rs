//! The device under test, opened as often as tests run side by side: a software device works through its queue on one core.

use super::report;
use moeray::{
    backend::wgpu::{DeviceInfo, Gpu, Options, RunOptions},
    kernels::Tiles,
};
use std::{
    cell::RefCell,
    collections::BTreeSet,
    io::Write as _,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread::available_parallelism,
};

/// An opened device, and how many running tests have it.
struct Lent {
    gpu: Gpu,
    tests: usize,
}

/// The devices so far; the first one says whether there is any.
static OPEN: Mutex<Vec<Lent>> = Mutex::new(vec![]);

/// A device for a test, which runs on a thread of its own.
struct Lease(usize);

impl Drop for Lease {
    fn drop(&mut self) {
        lock()[self.0].tests -= 1;
    }
}

thread_local! {
    static MINE: RefCell<Option<Lease>> = const { RefCell::new(None) };
}

fn lock() -> MutexGuard<'static, Vec<Lent>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device of the running test: always the same one on one thread.
pub fn mine() -> Option<Gpu> {
    let mine = MINE.with_borrow(|lease| lease.as_ref().map(|l| l.0));
    if let Some(i) = mine {
        return Some(lock()[i].gpu.clone());
    }
    let (i, gpu) = lend()?;
    MINE.set(Some(Lease(i)));
    Some(gpu)
}

/// The device that the fewest tests have, or a new one where all are in use and there may be more.
fn lend() -> Option<(usize, Gpu)> {
    let first = first()?;
    let mut open = lock();
    if open.is_empty() {
        open.push(Lent { gpu: first, tests: 0 });
    }
    let most = available_parallelism().map_or(2, usize::from);
    if open.len() < most && open.iter().all(|l| l.tests > 0) {
        open.push(Lent { gpu: opened().unwrap(), tests: 0 });
    }
    let i = (0..open.len()).min_by_key(|i| open[*i].tests)?;
    open[i].tests += 1;
    Some((i, open[i].gpu.clone()))
}

/// The first one, which is asked for once.
fn first() -> Option<Gpu> {
    static FIRST: OnceLock<Result<Gpu, String>> = OnceLock::new();
    let gpu = FIRST.get_or_init(|| {
        let gpu = opened();
        let said = gpu.as_ref().map_or_else(|e| format!("none ({e})"), Gpu::describe);
        report("device", &said);
        // Not by a macro, whose text the test harness keeps to itself while the test passes.
        _ = writeln!(std::io::stderr(), "GPU under test: {said}");
        gpu
    });
    match gpu {
        Ok(gpu) => Some(gpu.clone()),
        Err(e) if std::env::var_os("MOERAY_REQUIRE_GPU").is_some() => {
            panic!("MOERAY_REQUIRE_GPU is set and there is no GPU ({e}); `tests/run --without-gpu` does without")
        }
        Err(_) => {
            super::skip("no GPU");
            None
        }
    }
}

fn opened() -> Result<Gpu, String> {
    let named = std::env::var("MOERAY_TEST_DEVICE").ok();
    let devices = DeviceInfo::all();
    let software = devices.iter().find(|d| d.name.to_lowercase().contains("llvmpipe"));
    let device = named.or_else(|| software.or(devices.first()).map(|d| d.name.clone()));
    // What the default trusts is what passes here with the checks on.
    // Numbers are compared with the reference's: in single precision unless a test says otherwise.
    let run = RunOptions { tiles: Some(Tiles::F32), ..Default::default() };
    let options = Options { device, checked: true, run, experimental: true, ..Default::default() };
    Gpu::open(&options).map_err(|e| e.to_string())
}

/// Labels of the variants of kernels that tests have dispatched with every check on, on any of the devices.
pub fn ran_checked() -> BTreeSet<String> {
    lock().iter().flat_map(|l| l.gpu.ran_checked()).collect()
}
