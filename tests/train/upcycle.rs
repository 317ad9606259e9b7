//! Dense models as models with experts: at first they compute the same.

use crate::support::{
    compare::diff,
    one::{OneSequence, Step, one},
};
use moeray::{
    file::{self, Checkpoint, Tensor, Value},
    model,
    quant::{DType, KvType},
    train::{Gate, UpcycleOptions, data::normal, upcycle},
};

const H: usize = 64;

/// A dense Llama of two layers with hash weights.
fn dense(dtype: DType) -> Checkpoint {
    let mut meta = file::Metadata::new();
    meta.set("general.architecture", Value::string("llama"));
    for (key, n) in [
        ("block_count", 2u32),
        ("context_length", 128),
        ("embedding_length", H as u32),
        ("feed_forward_length", 96),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
        ("rope.dimension_count", 16),
        ("vocab_size", 50),
    ] {
        meta.set(format!("llama.{key}"), Value::U32(n));
    }
    meta.set("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5));
    meta.set("tokenizer.ggml.model", Value::string("no_vocab"));
    let mut names = vec![("token_embd.weight".to_owned(), vec![50, H]), ("output_norm.weight".into(), vec![H])];
    for i in 0..2 {
        let at = |n: &str| format!("blk.{i}.{n}.weight");
        names.extend([
            (at("attn_norm"), vec![H]),
            (at("attn_q"), vec![H, H]),
            (at("attn_k"), vec![H / 2, H]),
            (at("attn_v"), vec![H / 2, H]),
            (at("attn_output"), vec![H, H]),
            (at("ffn_norm"), vec![H]),
            (at("ffn_gate"), vec![96, H]),
            (at("ffn_up"), vec![96, H]),
            (at("ffn_down"), vec![H, 96]),
        ]);
    }
    let tensor = |(s, (name, shape)): (usize, (String, Vec<usize>))| {
        let n: usize = shape.iter().product();
        let norm = shape.len() == 1;
        let x: Vec<f32> = (0..n).map(|i| normal(1, s as u32, i as u32) * 0.1 + f32::from(u8::from(norm))).collect();
        let t = match norm {
            true => Tensor::from_f32(shape, x),
            false => {
                let bytes = moeray::quant::quantize_rows(dtype, shape[0], shape[1], &x, 1).unwrap();
                Tensor::new(dtype, shape, vec![file::Bytes::from_vec(bytes)])
            }
        };
        (name, t.unwrap())
    };
    Checkpoint::from_parts(meta, names.into_iter().enumerate().map(tensor).collect()).unwrap()
}

fn logits(ckpt: &Checkpoint) -> Vec<f32> {
    let d = model::build(ckpt, &Default::default()).unwrap();
    let loaded = moeray::backend::reference::load(d.program).unwrap();
    let mut runner = loaded.runner(one(32, 32, KvType::F32)).unwrap();
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % 50).collect();
    let mut out = vec![];
    runner.run(Step { tokens: &ids, past: 0, outputs: 20, inputs: &[] }, &mut out).unwrap();
    out[0].f32.clone()
}

#[test]
fn it_computes_what_the_dense_model_does() {
    for dtype in [DType::F32, DType::Q8_0] {
        let dense = dense(dtype);
        let want = logits(&dense);
        let hidden = Gate::Hidden((0..4).map(|e| vec![vec![e, 9, e + 30], vec![e * 3, 7]]).collect());
        for (gate, used) in [(Gate::Random, 2), (Gate::Random, 1), (Gate::Random, 4), (hidden, 2)] {
            let o = UpcycleOptions { experts: 4, used, gate, ..Default::default() };
            let made = upcycle(&dense, &o).unwrap();
            let d = diff(&logits(&made), &want);
            assert!(d.nmse < 1e-11 && d.non_finite == 0, "{dtype:?}, {o:?}: {d:?}");
            assert_eq!(made.tensor("blk.1.ffn_up_exps.weight").unwrap().shape(), [4, 96, H]);
        }
    }
}

#[test]
fn prompts_make_routers_that_know_them() {
    let prompts: Vec<Vec<Vec<u32>>> = (0..3).map(|e| vec![vec![e, e + 10, e + 20, e + 30]]).collect();
    let o = UpcycleOptions { experts: 3, used: 1, gate: Gate::Hidden(prompts.clone()), ..Default::default() };
    let made = upcycle(&dense(DType::F32), &o).unwrap();
    let router = made.tensor("blk.0.ffn_gate_inp.weight").unwrap();
    for e in 0..3 {
        let norm: f32 = bytemuck_f32(router.row(e)).iter().map(|x| x * x).sum();
        assert!((norm - 1.0).abs() < 1e-4, "rows are normalised: {norm}");
    }
    // In the first layer the choice depends on the token and its neighbours: its own prompt's tokens mostly choose the expert.
    let d = model::build(&made, &model::Options { trace_router: true }).unwrap();
    let loaded = moeray::backend::reference::load(d.program).unwrap();
    let mut right = 0;
    for (e, ids) in prompts.iter().enumerate() {
        let mut runner = loaded.runner(one(8, 8, KvType::F32)).unwrap();
        let mut out = vec![];
        runner.run(Step { tokens: &ids[0], past: 0, outputs: 4, inputs: &[] }, &mut out).unwrap();
        right += out[1].u32.iter().filter(|id| **id as usize == e).count();
    }
    assert!(right >= 9, "{right} of 12");
}

