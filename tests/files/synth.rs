//! Synthetic models: right shapes, real bytes, the same every time.

use super::scratch;
use moeray::{
    Error,
    file::{
        self,
        synth::{PRESETS, Shape, Synthetic},
    },
    quant::DType,
};
use std::collections::HashSet;

fn tiny() -> Shape {
    Shape::preset("tiny").unwrap()
}

#[test]
fn every_type_in_memory_and_in_a_file() {
    let dir = scratch();
    for dtype in DType::ALL {
        let s = Synthetic::new(&tiny(), 7, |_, _| dtype).unwrap();
        let mut told = Vec::new();
        let c = s
            .checkpoint(&mut |done, total| {
                told.push((done, total));
                Ok(())
            })
            .unwrap();
        assert_eq!(told.last(), Some(&(s.bytes(), s.bytes())));
        assert!(told.is_sorted());
        assert_eq!(c.tensors().map(|t| t.1.byte_len() as u64).sum::<u64>(), s.bytes());
        assert_eq!(c.require("blk.1.ffn_gate_exps.weight").unwrap().dtype(), dtype);
        assert_eq!(c.require("blk.1.ffn_gate_inp.weight").unwrap().dtype(), DType::F32);
        let path = dir.path().join("tiny.gguf");
        s.write(&path, &mut |_, _| Ok(())).unwrap();
        let f = file::open(&path).unwrap();
        assert_eq!(f.meta(), c.meta());
        for (name, t) in c.tensors() {
            assert_eq!(t.parts()[0][..], f.require(name).unwrap().parts()[0][..], "{dtype} {name}");
        }
    }
}

#[test]
fn rows_and_seeds_differ_and_layers_do_not_move() {
    let make = |seed, layers| {
        let s = Synthetic::new(&tiny().with_layers(layers), seed, |_, _| DType::Q4_0).unwrap();
        s.checkpoint(&mut |_, _| Ok(())).unwrap()
    };
    let c = make(1, 2);
    let rows: HashSet<&[u8]> = c.tensors().flat_map(|(_, t)| (0..t.rows()).map(|r| t.row(r))).collect();
    // All rows but those of the norms (ones) are distinct.
    let distinct: usize = c.tensors().filter(|(n, _)| !n.contains("norm")).map(|(_, t)| t.rows()).sum();
    assert_eq!(rows.len(), distinct + 2);
    let name = "blk.1.ffn_down_exps.weight";
    let bytes = |c: &file::Checkpoint| c.require(name).unwrap().parts()[0].to_vec();
    assert!(bytes(&c) == bytes(&make(1, 5)));
    assert!(bytes(&c) != bytes(&make(2, 2)));
}

#[test]
fn presets() {
    let billions = |name: &str| {
        let s = Shape::preset(name).unwrap();
        s.tensors().iter().map(|(_, d)| d.iter().product::<usize>() as f64).sum::<f64>() / 1e9
    };
    // Parameters as the models' cards give them.
    for (name, want) in [
        ("qwen3-30b-a3b", 30.5),
        ("olmoe-1b-7b", 6.92),
        ("granite-3.1-1b-a400m", 1.33),
        ("gpt-oss-20b", 20.9),
        ("gpt-oss-120b", 116.8),
        ("mixtral-8x7b", 46.7),
        ("qwen1.5-moe-a2.7b", 14.3),
        ("moe-1b-a400m", 1.38),
    ] {
        let b = billions(name);
        assert!((b / want - 1.0).abs() < 0.01, "{name} has {b} billion");
    }
    assert_eq!(PRESETS.iter().map(|s| s.name).collect::<HashSet<_>>().len(), PRESETS.len());
    let e = Shape::preset("gpt-5").unwrap_err().to_string();
    assert!(e.contains("gpt-5") && e.contains("mixtral-8x7b"), "{e}");
    // 2880 columns are no whole number of 256-weight blocks.
    let e = Synthetic::new(&Shape::preset("gpt-oss-20b").unwrap(), 0, |_, _| DType::Q4K).err().unwrap().to_string();
    assert!(e.contains("token_embd.weight") && e.contains("256"), "{e}");
    let s = Synthetic::new(&tiny(), 0, |_, _| DType::Q8_0).unwrap();
    assert!(matches!(s.checkpoint(&mut |_, _| Err(Error::Cancelled)), Err(Error::Cancelled)));
}

