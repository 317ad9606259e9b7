//! Loading through the public interface: the demo model, from memory, cancelled.

use crate::support::gpu;
use moeray::{
    CancelToken, Error,
    session::{BackendChoice, DEMO_MODEL, LoadOptions, Model, Session, SessionOptions},
};

fn on_cpu() -> LoadOptions {
    LoadOptions { backend: BackendChoice::Cpu(Default::default()), ..LoadOptions::default() }
}

/// A load stops where its progress callback or another thread asks for it.
#[test]
fn a_load_is_cancelled() {
    let cancel = CancelToken::new();
    let load = |backend| {
        cancel.reset();
        let options = LoadOptions { backend, cancel: cancel.clone(), ..LoadOptions::default() };
        Model::demo(&options, &mut |_| cancel.cancel()).map(|_| ())
    };
    assert!(matches!(load(BackendChoice::Cpu(Default::default())), Err(Error::Cancelled)));
    if let Some(gpu) = gpu() {
        assert!(matches!(load(BackendChoice::Gpu(gpu.clone())), Err(Error::Cancelled)));
        // A cancelled load is no reason to try the next backend, and the device works on.
        let again = LoadOptions { backend: BackendChoice::Gpu(gpu), ..LoadOptions::default() };
        assert!(Model::demo(&again, &mut |_| {}).is_ok());
    }
    let before = LoadOptions { cancel: cancel.clone(), ..on_cpu() };
    assert!(matches!(Model::demo(&before, &mut |_| {}), Err(Error::Cancelled)), "asked for before the load");
}

/// The demo model is the same from the library, from bytes and from its file.
#[test]
fn the_demo_model_from_everywhere() {
    let logits = |model: Model| {
        let ids = model.require_tokenizer().unwrap().encode("ROMEO:", Default::default()).unwrap();
        Session::new(&model, SessionOptions::default()).unwrap().prefill(&ids).unwrap().to_vec()
    };
    let want = logits(Model::demo(&on_cpu(), &mut |_| {}).unwrap());
    assert_eq!(logits(Model::load_bytes(DEMO_MODEL.to_vec(), &on_cpu(), &mut |_| {}).unwrap()), want);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");
    assert_eq!(logits(Model::load(file.as_ref(), &on_cpu(), &mut |_| {}).unwrap()), want);
    let e = Model::load_bytes(DEMO_MODEL[..5000].to_vec(), &on_cpu(), &mut |_| {}).err().unwrap();
    assert!(!e.to_string().is_empty());
}
