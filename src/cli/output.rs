//! Files that appear whole or not at all: written beside their place, then renamed.

use super::{
    failure::{Failure, Outcome, say},
    interrupt,
};
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// A file under way. Dropped without [`NewFile::finish`], it leaves nothing behind.
pub struct NewFile {
    path: PathBuf,
    /// `None` where there is no file to replace: a pipe, `/dev/null`.
    temporary: Option<PathBuf>,
    file: Option<BufWriter<File>>,
}

impl NewFile {
    /// Starts a file beside `path`.
    pub fn create(path: &Path) -> Outcome<Self> {
        let fail = |e: io::Error| Failure::io("write", path, &e);
        let (path, temporary) = match std::fs::metadata(path) {
            Ok(m) if m.is_dir() => {
                return Err(Failure::new(format!("cannot write {}: it is a folder", path.display())));
            }
            Ok(m) if !m.is_file() => (path.to_path_buf(), None),
            // What a link points to is replaced, not the link.
            Ok(_) => {
                let real = path.canonicalize().map_err(fail)?;
                (real.clone(), Some(beside(&real)))
            }
            Err(_) => (path.to_path_buf(), Some(beside(path))),
        };
        let file = match &temporary {
            Some(t) => File::create_new(t).map_err(fail)?,
            None => File::options().write(true).open(&path).map_err(fail)?,
        };
        interrupt::unfinished(temporary.as_deref());
        Ok(NewFile { path, temporary, file: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    /// Writes out what is buffered and gives the file its name.
    pub fn finish(mut self) -> Outcome {
        let result = self.flush().and_then(|()| {
            drop(self.file.take());
            self.temporary.as_ref().map_or(Ok(()), |t| std::fs::rename(t, &self.path))
        });
        result.map_err(|e| Failure::io("write", &self.path, &e))
    }

    /// An error of this file as a failure that names it.
    pub fn failure(&self, e: &io::Error) -> Failure {
        Failure::io("write", &self.path, e)
    }

    fn inner(&mut self) -> io::Result<&mut BufWriter<File>> {
        self.file.as_mut().ok_or_else(|| io::Error::other("the file is closed"))
    }
}

impl Write for NewFile {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.inner()?.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner()?.flush()
    }
}

impl io::Seek for NewFile {
    fn seek(&mut self, pos: io::SeekFrom) -> io::Result<u64> {
        self.inner()?.seek(pos)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        drop(self.file.take());
        // After a successful rename there is nothing of this name.
        let _ = self.temporary.as_ref().map(std::fs::remove_file);
        interrupt::unfinished(None);
    }
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

/// What has asked for standard input, which can be read once.
static STANDARD_INPUT: OnceLock<String> = OnceLock::new();

/// Says that `who` (an option) reads standard input.
pub fn claim_standard_input(who: &str) -> Outcome {
    let mut first = false;
    let before = STANDARD_INPUT.get_or_init(|| {
        first = true;
        who.to_owned()
    });
    if first {
        return Ok(());
    }
    let both = if before == who { format!("{who} twice") } else { format!("{before} and {who}") };
    Err(Failure::new(format!("standard input is asked for twice, by {both}: it can be read once"))
        .hint("put one of the texts into a file"))
}

/// Reads the file that `option` names, or standard input for `-`, as UTF-8 text.
pub fn read_text(option: &str, path: &Path) -> Outcome<String> {
    let (name, bytes) = if path == Path::new("-") {
        claim_standard_input(option)?;
        let mut bytes = Vec::new();
        let read = io::Read::read_to_end(&mut io::stdin().lock(), &mut bytes);
        ("standard input".into(), read.map(|_| bytes))
    } else {
        (path.display().to_string(), std::fs::read(path))
    };
    let bytes = bytes.map_err(|e| Failure::new(format!("{option}: cannot read {name}: {e}")))?;
    String::from_utf8(bytes).map_err(|e| {
        Failure::new(format!("{option}: {name} is not UTF-8 text: bad byte at offset {}", e.utf8_error().valid_up_to()))
            .hint("convert it first, for example with: iconv -f latin1 -t utf-8")
    })
}

/// Whether a file can be written where `option` wants one, by beginning one: said before hours of work, not after.
pub fn check_place(option: &str, path: &Path) -> Outcome {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let (path, folder) = (path.display(), folder.display());
        return Err(Failure::new(format!("{option}: cannot write {path}: there is no folder {folder}")));
    }
    NewFile::create(path).map(drop).map_err(|e| match e {
        Failure::Said { message, hint } => Failure::Said { message: format!("{option}: {message}"), hint },
        other => other,
    })
}

/// Says how much was written where, unless that is no file or nobody wants to hear it; `before` is whether there was such a file
/// already.
pub fn written(path: &Path, before: bool, quiet: bool) {
    if let Some(m) = std::fs::metadata(path).ok().filter(|m| m.is_file() && !quiet) {
        let over = if before { ", in place of the file that was there" } else { "" };
        say(format_args!("{} written to {}{over}", super::units::bytes(m.len()), path.display()));
    }
}