/// Random blocks are sane weights: finite, centred, of a deviation near 0.02.
#[test]
fn weights_are_like_those_of_a_fresh_model() {
    for dtype in DType::ALL {
        let s = Synthetic::new(&tiny(), 3, |_, _| dtype).unwrap();
        let c = s.checkpoint(&mut |_, _| Ok(())).unwrap();
        let t = c.require("blk.0.ffn_up_exps.weight").unwrap();
        let mut x = vec![0f32; t.rows() * t.cols()];
        moeray::quant::dequantize(dtype, &t.parts()[0], &mut x).unwrap();
        let n = x.len() as f64;
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let std = (x.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
        let largest = x.iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(mean.abs() < 5e-4 && (0.017..0.022).contains(&std) && largest < 0.1, "{dtype}: {mean} {std} {largest}");
    }
}

/// The graphs are those of the published models: what makes them other than Llama's is there.
#[test]
fn presets_have_what_is_their_own() {
    let build = |name: &str| {
        let s = Shape { vocab: 1000, experts: 8, expert_width: 64, ..Shape::preset(name).unwrap().with_layers(4) };
        let c = Synthetic::new(&s, 1, |_, _| DType::MXFP4).unwrap().checkpoint(&mut |_, _| Ok(())).unwrap();
        moeray::model::build(&c, &Default::default()).unwrap()
    };
    let d = build("gpt-oss-20b");
    assert_eq!(d.title, "GPT-OSS");
    let attentions = d.program.graph.nodes.iter().filter_map(|n| match &n.op {
        moeray::ir::Op::Attend(a) => Some((a.window, a.sinks.is_some())),
        _ => None,
    });
    assert_eq!(
        attentions.collect::<Vec<_>>(),
        [(Some(128), true), (None, true), (Some(128), true), (None, true)],
        "windows and sinks"
    );
    let ropes = d.program.graph.nodes.iter().filter_map(|n| match &n.op {
        moeray::ir::Op::Rope(r) => Some(r.clone()),
        _ => None,
    });
    assert!(ropes.clone().all(|r| format!("{r:?}").contains("32")), "YaRN's factor: {:?}", ropes.clone().next());
    let names: Vec<&str> = d.program.graph.weights.iter().map(|w| w.name.as_str()).collect();
    for bias in ["attn_q.bias", "attn_output.bias", "ffn_gate_inp.bias", "ffn_gate_exps.bias", "ffn_down_exps.bias"] {
        assert!(names.contains(&format!("blk.3.{bias}").as_str()), "{bias} of {names:?}");
    }
    assert!(format!("{:?}", d.decoder.layers[0].ffn).contains("ClampedSwiglu"), "{:?}", d.decoder.layers[0].ffn);
    let d = build("granite-3.1-1b-a400m");
    let m = d.decoder.multipliers;
    assert_eq!((m.embedding, m.residual, m.logits), (12.0, 0.22, 1.0 / 6.0));
    assert!(format!("{:?}", d.decoder.layers[0].mixer).contains("scale: 0.015625"), "{:?}", d.decoder.layers[0].mixer);
    assert_eq!(Shape::preset("gpt-oss-20b").unwrap().weights, "MXFP4_MOE");
}

/// Every preset's metadata and tensors (here fewer and narrower) are a model to the model room.
#[test]
fn presets_are_models() {
    for preset in PRESETS {
        let (shared_width, expert_width) = (preset.shared_width.min(96), 64);
        let s = Shape { vocab: 1000, experts: 8, expert_width, shared_width, ..preset.with_layers(2) };
        let c = Synthetic::new(&s, 1, |_, _| DType::Q8_0).unwrap().checkpoint(&mut |_, _| Ok(())).unwrap();
        let d = moeray::model::build(&c, &Default::default()).unwrap_or_else(|e| panic!("{}: {e}", s.name));
        assert_eq!(d.arch, s.arch);
        let embed = d.program.weights.iter().find(|w| w.shape() == [s.vocab, s.hidden]);
        assert_eq!(embed.map(|w| w.dtype()), Some(DType::Q8_0));
    }
}
