//! Broken and hostile files: each is refused with words that say where and what.

use super::{build::Gguf, build::sample, data, scratch};
use crate::alloc;
use moeray::file::{self, Bytes};
use std::path::Path;

/// The error of a GGUF in memory, found without allocating more than the file justifies.
fn refuse(bytes: Vec<u8>) -> String {
    let n = bytes.len();
    let bytes = Bytes::from_vec(bytes);
    let (result, peak) = alloc::peak(|| file::open_bytes(bytes));
    assert!(peak <= 16 * n + 16_384, "{peak} bytes allocated for a file of {n}");
    result.expect_err("was accepted").to_string()
}

#[track_caller]
fn says(error: String, parts: &[&str]) {
    for p in parts {
        assert!(error.contains(p), "{error:?} does not say {p:?}");
    }
}

#[test]
fn every_truncation_is_an_error() {
    let whole = sample().bytes;
    for n in 0..whole.len() {
        let error = refuse(whole[..n].to_vec());
        assert!(!error.is_empty());
    }
    says(refuse(whole[..whole.len() - 1].to_vec()), &["`three`", "144 bytes of Q4_K", "end beyond the file's"]);
    says(refuse(whole[..30].to_vec()), &["the metadata count says 17 at byte 24", "6 bytes left", "truncated"]);
    says(refuse(whole[..10].to_vec()), &["the tensor count at byte 8 needs 8 bytes", "ends at byte 10", "truncated"]);
}

#[test]
fn wrong_head() {
    says(refuse(Vec::new()), &["is empty", "GGUF"]);
    says(refuse(b"PK\x03\x04....".to_vec()), &["zip", "accepted"]);
    says(refuse(b"<!DOCTYPE html>".to_vec()), &["HTML"]);
    says(refuse(b"version https://git-lfs.github.com/spec/v1".to_vec()), &["LFS"]);
    let mut big = Gguf::default();
    big.raw(b"GGUF").raw(&3u32.to_be_bytes()).raw(&[0; 16]);
    says(refuse(big.bytes), &["big-endian GGUF (version 3)", "little-endian"]);
    says(refuse(Gguf::new(1, 0, 0).bytes), &["version 1", "2 and 3"]);
    says(refuse(Gguf::new(4, 0, 0).bytes), &["version 4"]);
}

#[test]
fn counts_beyond_the_file() {
    for count in [2, 1_000_000, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
        let mut g = Gguf::new(3, 0, count);
        says(refuse(g.entry("a", 0, &[1]).bytes.clone()), &["the metadata count", &count.to_string()]);
        says(refuse(Gguf::new(3, count, 0).bytes), &["the tensor count", &count.to_string()]);
        for kind in [0, 4, 8, 9, 10] {
            let mut g = Gguf::new(3, 0, 1);
            g.array("tokens", kind, count).raw(&[0]);
            says(refuse(g.bytes), &["the length of array `tokens`", &count.to_string()]);
        }
        let mut g = Gguf::new(3, 0, 1);
        says(refuse(g.length(count).raw(&[b'k'; 1]).bytes.clone()), &["metadata"]);
    }
}

/// A million entries that are really there may take memory in proportion, but not more.
#[test]
fn bombs_stay_in_proportion() {
    let n = 20_000u32;
    let mut entries = Gguf::new(3, 0, n.into());
    for i in 0..n {
        entries.string(&i.to_le_bytes().map(|b| b & 0x7f)).u32(0).raw(&[0]);
    }
    says(refuse(entries.bytes), &["comes twice"]);
    let mut nested = Gguf::new(3, 0, 1);
    nested.array("deep", 9, n.into());
    for _ in 1..n {
        nested.u32(4).length(0);
    }
    says(refuse(nested.u32(77).length(0).bytes.clone()), &["`deep` has unknown value type 77"]);
    let mut tensors = Gguf::new(3, n.into(), 0);
    for i in 0..n {
        tensors.tensor(&format!("{i}"), &[1], 0, u64::from(i) * 32);
    }
    says(refuse(tensors.bytes), &["beyond the file's"]);
}

