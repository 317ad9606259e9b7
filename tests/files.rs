//! Files: what is read, what is refused and how, and that nothing panics or over-allocates on the way.

use moeray::{
    file::{self, Format},
    quant::DType,
};
use std::path::{Path, PathBuf};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[test]
fn folder_of_safetensors() {
    let c = file::open(&data("goldens/qwen3_moe")).unwrap();
    assert_eq!(c.format(), Format::SafeTensors);
    assert_eq!(c.config().unwrap()["model_type"], "qwen3_moe");
    let embed = c.require("model.embed_tokens.weight").unwrap();
    assert_eq!(embed.shape().len(), 2);
    assert_eq!(embed.dtype(), DType::BF16);
    let bytes: u64 = c.infos().iter().map(|t| t.bytes).sum();
    assert!(c.file_bytes() > bytes && c.file_bytes() - bytes < 64 << 10);
    let missing = c.require("no.such").unwrap_err().to_string();
    assert!(missing.contains("no.such"), "{missing}");
}
