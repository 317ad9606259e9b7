//! Loading through the public interface: the demo model, from memory, cancelled.

use crate::support::gpu;
use moeray::{
    CancelToken, Error, KvType,
    session::{BackendChoice, DEMO_MODEL, LoadOptions, MemoryNeeds, Model, Session, SessionOptions},
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

/// What a model needs is known before it is loaded: the file's bytes but for its header, and keys and values by the context.
#[test]
fn needs_are_counted_before_loading() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");
    let needs = |ctx, kv| MemoryNeeds::of(file.as_ref(), &SessionOptions { ctx, kv, ..Default::default() }).unwrap();
    let n = needs(1000, KvType::F16);
    let size = std::fs::metadata(file).unwrap().len();
    assert!(n.weights < size && n.weights > size * 9 / 10, "{n:?} of {size}");
    // Four layers, two heads of 64 numbers for keys and values each, two bytes.
    assert_eq!((n.kv, n.states), (4 * 2 * 2 * 64 * 2 * 1000, 0));
    assert_eq!(needs(1000, KvType::F32).kv, 2 * n.kv);
    assert!(n.read_per_token < n.weights && n.total() == n.weights + n.kv);
    assert!(MemoryNeeds::of("missing.gguf".as_ref(), &SessionOptions::default()).is_err());
}

/// A fork goes on as the original would, and neither sees the other's tokens.
#[test]
fn a_fork_has_a_context_of_its_own() {
    let model = Model::demo(&on_cpu(), &mut |_| {}).unwrap();
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    session.prefill(&[5, 6, 7, 8]).unwrap();
    let mut fork = session.fork().unwrap();
    let (a, b) = (session.decode(9).unwrap().to_vec(), fork.decode(9).unwrap().to_vec());
    assert_eq!(a, b);
    let other = fork.decode(30).unwrap().to_vec();
    assert_eq!((session.position(), fork.position()), (5, 6));
    assert_ne!(session.decode(31).unwrap(), other);
    session.truncate(5);
    assert_eq!(session.decode(30).unwrap(), other);
}