#[test]
fn values() {
    let one = |f: &dyn for<'a> Fn(&'a mut Gguf) -> &'a mut Gguf| {
        let mut g = Gguf::new(3, 0, 1);
        f(&mut g);
        refuse(g.bytes)
    };
    says(one(&|g| g.entry("k", 13, &[0; 8])), &["`k` has unknown value type 13"]);
    says(one(&|g| g.array("k", 99, 0).raw(&[0; 8])), &["`k` has unknown value type 99"]);
    says(one(&|g| g.entry("k", 7, &[2])), &["`k` holds 2 as a truth value"]);
    says(one(&|g| g.array("k", 7, 3).raw(&[0, 1, 9])), &["`k` holds 9 as a truth value"]);
    says(one(&|g| g.string(b"\xff\xfe").u32(0).raw(&[0])), &["metadata key 0", "UTF-8"]);
    says(one(&|g| g.string(b"tokenizer.k").u32(8).string(b"ab\xff")), &["`tokenizer.k`", "UTF-8"]);
    says(one(&|g| g.array("tokenizer.k", 8, 2).string(b"a").string(b"\x80")), &["string 1 of `tokenizer.k`", "UTF-8"]);
    for bad in [0u32, 3, 33, u32::MAX] {
        says(one(&|g| g.entry("general.alignment", 4, &bad.to_le_bytes())), &["general.alignment", "power of two"]);
    }
    says(one(&|g| g.text("general.alignment", "32")), &["general.alignment", "power of two"]);
    says(one(&|g| g.text("split.count", "many")), &["split.count"]);
    let mut twice = Gguf::new(3, 0, 2);
    says(refuse(twice.entry("k", 0, &[1]).entry("k", 0, &[1]).bytes.clone()), &["`k` comes twice"]);
    let deep = one(&|g| (0..100_000).fold(g.array("k", 9, 1), |g, _| g.u32(9).length(1)));
    says(deep, &["`k` nests arrays deeper than 4"]);
}

#[test]
fn tensors() {
    let one = |dims: &[u64], kind: u32, offset: u64| {
        let mut g = Gguf::new(3, 1, 0);
        refuse(g.tensor("w", dims, kind, offset).data(32, &[0; 64]))
    };
    says(one(&[], 0, 0), &["`w` has 0 dimensions"]);
    says(one(&[1, 1, 1, 1, 1], 0, 0), &["`w` has 5 dimensions"]);
    says(one(&[4, 0], 0, 0), &["`w` has a dimension of 0"]);
    says(one(&[33], 8, 0), &["`w` [33]", "32-weight Q8_0 blocks"]);
    says(one(&[16], 0, 32), &["64 bytes of F32", "end beyond"]);
    says(one(&[17], 0, 0), &["68 bytes of F32", "end beyond"]);
    says(one(&[1], 0, 96), &["lies beyond the file's"]);
    says(one(&[1], 0, 4), &["offset 4 is no multiple of the alignment 32"]);
    says(one(&[1], 0, u64::MAX - 31), &["lies beyond the file's"]);
    says(one(&[1 << 33, 1 << 33], 0, 0), &["overflows"]);
    says(one(&[u64::MAX], 0, 0), &["overflows"]);
    says(one(&[1, u64::MAX, u64::MAX], 999, 96), &["lies beyond the file's"]);
    let two = |name: &str, offset: u64| {
        let mut g = Gguf::new(3, 2, 0);
        refuse(g.tensor("w", &[16], 0, 0).tensor(name, &[1], 0, offset).data(32, &[0; 128]))
    };
    says(two("w", 64), &["`w` comes twice"]);
    says(two("v", 32), &["`w`", "overlaps tensor `v`"]);
    says(two("v", 0), &["overlaps"]);
}

fn refuse_path(path: &Path) -> String {
    file::open(path).expect_err("was accepted").to_string()
}

#[test]
fn paths() {
    let dir = scratch();
    let path = dir.path().join("model");
    says(refuse_path(&path), &["cannot read", "model"]);
    std::fs::create_dir(&path).unwrap();
    says(refuse_path(&path), &["folder without config.json", "accepted"]);
    std::fs::write(path.join("m.gguf"), sample().bytes).unwrap();
    says(refuse_path(&path), &["it holds m.gguf"]);
    std::fs::write(path.join("config.json"), "{}").unwrap();
    says(refuse_path(&path), &["no .safetensors file"]);
    std::fs::write(path.join("pytorch_model.bin"), "PK\x03\x04").unwrap();
    says(refuse_path(&path), &["pytorch_model.bin", "pickles are not read"]);
    says(refuse_path(&path.join("pytorch_model.bin")), &["zip archive", "PyTorch"]);
    std::fs::write(path.join("x"), [0; 100]).unwrap();
    says(refuse_path(&path.join("x")), &["all zeros"]);
    let lone = dir.path().join("lone.safetensors");
    std::fs::copy(data("goldens/llama/model.safetensors"), &lone).unwrap();
    says(refuse_path(&lone), &["without a config.json beside it"]);
    #[cfg(unix)]
    says(refuse_path(Path::new("/dev/zero")), &["neither a file nor a folder"]);
}

