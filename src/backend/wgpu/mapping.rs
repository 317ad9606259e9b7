//! Buffers mapped for reading: asked for, looked at without blocking, or waited for with a bound.

use super::device::{Device, Submission, lock};
use crate::error::{Error, Result};
use std::{
    ops::Range,
    sync::{Arc, Condvar, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

/// How long a mapping may take after the device is done: the callback may be in the hands of another thread.
const AFTER_SUBMISSION: Duration = Duration::from_secs(10);

/// How long a thread sleeps between two looks at an answer that another thread may bring.
const PATIENCE: Duration = Duration::from_millis(5);

/// What is known of a mapping.
#[derive(Debug, Default)]
struct State {
    answer: Option<Result<(), wgpu::BufferAsyncError>>,
}

/// Where a mapping's answer arrives: made once, used for one mapping at a time.
#[derive(Clone, Debug, Default)]
pub(super) struct Signal(Arc<(Mutex<State>, Condvar)>);

impl Signal {
    fn answered(&self) -> bool {
        lock(&self.0.0).answer.is_some()
    }
}

/// Asks for a range of bytes of a buffer to be mapped for reading once all that was submitted with it is done.
pub(super) fn map_later(buffer: &wgpu::Buffer, bytes: Range<u64>, signal: &Signal) {
    *lock(&signal.0.0) = State::default();
    let answer = signal.clone();
    buffer.map_async(wgpu::MapMode::Read, bytes, move |r| {
        let mut state = lock(&answer.0.0);
        state.answer = Some(r);
        drop(state);
        answer.0.1.notify_all();
    });
}

/// The bytes of a mapping that was asked for; `None` where they are not there yet. Never blocks. After an error, and when the
/// bytes were read, the mapping is to be called off.
pub(super) fn if_mapped(
    device: &Device,
    buffer: &wgpu::Buffer,
    bytes: Range<u64>,
    signal: &Signal,
) -> Result<Option<wgpu::BufferView>> {
    if !signal.answered() {
        device.poll_once()?;
    }
    let failed = |e: String| Error::Device(format!("reading results of {}: {e}", device.name));
    match &lock(&signal.0.0).answer {
        None => return Ok(None),
        Some(Ok(())) => device.progress(),
        Some(Err(e)) => {
            // A loss is the better reason.
            device.errors.take()?;
            return Err(failed(e.to_string()));
        }
    }
    let view = buffer.get_mapped_range(bytes).map_err(|e| failed(e.to_string()))?;
    Ok(Some(view))
}

/// Calls off a mapping that was asked for, whether it was answered or not. One that failed left nothing mapped.
pub(super) fn call_off(buffer: &wgpu::Buffer, signal: &Signal) {
    let failed = matches!(lock(&signal.0.0).answer, Some(Err(_)));
    if !failed {
        buffer.unmap();
    }
}

/// Waits until the answer of a mapping has arrived.
///
/// # Errors
/// As [`Device::wait`].
pub(super) fn wait(device: &Device, signal: &Signal, submission: &Submission, what: &str) -> Result<()> {
    device.wait(submission, what)?;
    // A poll on another thread may have taken the callback and not yet run it.
    let mut bound = device.bound();
    bound.limit = AFTER_SUBMISSION;
    loop {
        let state = lock(&signal.0.0);
        if state.answer.is_some() {
            return Ok(());
        }
        let waited = signal.0.1.wait_timeout(state, PATIENCE);
        let answered = waited.unwrap_or_else(PoisonError::into_inner).0.answer.is_some();
        if answered {
            return Ok(());
        }
        device.poll_once()?;
        bound.check(device, what)?;
    }
}

/// Waits for a submission and maps a range of bytes of a buffer for reading. After an error the buffer is not mapped.
pub(super) fn map_read(
    device: &Device,
    buffer: &wgpu::Buffer,
    bytes: Range<u64>,
    submission: &Submission,
    what: &str,
) -> Result<wgpu::BufferView> {
    let signal = Signal::default();
    device.traffic.read.fetch_add(bytes.end - bytes.start, Ordering::Relaxed);
    map_later(buffer, bytes.clone(), &signal);
    let view = wait(device, &signal, submission, what).and_then(|()| if_mapped(device, buffer, bytes, &signal));
    let view = view.inspect_err(|_| call_off(buffer, &signal))?;
    view.ok_or_else(|| Error::Device(format!("{} did not answer; waited for {what}", device.name)))
}
