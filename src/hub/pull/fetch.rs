//! A file's bytes: fetched to the end, however often the connection breaks, and checked.

use super::{
    cache::{Repository, write_error},
    remote::{Facts, Failed, PAUSES, Remote, sleep},
};
use crate::error::{Error, Result};
use ring::digest::{Context, SHA256};
use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
};

/// What happens to a file.
pub(super) enum Step {
    /// Another program has its lock.
    Waiting,
    /// The connection broke.
    Again,
    /// So many bytes of it are there.
    Bytes(u64),
}

/// Bytes that are read at a time.
const PIECE: usize = 1 << 20;

/// Fetches a blob unless it is there; gives the bytes that came over the network.
///
/// # Errors
/// As [`super::pull`].
pub(super) fn blob(
    remote: &Remote<'_>,
    repository: &Repository,
    facts: &Facts,
    step: &mut dyn FnMut(Step),
) -> Result<u64> {
    let lock = repository.lock_file(&facts.etag)?;
    let mut told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut told, true) {
                    step(Step::Waiting);
                }
                sleep(200, remote.cancel())?;
            }
            // Some file systems have no locks: two programs would then each write their own bytes of the same file to the same places.
            Err(TryLockError::Error(e)) => {
                tracing::info!("no lock for {}: {e}", facts.etag);
                break;
            }
        }
    }
    let blob = repository.blob(&facts.etag);
    if fs::metadata(&blob).is_ok_and(|m| m.len() == facts.size) {
        return Ok(0);
    }
    let path = repository.incomplete(&facts.etag);
    let file =
        File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(write_error(&path))?;
    let mut growing = Growing { file, hash: Context::new(&SHA256), length: 0 };
    let read = |source| Error::Io { path: path.clone(), source };
    growing.take_over(facts.size, remote).map_err(|e| e.or(read))?;
    let mut received = 0;
    // What was there before may be another's; a second try begins with nothing.
    for from_nothing in [false, true] {
        if from_nothing {
            growing.restart().map_err(write_error(&path))?;
        }
        received += to_the_end(remote, facts, &mut growing, step, &path)?;
        if growing.is_right(facts) {
            growing.file.sync_all().map_err(write_error(&path))?;
            fs::rename(&path, &blob).map_err(write_error(&blob))?;
            return Ok(received);
        }
        tracing::warn!("{} has another sha256 than the hub says; fetching it anew", path.display());
    }
    let _ = fs::remove_file(&path);
    Err(Error::format(facts.url.clone(), "what came has another sha256 than the hub says, twice: it was dropped"))
}

/// Fetches until all bytes are there. Gives up after some tries in a row that brought nothing.
fn to_the_end(
    remote: &Remote<'_>,
    facts: &Facts,
    growing: &mut Growing,
    step: &mut dyn FnMut(Step),
    path: &std::path::Path,
) -> Result<u64> {
    let (mut received, mut fruitless) = (0, 0);
    step(Step::Bytes(growing.length));
    while growing.length < facts.size {
        let before = received;
        let mut count = |n: u64, length: u64| {
            received += n;
            step(Step::Bytes(length));
        };
        let why = match some(remote, facts, growing, &mut count) {
            Ok(()) => continue,
            Err(Stopped::Network(Failed::Refused(e))) => return Err(e),
            Err(Stopped::Network(Failed::Broken(why))) => why,
            Err(Stopped::Disk(e)) => return Err(write_error(path)(e)),
            Err(Stopped::Cancelled(e)) => return Err(e),
        };
        fruitless = if received > before { 0 } else { fruitless + 1 };
        let Some(pause) = PAUSES.get(fruitless) else {
            return Err(Error::Network(format!("{why} (what has come is kept: ask again to go on)")));
        };
        tracing::info!("{why}; going on at byte {}", growing.length);
        step(Step::Again);
        sleep(*pause, remote.cancel())?;
    }
    Ok(received)
}

enum Stopped {
    Network(Failed),
    Disk(std::io::Error),
    Cancelled(Error),
}

/// One connection's worth of bytes.
fn some(
    remote: &Remote<'_>,
    facts: &Facts,
    growing: &mut Growing,
    count: &mut dyn FnMut(u64, u64),
) -> Result<(), Stopped> {
    let (answer, from) = remote.bytes(facts, growing.length).map_err(Stopped::Network)?;
    if from < growing.length {
        growing.restart().map_err(Stopped::Disk)?;
    }
    let broken = |what: String| Stopped::Network(Failed::Broken(format!("{}: {what}", facts.url)));
    let mut body = answer.into_body().into_with_config().limit(u64::MAX).reader();
    let mut piece = vec![0; PIECE];
    while growing.length < facts.size {
        remote.cancel().check().map_err(Stopped::Cancelled)?;
        let n = match body.read(&mut piece) {
            Ok(0) => return Err(broken(format!("the connection ended at byte {} of {}", growing.length, facts.size))),
            Ok(n) => n,
            Err(e) => return Err(broken(e.to_string())),
        };
        let n = n.min(usize::try_from(facts.size - growing.length).unwrap_or(n));
        growing.push(&piece[..n]).map_err(Stopped::Disk)?;
        count(n as u64, growing.length);
    }
    Ok(())
}

/// A file that grows, and the hash of what is in it.
struct Growing {
    file: File,
    hash: Context,
    length: u64,
}

enum NotTaken {
    Cancelled(Error),
    Unreadable(std::io::Error),
}

impl NotTaken {
    fn or(self, read: impl FnOnce(std::io::Error) -> Error) -> Error {
        match self {
            NotTaken::Cancelled(e) => e,
            NotTaken::Unreadable(e) => read(e),
        }
    }
}

impl Growing {
    /// Hashes what an earlier download left, at most `size` bytes of it.
    fn take_over(&mut self, size: u64, remote: &Remote<'_>) -> Result<(), NotTaken> {
        let mut piece = vec![0; PIECE];
        while self.length < size {
            remote.cancel().check().map_err(NotTaken::Cancelled)?;
            let most = usize::try_from(size - self.length).map_or(PIECE, |n| n.min(PIECE));
            match self.file.read(&mut piece[..most]).map_err(NotTaken::Unreadable)? {
                0 => break,
                n => {
                    self.hash.update(&piece[..n]);
                    self.length += n as u64;
                }
            }
        }
        // Behind the bytes of this file there is nothing to keep.
        self.file.set_len(self.length).map_err(NotTaken::Unreadable)?;
        self.file.seek(SeekFrom::Start(self.length)).map_err(NotTaken::Unreadable)?;
        Ok(())
    }

    fn push(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.hash = Context::new(&SHA256);
        self.length = 0;
        Ok(())
    }

    /// Whether the hash is the one that the hub says, where it says one.
    fn is_right(&self, facts: &Facts) -> bool {
        let hash = self.hash.clone().finish();
        let digits: String = hash.as_ref().iter().map(|b| format!("{b:02x}")).collect();
        facts.sha256().is_none_or(|wanted| wanted.eq_ignore_ascii_case(&digits))
    }
}
