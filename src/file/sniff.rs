//! What a file is, by its first bytes: so that a wrong file is refused by saying what it is.

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Starts with GGUF's magic number.
    Gguf,
    /// A plausible header length and an opening brace: safetensors.
    SafeTensors,
    /// Something else, in words.
    Other(&'static str),
}

/// Recognises a file by its first bytes (`head`: up to 512 of them) and its size.
pub(super) fn sniff(head: &[u8], size: u64) -> Kind {
    if head.starts_with(super::gguf::MAGIC) {
        return Kind::Gguf;
    }
    if let Some((len, rest)) = head.split_first_chunk::<8>()
        && rest.first() == Some(&b'{')
        && u64::from_le_bytes(*len) <= size
    {
        return Kind::SafeTensors;
    }
    Kind::Other(other(head))
}

fn other(head: &[u8]) -> &'static str {
    const MAGICS: &[(&[u8], &str)] = &[
        (b"PK\x03\x04", "a zip archive (PyTorch .bin, .pt and .pth files are zip archives of pickles)"),
        (b"\x80\x02", "a Python pickle (an old PyTorch file)"),
        (b"\x80\x03", "a Python pickle"),
        (b"\x80\x04", "a Python pickle"),
        (b"\x80\x05", "a Python pickle"),
        (b"tjgg", "a GGML file of the time before GGUF (ggjt)"),
        (b"lmgg", "a GGML file of the time before GGUF (ggml)"),
        (b"fmgg", "a GGML file of the time before GGUF (ggmf)"),
        (b"version https://git-lfs", "a Git LFS pointer, not the file itself (run `git lfs pull`)"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x1f\x8b", "gzip-compressed"),
        (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
        (b"\x93NUMPY", "a numpy array"),
        (b"\x7fELF", "a program (ELF)"),
        (b"%PDF", "a PDF document"),
    ];
    if head.is_empty() {
        return "empty";
    }
    if let Some((_, what)) = MAGICS.iter().find(|(m, _)| head.starts_with(m)) {
        return what;
    }
    let text = head.trim_ascii_start();
    match text.first() {
        Some(b'<') => "an HTML or XML page (a download that got a web page instead of the file?)",
        Some(b'{' | b'[') => "a JSON text",
        None => "blank",
        _ if head.iter().all(|b| *b == 0) => "all zeros (an unfinished download?)",
        _ if std::str::from_utf8(head).is_ok() => "a text",
        _ => "of an unknown kind",
    }
}
