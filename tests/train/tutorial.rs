//! The transformer of tutorials in its forms: from nothing, trained, written as a folder, run, and trained on.

use super::model::{DEMO, loss};
use crate::{
    cli::{fails, ok, put},
    goldens,
};
use moeray::{
    CancelToken, file,
    ir::{NormKind, Renormalise, Score},
    model,
    train::{TrainConfig, Trainer},
};
use std::{fs, path::Path};

const TEXT: &str = "the king is dead long live the queen and all her men ";

/// Forms: keys of the architecture, and of the run.
const FORMS: [(&str, &str); 4] = [
    (
        "norm = \"layer\"\nexpert_gated = false\nexpert_activation = \"relu\"\nexpert_bias = true\nrouter_bias = true\n\
         num_shared_experts = 2\n",
        "",
    ),
    (
        "router = \"softmax_top_k_softmax\"\nrouter_hidden = 12\nrouter_activation = \"gelu\"\n",
        "router.aux = \"switch\"\n",
    ),
    ("router = \"softmax_top_k\"\nexpert_activation = \"gelu_tanh\"\n", "router.noise = \"learned\"\n"),
    ("", "router.noise = \"learned\"\ntop_k_schedule = [[0, 3]]\n"),
];

fn config(dir: &Path, (shape, run): (&str, &str), more: &str) -> String {
    let text = put(dir, "text.txt", TEXT.repeat(30).as_bytes());
    let toml = format!(
        "tokenizer = {DEMO:?}\noutput_dir = {:?}\ndatasets = [{{ path = {text:?} }}]\nsequence_len = 24\nmicro_batch_size = 4\n\
         max_steps = 20\nlearning_rate = 0.01\nlog = []\nthreads = 2\n{more}\n{run}\n[architecture]\nmodel_type = \"mini_mixtral\"\n\
         hidden_size = 32\nnum_hidden_layers = 2\nnum_attention_heads = 4\nnum_key_value_heads = 2\nnum_experts = 4\n\
         num_experts_per_tok = 2\nmoe_intermediate_size = 16\nmax_position_embeddings = 64\n{shape}",
        dir.join("out")
    );
    put(dir, "run.toml", toml.as_bytes())
}

fn trainer(path: &str) -> moeray::Result<Trainer> {
    Trainer::open(TrainConfig::read(path.as_ref(), &[])?)
}

#[test]
fn every_form_is_trained_written_read_and_trained_on() {
    for form in FORMS {
        let dir = tempfile::tempdir().unwrap();
        let mut t = trainer(&config(dir.path(), form, "export = [\"safetensors\"]")).unwrap();
        t.run(&CancelToken::new(), &mut |_| {}).unwrap();
        let written = t.export().unwrap();
        assert_eq!(written, [dir.path().join("out/model")]);
        let folder = file::open(&written[0]).unwrap();
        let new = loss(&folder, &[], TEXT);
        assert!(new < 5.0, "{form:?}: {new}, and a guess has 8.3");
        let d = model::build(&folder, &Default::default()).unwrap();
        let router = d.decoder.moe().unwrap().router;
        assert_eq!(router.used, if form.1.contains("top_k_schedule") { 3 } else { 2 });
        // What the trainer has is what the folder has.
        let trained = t.learner().trained().unwrap();
        for (decl, tensor) in d.program.graph.weights.iter().zip(d.program.weights.iter()) {
            let bytes = |t: &file::Tensor| t.parts().iter().flat_map(|p| p.iter().copied()).collect::<Vec<u8>>();
            assert!(bytes(tensor) == bytes(&trained[&decl.name]), "{form:?}: {}", decl.name);
        }
        // The folder goes on as it is.
        let own = dir.path().join("own");
        let more = format!("base_model = {:?}\noutput_dir = {own:?}\nmax_steps = 2", written[0]);
        let text = fs::read_to_string(dir.path().join("run.toml")).unwrap();
        let text = text.split("[architecture]").next().unwrap().replace("max_steps = 20\n", "");
        let text = text.replace("learning_rate = 0.01", "learning_rate = 0.0005");
        let lines = text.lines().filter(|l| !l.starts_with("output_dir") && !l.starts_with("tokenizer"));
        let text = format!("{more}\n{}", lines.collect::<Vec<_>>().join("\n"));
        let mut again = Trainer::open(TrainConfig::parse("again.toml", &text, &[]).unwrap()).unwrap();
        again.run(&CancelToken::new(), &mut |_| {}).unwrap();
        let last = loss(&file::open(&again.export().unwrap()[0]).unwrap(), &[], TEXT);
        assert!(last < 5.0, "{form:?}: trained on, {last}");
    }
}