fn bytemuck_f32(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn noise_tells_experts_apart_and_the_seed_decides() {
    let dense = dense(DType::F32);
    let make =
        |noise, seed| upcycle(&dense, &UpcycleOptions { experts: 3, noise, seed, ..Default::default() }).unwrap();
    let all = |c: &Checkpoint| {
        c.tensors()
            .flat_map(|(_, t)| t.parts().iter().flat_map(|p| p.to_vec()).collect::<Vec<u8>>())
            .collect::<Vec<u8>>()
    };
    let a = make(0.05, 1);
    assert!(all(&a) == all(&make(0.05, 1)) && all(&a) != all(&make(0.05, 2)));
    let (t, d) = (a.tensor("blk.0.ffn_up_exps.weight").unwrap(), dense.tensor("blk.0.ffn_up.weight").unwrap());
    let rows = |first: usize| (first..first + 96).flat_map(|r| bytemuck_f32(t.row(r))).collect::<Vec<f32>>();
    let want: Vec<f32> = (0..96).flat_map(|r| bytemuck_f32(d.row(r))).collect();
    assert_eq!(rows(0), want, "the first expert is the dense network");
    for e in [96, 192] {
        let d = diff(&rows(e), &want).nmse;
        assert!((0.002..0.003).contains(&d), "noise of 5 %: {d}");
    }
    assert_ne!(rows(96), rows(192));
    let e = upcycle(&super::upcycle::dense(DType::Q8_0), &UpcycleOptions { noise: 0.1, ..Default::default() });
    assert!(e.unwrap_err().to_string().contains("Q8_0"));
}

#[test]
fn impossible_ones_are_named() {
    let d = dense(DType::F32);
    let o = UpcycleOptions::default();
    for (o, words) in [
        (UpcycleOptions { experts: 1, ..o.clone() }, "1 experts"),
        (UpcycleOptions { used: 0, ..o.clone() }, "0 of 8"),
        (UpcycleOptions { used: 9, ..o.clone() }, "9 of 8"),
        (UpcycleOptions { noise: f32::NAN, ..o.clone() }, "noise"),
        (UpcycleOptions { gate: Gate::Hidden(vec![vec![vec![1]]]), ..o.clone() }, "prompts for 1"),
        (UpcycleOptions { experts: 2, gate: Gate::Hidden(vec![vec![vec![1]], vec![]]), ..o.clone() }, "expert 1"),
        (
            UpcycleOptions { experts: 2, gate: Gate::Hidden(vec![vec![vec![1]], vec![vec![50]]]), ..o.clone() },
            "token 50",
        ),
        (
            UpcycleOptions { experts: 2, gate: Gate::Hidden(vec![vec![vec![1]], vec![vec![1; 129]]]), ..o.clone() },
            "129",
        ),
    ] {
        assert!(upcycle(&d, &o).unwrap_err().to_string().contains(words), "{words}");
    }
    let moe = upcycle(&d, &o).unwrap();
    assert!(upcycle(&moe, &o).unwrap_err().to_string().contains("experts already"));
    let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bard-q4_k_m.gguf");
    assert!(upcycle(&file::open(&demo).unwrap(), &o).unwrap_err().to_string().contains("qwen2moe"));
}

#[test]
fn the_verb_writes_a_model_that_runs() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("dense.gguf"), dir.path().join("moe.gguf"));
    UpcycleOptions::default().write(&dense(DType::F32), &from).unwrap();
    assert!(file::open(&from).unwrap().tensor("blk.0.ffn_gate_inp.weight").is_some());
    let ckpt = dense(DType::F32);
    let specs: Vec<file::TensorSpec> = ckpt
        .tensors()
        .map(|(n, t)| file::TensorSpec { name: n.into(), dtype: t.dtype(), shape: t.shape().to_vec() })
        .collect();
    let tensors: Vec<&Tensor> = ckpt.tensors().map(|(_, t)| t).collect();
    file::write_gguf(&from, ckpt.meta(), &specs, &mut |i, s| tensors[i].parts().iter().try_for_each(|p| s.write(p)))
        .unwrap();
    let [from, to] = [from.to_str().unwrap(), to.to_str().unwrap()];
    let out = crate::cli::moeray(&["upcycle", from, to, "--experts", "3", "--used", "1"]);
    assert_eq!(out.code, Some(0), "{}", out.stderr);
    assert!(out.stderr.contains("3 experts, 1 used"), "{}", out.stderr);
    assert!(diff(&logits(&file::open(to.as_ref()).unwrap()), &logits(&ckpt)).nmse < 1e-11);
    crate::cli::fails(&["upcycle", from, to], &["exists already", "--force"]);
    crate::cli::fails(&["upcycle", from, to, "--force", "--used", "9"], &["--used 9"]);
    crate::cli::fails(&["upcycle", from, from, "--force"], &["is what is read"]);
    crate::cli::fails(&["upcycle", from, "/no/such/folder/x.gguf"], &["there is no folder"]);
    assert!(UpcycleOptions::default().write(&file::open(from.as_ref()).unwrap(), from.as_ref()).is_err());
    crate::cli::fails(&["upcycle", to, "x.gguf"], &["experts already"]);
    assert!(!dir.path().join("x.gguf").exists());
}