#[cfg(unix)]
#[test]
fn links_stay_inside() {
    use std::os::unix::fs::symlink;
    let dir = scratch();
    let folder = dir.path().join("models--x/snapshots/rev");
    let blobs = dir.path().join("models--x/blobs");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    let outside = dir.path().join("outside");
    std::fs::copy(data("goldens/llama/model.safetensors"), &outside).unwrap();
    symlink(&outside, folder.join("model.safetensors")).unwrap();
    says(refuse_path(&folder), &["link that leaves its folder", "outside"]);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    std::fs::rename(&outside, blobs.join("hash")).unwrap();
    symlink("../../blobs/hash", folder.join("model.safetensors")).unwrap();
    assert!(file::open(&folder).unwrap().tensors().count() > 0);
}

/// The error of a folder whose `model.safetensors` is `bytes`, or its tensors' names.
pub fn open_safetensors(bytes: &[u8]) -> moeray::Result<file::Checkpoint> {
    let dir = scratch();
    std::fs::write(dir.path().join("config.json"), "{}").unwrap();
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    let (result, peak) = alloc::peak(|| file::open(dir.path()));
    let most = 64 * bytes.len() + 65_536;
    assert!(peak <= most, "{peak} bytes allocated for a file of {}", bytes.len());
    result
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut b = (header.len() as u64).to_le_bytes().to_vec();
    b.extend_from_slice(header.as_bytes());
    b.resize(b.len() + data, 0);
    b
}

#[test]
fn safetensors_headers() {
    let error =
        |header: &str, data: usize| open_safetensors(&safetensors(header, data)).expect_err("was accepted").to_string();
    says(error("{", 0), &["model.safetensors", "JSON"]);
    for header in [
        r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,12]}}"#,
        r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
        r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
        r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#,
        r#"{"w":{"dtype":"F32","shape":[18446744073709551615,18446744073709551615],"data_offsets":[0,8]}}"#,
        r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}"#,
        r#"{"w":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#,
        r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[18446744073709551615,18446744073709551615]}}"#,
    ] {
        says(error(header, 8), &["model.safetensors"]);
    }
    for length in [0, 1, u64::MAX, u64::MAX - 7, 100_000_001] {
        let mut b = safetensors(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
        b[..8].copy_from_slice(&length.to_le_bytes());
        assert!(open_safetensors(&b).is_err());
    }
    let bomb = format!(r#"{{"w":{{"dtype":"F32","shape":[{}1],"data_offsets":[0,4]}}}}"#, "1,".repeat(100_000));
    drop(open_safetensors(&safetensors(&bomb, 4)));
    let bomb: String = (0..30_000).map(|i| format!("\"{i}\":0,")).collect();
    says(error(&format!("{{{bomb}\"x\":0}}"), 0), &["JSON"]);
    says(error(&format!("{{\"w\":{}", "[".repeat(100_000)), 0), &["recursion limit"]);
}

#[test]
fn safetensors_of_other_types() {
    let header = r#"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"none":{"dtype":"F32","shape":[0,5],"data_offsets":[8,8]},"s":{"dtype":"BF16","shape":[],"data_offsets":[8,10]}}"#;
    let c = open_safetensors(&safetensors(header, 10)).unwrap();
    assert_eq!(c.infos().len(), 3);
    says(c.require("ids").unwrap_err().to_string(), &["`ids` has type I64", "BF16"]);
    says(c.require("none").unwrap_err().to_string(), &["`none` has no weights"]);
    assert_eq!(c.require("s").unwrap().shape(), [1]);
}

/// What is written replaces files and nothing else, and what cannot be written is said so.
#[cfg(unix)]
#[test]
fn outputs_that_cannot_be() {
    use moeray::file::{Metadata, write_gguf};
    use std::{os::unix::fs::FileTypeExt, path::Path};
    let write = |path: &str| write_gguf(Path::new(path), &Metadata::new(), &[], &mut |_, _| Ok(()));
    let device = write("/dev/null").unwrap_err().to_string();
    assert!(device.contains("cannot write /dev/null") && device.contains("no regular file"), "{device}");
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    let nowhere = write("/nonexistent/a.gguf").unwrap_err().to_string();
    assert!(nowhere.contains("cannot write /nonexistent/a.gguf"), "{nowhere}");
}
