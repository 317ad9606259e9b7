//! A model that memory has no room for, read from its file as it is needed.

use moeray::{
    backend::cpu,
    file::synth::{Shape, Synthetic},
    quant::{DType, KvType},
    session::{BackendChoice, LoadOptions, MemoryPlan, Model, Session, SessionOptions},
};

/// Whatever memory there is for weights, the tokens are the same, and the plan says what stays in the file.
#[test]
fn any_memory_gives_the_same_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let shape = Shape { vocab: 512, ..Shape::preset("moe-1b-a400m").unwrap() }.with_layers(3);
    Synthetic::new(&shape, 3, |_, _| DType::Q4_0).unwrap().write(&path, &mut |_, _| Ok(())).unwrap();
    let session = SessionOptions { ctx: 64, ubatch: 16, kv: KvType::F32 };
    let with = |memory: u64, repack: bool| {
        let cpu = cpu::Options { memory: Some(memory), repack, ..Default::default() };
        let options = LoadOptions { backend: BackendChoice::Cpu(cpu), ..LoadOptions::default() };
        let plan = MemoryPlan::of(&path, &options, &session).unwrap();
        let model = Model::load(&path, &options, &mut |_| {}).unwrap();
        let mut s = Session::new(&model, session).unwrap();
        let mut logits = s.prefill(&(0..12).map(|i| i * 31 + 1).collect::<Vec<u32>>()).unwrap().to_vec();
        let mut ids = vec![];
        for _ in 0..10 {
            let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
            ids.push(best as u32);
            logits = s.decode(best as u32).unwrap().to_vec();
        }
        (ids, plan.cpu, model.weight_bytes())
    };
    let (want, all, most) = with(u64::MAX, true);
    assert_eq!(all.mapped.experts, 0);
    for memory in [0, most / 4, most / 2, most - 1] {
        let (ids, plan, held) = with(memory, true);
        assert_eq!(ids, want, "with {memory} of {most} bytes");
        assert!(held <= memory && plan.mapped.experts > 0, "{plan:?}");
    }
    assert_eq!(with(0, false).0, want, "without copies");
}
