//! TensorBoard's event files.
//!
//! A file is a list of TFRecords (length, its masked CRC-32C, the data, its masked CRC-32C), each an `Event` message of
//! tensorflow/core/util/event.proto, of which three fields are written: wall_time (1), step (2), and file_version (3) or summary
//! (5) with values of a tag (1) and a simple_value (2).

use super::{EvalRecord, Log, StepRecord};
use crate::{
    error::{Error, Result},
    train::checkpoint::checksum,
};
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// A file of scalars: `train/loss`, `eval/loss`, and `expert_load/<layer>/<expert>` as parts of a layer's tokens.
pub struct EventLog {
    path: PathBuf,
    out: BufWriter<File>,
}

impl EventLog {
    /// A new file in `folder`, whose scalars replace those of other files of the folder behind `step`.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn create(folder: &Path, step: u64) -> Result<Self> {
        let io = |path: &Path, source| Error::Write { path: path.to_owned(), source };
        fs::create_dir_all(folder).map_err(|e| io(folder, e))?;
        let now = seconds() as u64;
        let mut number = 0;
        // Files are read in the order of their names.
        let (path, file) = loop {
            let path = folder.join(format!("events.out.tfevents.{now:010}.moeray.{}.{number}", std::process::id()));
            match File::create_new(&path) {
                Ok(file) => break (path, file),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                Err(e) => return Err(io(&path, e)),
            }
        };
        let mut log = EventLog { path, out: BufWriter::new(file) };
        let mut version = vec![];
        field(&mut version, 3, b"brain.Event:2");
        log.event(0, &version)?;
        if step > 0 {
            // SessionLog (7) with status START (1): what others have from this step on is passed over.
            let mut start = vec![];
            field(&mut start, 7, &[0x08, 0x01]);
            log.event(step + 1, &start)?;
        }
        Ok(log)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        let mut summary = vec![];
        for (tag, value) in scalars {
            let mut one = vec![];
            field(&mut one, 1, tag.as_bytes());
            // simple_value, a 32-bit number.
            one.push((2 << 3) | 5);
            one.extend((*value as f32).to_le_bytes());
            field(&mut summary, 1, &one);
        }
        let mut event = vec![];
        field(&mut event, 5, &summary);
        self.event(step, &event)
    }

    /// Writes an event: the time, the step, and `rest`.
    fn event(&mut self, step: u64, rest: &[u8]) -> Result<()> {
        let mut event = vec![(1 << 3) | 1];
        event.extend(seconds().to_le_bytes());
        event.push(2 << 3);
        varint(&mut event, step);
        event.extend(rest);
        let length = (event.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(event.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(&event);
        record.extend(masked(&event).to_le_bytes());
        let done = self.out.write_all(&record).and_then(|()| self.out.flush());
        done.map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}

impl Log for EventLog {
    fn step(&mut self, record: &StepRecord) -> Result<()> {
        let mut all: Vec<_> = record.scalars().into_iter().map(|(n, v)| (format!("train/{n}"), v)).collect();
        for l in &record.loads {
            let sum = l.tokens.iter().sum::<u64>().max(1) as f64;
            let part = |(e, n): (usize, &u64)| (format!("expert_load/{}/{e}", l.layer), *n as f64 / sum);
            all.extend(l.tokens.iter().enumerate().map(part));
        }
        self.scalars(record.step, &all)
    }

    fn evaluation(&mut self, record: &EvalRecord) -> Result<()> {
        let mut all = vec![("eval/loss".to_owned(), record.loss)];
        all.extend(record.terms.iter().skip(1).map(|t| (format!("eval/{}", t.name), t.value)));
        self.scalars(record.step, &all)
    }

    fn flush(&mut self) -> Result<()> {
        let done = self.out.flush().and_then(|()| self.out.get_ref().sync_data());
        done.map_err(|source| Error::Write { path: self.path.clone(), source })
    }
}

/// Seconds since 1970.
fn seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A field of bytes: a text or a message.
fn field(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    varint(out, (number << 3) | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// The checksum as TFRecords have it, so that checksums of data with checksums stay random.
fn masked(bytes: &[u8]) -> u32 {
    checksum(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}
