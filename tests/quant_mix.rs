//! The mixes against llama.cpp's choices for whole models (tests/data/quant/make_mixes.py).

use moeray::quant::{
    DType,
    mix::{Mix, Model},
};

fn truth() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/quant/mixes.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_tensor_of_every_mix_is_as_in_llama_cpp() {
    let truth = truth();
    let mut compared = 0;
    for (name, m) in truth["models"].as_object().unwrap() {
        let size = |key: &str| m[key].as_u64().unwrap() as usize;
        let model = Model {
            layers: size("layers"),
            experts: size("experts"),
            heads_per_kv: size("heads_per_kv"),
            tied: m["tied"].as_bool().unwrap(),
        };
        for (mix, letters) in m["mixes"].as_object().unwrap() {
            let mix = Mix::from_name(mix).unwrap();
            for (tensor, letter) in m["tensors"].as_array().unwrap().iter().zip(letters.as_str().unwrap().chars()) {
                let want = truth["letters"][letter.to_string()].as_str().map(|n| DType::from_name(n).unwrap());
                let shape: Vec<usize> =
                    tensor[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
                let got = mix.choose(&model, tensor[0].as_str().unwrap(), &shape);
                assert_eq!(got, want, "{name}, {}, {tensor}", mix.name());
                compared += 1;
            }
        }
    }
    assert!(compared > 10_000, "{compared}");
}

#[test]
fn what_is_chosen_can_be_made() {
    let model = Model { layers: 5, experts: 6, heads_per_kv: 1, tied: true };
    for mix in Mix::ALL {
        for cols in [4, 32, 64, 100, 256, 768] {
            for name in
                ["token_embd.weight", "blk.4.attn_v.weight", "blk.0.ffn_down_exps.weight", "blk.x.weight", "weight"]
            {
                let dtype = mix.choose(&model, name, &[6, 2, cols]).unwrap();
                assert!(dtype.row_bytes(cols).is_some(), "{} {name} {cols}: {dtype}", mix.name());
            }
        }
        for (name, shape) in [("blk.0.attn_norm.weight", &[2, 64][..]), ("blk.0.attn_q.bias", &[64]), ("x.weight", &[])]
        {
            assert_eq!(mix.choose(&model, name, shape), None);
        }
    }
}

#[test]
fn names_round_trip() {
    for mix in Mix::ALL {
        assert_eq!(Mix::from_name(&mix.name().to_lowercase()), Some(mix));
    }
    assert_eq!(Mix::from_name("Q4_K"), Some(Mix::Q4_K_M));
    assert_eq!(Mix::from_name("Q4_K_XL"), None);
    let mut numbers: Vec<_> = Mix::ALL.iter().map(|m| m.file_type()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), Mix::ALL.len());
}