#[test]
fn shapes_are_what_their_keys_say() {
    let dir = tempfile::tempdir().unwrap();
    let build = |form: (&str, &str)| {
        let mut t = trainer(&config(dir.path(), form, "export = [\"safetensors\"]\nresume = \"never\"")).unwrap();
        model::build(t.learner().base().unwrap(), &Default::default()).unwrap()
    };
    let d = build(FORMS[0]);
    let moe = d.decoder.moe().unwrap();
    assert_eq!((d.decoder.norm.kind, moe.experts.gated, moe.shared.unwrap().count), (NormKind::Layer, false, 2));
    let has = |name: &str| d.program.graph.weights.iter().any(|w| w.name == name);
    assert!(has("blk.1.ffn_gate_inp.bias") && has("blk.1.ffn_down_exps.bias") && has("blk.0.attn_norm.bias"));
    let d = build(FORMS[1]);
    let moe = d.decoder.moe().unwrap();
    assert_eq!((moe.router.score, moe.router.renormalise), (Score::Softmax, Renormalise::Softmax));
    assert_eq!(moe.router_hidden.unwrap().0, 12);
    let d = build(FORMS[3]);
    assert_eq!(d.decoder.moe().unwrap().router.score, Score::SoftmaxOfSelected);
}

#[test]
fn what_no_file_can_say_is_refused_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |form: (&str, &str), more: &str| match trainer(&config(dir.path(), form, more)) {
        Ok(_) => panic!("{form:?} with {more} was accepted"),
        Err(e) => e.to_string(),
    };
    for (form, what) in [(FORMS[0], "layer norms"), (FORMS[1], "routers of several layers")] {
        let e = refused(form, "");
        assert!(e.contains("gguf") && e.contains(what) && e.contains("export = [\"safetensors\"]"), "{e}");
    }
    // A plain one is a Mixtral.
    assert!(trainer(&config(dir.path(), ("", ""), "export = [\"gguf\", \"safetensors\"]")).is_ok());
    let other = |key: &str| {
        let shape = format!("{key}\n");
        let path = config(dir.path(), (shape.as_str(), ""), "");
        let text = fs::read_to_string(&path).unwrap().replace("mini_mixtral", "mixtral");
        TrainConfig::parse("run.toml", &text, &[]).unwrap_err().to_string()
    };
    for key in ["norm = \"layer\"", "router_hidden = 8", "expert_gated = false", "num_shared_experts = 1"] {
        let e = other(key);
        assert!(e.contains(key.split(' ').next().unwrap()) && e.contains("mini_mixtral"), "{key}: {e}");
    }
    for (key, says) in [
        ("tie_word_embeddings = true", "tie_word_embeddings"),
        ("shared_expert_intermediate_size = 8", "num_shared_experts"),
        ("router_activation = \"relu\"", "router_hidden"),
        ("router_hidden = 0", "router_hidden is 0"),
        ("router = \"hash\"", "hash"),
    ] {
        let shape = format!("{key}\n");
        let e = refused((shape.as_str(), ""), "");
        assert!(e.contains(says), "{key}: {e}");
    }
    // A Hugging Face folder of a family that is not written is refused, too.
    let gguf = model::to_gguf(&file::open(&goldens::folder("deepseek_v3")).unwrap()).unwrap();
    let e = model::check_hugging_face(&gguf, None).unwrap_err().to_string();
    assert!(e.contains("deepseek2") && e.contains("mixtral"), "{e}");
}

#[test]
fn the_program_trains_and_runs_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), FORMS[1], "");
    fails(&["train", &path], &["export", "safetensors"]);
    assert!(!dir.path().join("out").exists());
    ok(&["train", &path, "export=[\"safetensors\"]", "-q"]);
    let folder = dir.path().join("out/model");
    let folder = folder.to_str().unwrap();
    ok(&["run", "-m", folder, "-p", "the king", "-n", "4", "--temp", "0", "--backend", "cpu"]);
    fails(&["finetune", "-m", folder, "-f", &path, "-o", "never.gguf"], &["routers of several layers", "a GGUF"]);
    let text = fs::read_to_string(&path).unwrap();
    let text = text.split("[architecture]").next().unwrap();
    let adapters = put(dir.path(), "lora.toml", format!("base_model = {folder:?}\n{text}\nlora.r = 2").as_bytes());
    fails(&["train", &adapters], &["[lora]", "routers of several layers"]);
}
