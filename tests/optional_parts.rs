//! Parts that the text model does without: layers that predict further tokens, towers for pictures. They are left out by name,
//! the rest gives the same logits, and what belongs to no known part is an error.

use crate::{
    export::{exported, tensors as of_gguf, through_bytes},
    goldens::golden,
    support::{Target, compare},
    variants::{Data, logits, opened, tensors},
};
use moeray::{
    Error,
    file::{Checkpoint, Metadata, Tensor, Value},
    model,
};
use safetensors::Dtype;
use serde_json::json;

/// The logits of a checkpoint are those of another, and these parts were left out.
fn check(what: &str, ckpt: &Checkpoint, golden_of: &str, skipped: &[&str]) {
    let ids = golden(golden_of).ids;
    let d = model::build(ckpt, &model::Options::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(d.skipped, skipped, "{what}");
    let (_dir, plain) = opened(golden_of, &tensors(golden_of), |_| {});
    let want = logits(&model::build(&plain, &model::Options::default()).unwrap(), Target::Reference, &ids).unwrap();
    let got = logits(&d, Target::Reference, &ids).unwrap();
    compare::check(&got, &want, 1e-11).unwrap_or_else(|e| panic!("{what}: {e}"));
}

/// A golden with more tensors of two numbers.
fn with(name: &str, more: &[String]) -> Data {
    let mut data = tensors(name);
    more.iter().for_each(|n| drop(data.insert(n.clone(), (Dtype::F32, vec![2], vec![0; 8]))));
    data
}

/// DeepSeek-V3's and GLM-4.5's layer behind the last one, ERNIE-4.5's blocks beside the layers.
#[test]
fn predictors_of_hugging_face_files() {
    let behind =
        ["eh_proj.weight", "enorm.weight", "hnorm.weight", "self_attn.o_proj.weight", "shared_head.norm.weight"];
    let behind = behind.map(|n| format!("model.layers.3.{n}"));
    for name in ["deepseek_v3", "glm4_moe"] {
        let (_dir, ckpt) = opened(name, &with(name, &behind), |_| {});
        check(name, &ckpt, name, &["multi-token prediction (5 tensors)"]);
    }
    let beside =
        ["model.mtp_block.0.mlp.up_proj.weight", "model.mtp_linear_proj.0.weight", "model.mtp_emb_norm.0.weight"];
    let (_dir, ckpt) = opened("ernie4_5_moe", &with("ernie4_5_moe", &beside.map(String::from)), |_| {});
    check("ernie4_5_moe", &ckpt, "ernie4_5_moe", &["multi-token prediction (3 tensors)"]);

    // One layer more that predicts nothing is one that the config does not know of.
    let (_dir, ckpt) = opened("glm4_moe", &with("glm4_moe", &behind[3..4]), |_| {});
    let e = model::build(&ckpt, &model::Options::default()).unwrap_err();
    assert!(matches!(&e, Error::Unsupported(t) if t.contains("model.layers.3.")), "{e}");
}

/// A GGUF counts the predicting layers among its own.
#[test]
fn predictors_of_gguf_files() {
    for (name, arch) in [("glm4_moe", "glm4moe"), ("deepseek_v3", "deepseek2"), ("ernie4_5_moe", "ernie4_5-moe")] {
        let plain = exported(name);
        let mut all = of_gguf(&plain);
        for n in ["nextn.eh_proj.weight", "nextn.enorm.weight", "attn_output.weight", "ffn_gate_exps.weight"] {
            all.push((format!("blk.3.{n}"), Tensor::from_f32(vec![2], vec![1.0; 2]).unwrap()));
        }
        let file = |meta: &Metadata| through_bytes(&Checkpoint::from_parts(meta.clone(), all.clone()).unwrap());
        let mut meta = plain.meta().clone();
        meta.set(format!("{arch}.block_count"), Value::U32(4));
        meta.set(format!("{arch}.nextn_predict_layers"), Value::U32(1));
        check(name, &file(&meta), name, &["multi-token prediction (4 tensors)"]);
        assert_eq!(model::build(&file(&meta), &model::Options::default()).unwrap().decoder.layers.len(), 3);

        // Without the key the layer counts as one of the model, and lacks most of what such a one has.
        let kept = meta.iter().filter(|(k, _)| !k.ends_with("nextn_predict_layers"));
        let kept = Metadata::from_entries(kept.map(|(k, v)| (k.to_string(), v.clone())).collect()).unwrap();
        assert!(model::build(&file(&kept), &model::Options::default()).is_err(), "{name}");
        meta.set(format!("{arch}.nextn_predict_layers"), Value::U32(4));
        let e = model::build(&file(&meta), &model::Options::default()).unwrap_err();
        assert!(matches!(&e, Error::Model(t) if t.contains("4 of 4 layers")), "{e}");
    }
}

/// Kimi's models that also see have DeepSeek-V3's text model one level down, by another name.
#[test]
fn kimi_with_a_vision_tower() {
    let mut data = Data::new();
    for (name, t) in tensors("deepseek_v3") {
        data.insert(format!("language_model.{name}"), t);
    }
    for n in ["vision_tower.patch_embed.proj.weight", "mm_projector.proj.0.weight"] {
        data.insert(n.into(), (Dtype::F32, vec![2], vec![0; 8]));
    }
    let nest = |c: &mut serde_json::Value| {
        let mut text = c.clone();
        text["model_type"] = json!("kimi_k2");
        *c = json!({"model_type": "kimi_k25", "text_config": text, "vision_config": {"patch_size": 14}});
    };
    let (_dir, ckpt) = opened("deepseek_v3", &data, nest);
    let parts = ["projector of pictures (1 tensors)", "vision tower (1 tensors)"];
    check("kimi", &ckpt, "deepseek_v3", &parts);
    assert_eq!(model::build(&ckpt, &model::Options::default()).unwrap().title, "Kimi-K2");
}

/// DeepSeek-V3.2's attention chooses its positions; as a dense one it would give other numbers.
#[test]
fn sparse_attention_is_refused_by_name() {
    for arch in ["deepseek_v32", "glm_moe_dsa"] {
        let (_dir, ckpt) = opened("deepseek_v3", &tensors("deepseek_v3"), |c| c["model_type"] = json!(arch));
        let e = model::build(&ckpt, &model::Options::default()).unwrap_err();
        assert!(matches!(&e, Error::Unsupported(t) if t.contains("sparse attention") && t.contains(arch)), "{e}");
    }
}
