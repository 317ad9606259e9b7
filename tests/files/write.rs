//! The writer: what it writes, the reader reads back; what fails leaves nothing behind.

use super::{build, scratch};
use moeray::{
    Error,
    file::{self, Array, Bytes, Metadata, TensorSpec, Value, ValueType, write_gguf, write_gguf_to},
    quant::DType,
};
use proptest::prelude::*;
use std::path::Path;

fn values() -> impl Strategy<Value = Value> {
    let text = "\\PC{0,12}";
    let fixed = (any::<Vec<u64>>(), 0..13u32).prop_filter_map("strings and arrays have no fixed size", |(v, kind)| {
        let kind = ValueType::from_id(kind)?;
        let size = kind.size()?;
        let mask = if kind == ValueType::Bool { 1 } else { u64::MAX };
        let bytes = v.iter().flat_map(|x| (x & mask).to_le_bytes()[..size].to_vec()).collect();
        Array::from_le_bytes(kind, bytes)
    });
    let array = prop_oneof![fixed, prop::collection::vec(text, 0..5).prop_map(Array::from_strings)];
    let array = array.prop_recursive(2, 8, 3, |inner| prop::collection::vec(inner, 0..3).prop_map(Array::nested));
    prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_filter("NaN differs from itself", |v| !v.is_nan()).prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        text.prop_map(Value::string),
        array.prop_map(Value::Array),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_filter("NaN differs from itself", |v| !v.is_nan()).prop_map(Value::F64),
    ]
}

fn tensors() -> impl Strategy<Value = Vec<TensorSpec>> {
    let one =
        (0..DType::ALL.len(), 1..3usize, prop::collection::vec(1..4usize, 0..3)).prop_map(|(d, blocks, mut lead)| {
            let dtype = DType::ALL[d];
            lead.push(blocks * dtype.layout().block);
            TensorSpec { name: String::new(), dtype, shape: lead }
        });
    prop::collection::vec(one, 0..6).prop_map(|mut list| {
        list.iter_mut().enumerate().for_each(|(i, t)| t.name = format!("t.{i}"));
        list
    })
}

fn content(i: usize, len: usize) -> Vec<u8> {
    (0..len).map(|j| (i * 31 + j * 7 + j / 251) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn round_trip(entries in prop::collection::btree_map("[a-z.]{1,12}", values(), 0..8), specs in tensors(), piece in 1..100usize) {
        let meta = Metadata::from_entries(entries.into_iter().collect()).unwrap();
        let mut out = Vec::new();
        write_gguf_to(&mut out, Path::new("memory"), &meta, &specs, &mut |i, sink| {
            content(i, specs[i].byte_len().unwrap()).chunks(piece).try_for_each(|c| sink.write(c))
        }).unwrap();
        let c = file::open_bytes(Bytes::from_vec(out)).unwrap();
        prop_assert_eq!(c.meta(), &meta);
        prop_assert_eq!(c.infos().len(), specs.len());
        for (i, spec) in specs.iter().enumerate() {
            let t = c.require(&spec.name).unwrap();
            prop_assert_eq!((t.dtype(), t.shape()), (spec.dtype, &spec.shape[..]));
            prop_assert_eq!(c.info(&spec.name).unwrap().offset % 32, 0);
            prop_assert_eq!(&t.parts()[0][..], &content(i, t.byte_len())[..]);
        }
    }
}

fn spec(name: &str, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: DType::Q8_0, shape: shape.to_vec() }
}

/// Nothing is left in the folder, and an older file of the name stays as it was.
#[test]
fn failure_leaves_nothing() {
    let dir = scratch();
    let path = dir.path().join("out.gguf");
    std::fs::write(&path, "old").unwrap();
    let meta = Metadata::new();
    let one = [spec("w", &[2, 32])];
    type Fill = dyn Fn(&mut file::Sink<'_>) -> moeray::Result<()>;
    let attempts: [(&[TensorSpec], &Fill, &str); 7] = [
        (&one, &|_| Err(Error::Cancelled), "cancelled"),
        (&one, &|s| s.write(&[0; 67]), "1 bytes too few"),
        (&one, &|s| s.write(&[0; 68]).and_then(|()| s.write(&[0; 3])), "3 bytes too many"),
        (&[spec("w", &[2, 33])], &|_| Ok(()), "cannot be Q8_0"),
        (&[spec("w", &[])], &|_| Ok(()), "cannot be Q8_0"),
        (&[spec("w", &[1, 1, 1, 1, 32])], &|_| Ok(()), "cannot be Q8_0"),
        (&[spec("w", &[32]), spec("w", &[32])], &|_| Ok(()), "written twice"),
    ];
    for (specs, fill, says) in attempts {
        let error = write_gguf(&path, &meta, specs, &mut |_, s| fill(s)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    write_gguf(&path, &meta, &one, &mut |_, s| s.write(&[1; 68])).unwrap();
    assert_eq!(file::open(&path).unwrap().require("w").unwrap().row(1), [1; 34]);
    let nowhere = write_gguf(&dir.path().join("no/where.gguf"), &meta, &one, &mut |_, s| s.write(&[1; 68]));
    assert!(nowhere.unwrap_err().to_string().contains("where.gguf"));
}

/// A file may be written over while it is being read from, and what belongs to the old container is left out.
#[test]
fn over_itself() {
    let dir = scratch();
    let path = dir.path().join("m.gguf");
    std::fs::write(&path, build::sample().bytes).unwrap();
    let old = file::open(&path).unwrap();
    let mut meta = old.meta().clone();
    meta.set("general.alignment", Value::U32(64));
    meta.set("split.count", Value::U16(3));
    meta.set("k.u8", Value::U8(1));
    let specs: Vec<_> = old
        .tensors()
        .map(|(n, t)| TensorSpec { name: n.into(), dtype: t.dtype(), shape: t.shape().to_vec() })
        .collect();
    write_gguf(&path, &meta, &specs, &mut |i, s| s.write(&old.require(&specs[i].name)?.parts()[0])).unwrap();
    let new = file::open(&path).unwrap();
    assert_eq!(new.meta().len(), old.meta().len());
    assert_eq!(new.meta().u64("k.u8"), Some(1));
    for (name, t) in old.tensors() {
        assert_eq!(t.parts()[0][..], new.require(name).unwrap().parts()[0][..]);
    }
}
