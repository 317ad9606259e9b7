//! Conversations and mistakes at the program's edge: what `chat` answers, keeps, shows and refuses.

use super::cli::{Out, at, fails, moeray, ok, put, with_input};
use super::support::successor::Successor;
use moeray::file::{self, Bytes, TensorSpec, Value, write_gguf};
use std::path::Path;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");

/// The demo model with a chat template, as a file.
fn chat_model(dir: &Path) -> String {
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant:{% endif %}";
    with_template(dir, template)
}

/// The demo model with this chat template.
fn with_template(dir: &Path, template: &str) -> String {
    with_keys(dir, &[("tokenizer.chat_template", template)])
}

/// The demo model with these keys.
fn with_keys(dir: &Path, keys: &[(&str, &str)]) -> String {
    let ckpt = file::open_bytes(Bytes::from_vec(std::fs::read(DEMO).unwrap())).unwrap();
    let mut meta = ckpt.meta().clone();
    keys.iter().for_each(|(key, value)| meta.set(*key, Value::string(*value)));
    let tensors: Vec<_> = ckpt.tensors().collect();
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, t)| TensorSpec { name: (*name).into(), dtype: t.dtype(), shape: t.shape().to_vec() })
        .collect();
    let path = dir.join("chat.gguf");
    let mut fill = |i: usize, sink: &mut file::Sink<'_>| {
        let t = tensors[i].1;
        (0..t.rows()).try_for_each(|r| sink.write(t.row(r)))
    };
    write_gguf(&path, &meta, &specs, &mut fill).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn chat_answers_as_if_all_was_read_anew_but_reads_only_what_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_model(dir.path());
    let tail = ["--backend", "cpu", "-n", "12", "--temp", "0", "--stop", "\n"];
    let args = [&["chat", &model, "--system", "S", "-v"], &tail[..]].concat();
    let o = with_input(&args, b"What news?\nAnd then?\n/reset\nWhat news?\n/quit\nnever read\n");
    assert_eq!(o.code, Some(0), "{}", o.stderr);
    let answers: Vec<&str> = o.stdout.lines().collect();
    assert_eq!(answers.len(), 3, "{:?}", o.stdout);
    let anew = |prompt: String| ok(&[&["run", &model, "-q", "--no-echo", "-p", &prompt], &tail[..]].concat());
    let first = "system: S\nuser: What news?\nassistant:".to_string();
    assert_eq!(format!("{}\n", answers[0]), anew(first.clone()));
    assert_eq!(format!("{}\n", answers[1]), anew(format!("{first}{}\nuser: And then?\nassistant:", space(answers[0]))));
    assert_eq!(answers[2], answers[0], "/reset forgets");
    let cached: Vec<usize> = o
        .stderr
        .lines()
        .filter_map(|l| l.split(" tokens are in the cache").next().filter(|p| p.len() < l.len()))
        .map(|l| l.split_whitespace().rev().nth(2).unwrap().parse().unwrap())
        .collect();
    assert_eq!(cached.len(), 3, "{}", o.stderr);
    assert!(cached[0] == 0 && cached[1] > 15, "the second turn used {} cached tokens", cached[1]);
    assert!(o.stderr.contains("context"), "{}", o.stderr);
}

/// The template puts one blank before an answer.
fn space(answer: &str) -> String {
    format!("\nassistant: {answer}").split_off("\nassistant:".len())
}

/// A question of the arguments has one answer; a file goes behind it; standard input counts as a whole where it is named.
#[test]
fn one_question_has_one_answer() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_model(dir.path());
    let answers = |more: &[&str], input: &str| {
        let tail = ["--backend", "cpu", "-n", "6", "--temp", "0", "-q", "--stop", "\n"];
        let o = with_input(&[&["chat", &model], more, &tail].concat(), input.as_bytes());
        assert_eq!(o.code, Some(0), "{more:?}: {}", o.stderr);
        o.stdout
    };
    let answer = answers(&["What news?"], "");
    assert_eq!(answer.lines().count(), 1);
    assert_eq!(answer, answers(&[], "What news?\n"));
    assert_eq!(answer, answers(&["-p", "What news?"], ""));
    let file = put(dir.path(), "text.txt", b"one\ntwo\n");
    let both = answers(&["Say:", "-f", &file], "");
    assert_eq!(both, answers(&["Say:", "-f", "-"], "one\ntwo\n"));
    assert_eq!(both, answers(&[], "\"\"\"\nSay:\n\none\ntwo\n\"\"\"\n"), "a block is one message");
    assert_eq!(both, answers(&[], "Say:\\\n\\\none\\\ntwo\n"), "and so are continued lines");
    assert_eq!(answers(&[], "one\ntwo\n").lines().count(), 2, "a message a line");
    let system = put(dir.path(), "system.txt", b"Be brief.\n");
    let asked = answers(&["What news?", "--system", "Be brief."], "");
    assert_eq!(asked, answers(&["What news?", "--system-file", &system], ""));
    assert_eq!(asked, answers(&["What news?", "--system-file", "-"], "Be brief."));
}

/// Standard input is one message, but for scripts: with -q, on request, or where a line is a command.
#[test]
fn standard_input_is_one_message_or_a_message_a_line() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_model(dir.path());
    let talk = |more: &[&str], input: &str| {
        let tail = ["--backend", "cpu", "-n", "6", "--temp", "0", "--stop", "\n"];
        let o = with_input(&[&["chat", &model], more, &tail].concat(), input.as_bytes());
        assert_eq!(o.code, Some(0), "{more:?}: {}", o.stderr);
        (o.stdout.lines().count(), o.stdout)
    };
    let text = "Say:\n\none\ntwo\n";
    let (answers, whole) = talk(&[], text);
    assert_eq!(answers, 1, "{whole}");
    assert_eq!(whole, talk(&["Say:\n\none\ntwo"], "").1);
    assert_eq!(talk(&["-q"], text).0, 3);
    assert_eq!(talk(&["--each-line"], text), talk(&["-q"], text));
    assert_eq!(talk(&[], "one\n/reset\ntwo\n").0, 2, "a line is a command");
    assert_eq!(talk(&[], "one\n/usr/bin\ntwo\n").0, 1, "a path is none");
    assert_eq!(talk(&[], "\n\n").0, 0);
}

#[test]
fn what_a_person_hears_of_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_model(dir.path());
    let o = moeray(&["chat", &model, "What news?", "--backend", "cpu", "-n", "5", "--temp", "0"]);
    assert_eq!(o.code, Some(0), "{}", o.stderr);
    assert!(o.stderr.contains("cut after 5 tokens") && o.stderr.contains("-n allows more"), "{}", o.stderr);
    let figures = o.stderr.lines().find(|l| l.starts_with("[prompt ")).unwrap();
    assert!(figures.len() <= 80 && figures.contains("| context "), "{figures}");
    let full =
        moeray(&["chat", &model, "What news?", "--backend", "cpu", "--ctx", "24", "--temp", "0", "--ignore-eos"]);
    assert!(full.stderr.contains("the context is full") && full.stderr.contains("/reset"), "{}", full.stderr);
    let o = moeray(&["chat", &model, "What news, and so on, and so on?", "--backend", "cpu", "--ctx", "8"]);
    assert_eq!(o.code, Some(1));
    assert!(o.stderr.contains("context only 8") && o.stderr.contains("--ctx"), "{}", o.stderr);
    let long = moeray(&["chat", &model, "What news?", "--backend", "cpu", "-n", "5", "-v"]);
    assert!(long.stderr.contains("first token") && long.stderr.contains("memory"), "{}", long.stderr);
}

#[test]
fn conversations_are_kept_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let model = chat_model(dir.path());
    let saved = at(dir.path(), "talk.json");
    let args = ["chat", &model, "--backend", "cpu", "-n", "6", "--temp", "0", "-q", "--stop", "\n"];
    let talk = |input: &str| {
        let o = with_input(&args, input.as_bytes());
        assert_eq!(o.code, Some(0), "{}", o.stderr);
        o.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let two = talk(&format!("One?\nTwo?\n/save {saved}\n"));
    let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&saved).unwrap()).unwrap();
    assert_eq!(json["messages"].as_array().unwrap().len(), 4);
    assert_eq!(json["messages"][1]["content"].as_str().unwrap().trim(), two[0].trim());
    assert_eq!(talk("One?\nTwo?\nThree?\n")[2], talk(&format!("/load {saved}\nThree?\n"))[0]);
    assert_eq!(talk("One?\nNever?\n/undo\nTwo?\n")[2], two[1], "what was taken back is gone");
    assert_eq!(talk("One?\n/regen\nTwo?\n")[1], two[0], "the same at temperature 0");
    assert_eq!(talk("/system Be brief.\nOne?\n"), talk("/system Be brief.\nTwo?\n/reset\nOne?\n")[1..]);
    // A script's unknown command is a message, and so is a path.
    assert_eq!(talk("/usr/bin?\n/nonsense\n").len(), 2);
    let o = with_input(&args, b"/load no-such.json\n");
    assert!(o.code == Some(1) && o.stderr.contains("/load") && o.stderr.contains("no-such.json"), "{}", o.stderr);
}

/// A pipe gets answers; thinking stands before them where that is wanted. The history has answers alone.
#[test]
fn thinking_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}{% if '<think>' in m.content %}{{ raise_exception('thinking') }}{% endif %}\
                    {{ m.content }}{% endfor %}{{ '\n' }}";
    let model = Successor {
        chain: &[("\n", "<think>"), ("<think>", "Hm."), ("Hm.", "</think>"), ("</think>", "Hi."), ("Hi.", "<eos>")],
        words: &["<think>", "</think>", "Hm.", "Hi."],
        controls: &["<eos>"],
        template,
    };
    let model = model.write(dir.path(), "think.gguf");
    let talk = |more: &[&str]| {
        let args = ["chat", model.to_str().unwrap(), "--backend", "reference", "--temp", "0", "-q"];
        let o = with_input(&[&args, more].concat(), b"a\nb\n");
        assert_eq!(o.code, Some(0), "{}", o.stderr);
        o.stdout
    };
    assert_eq!(talk(&[]), "Hi.\nHi.\n");
    assert_eq!(talk(&["--thinking", "show"]), "Hm.\n\nHi.\nHm.\n\nHi.\n");
    assert_eq!(talk(&["--stop", "Hi."]), "\n\n");
}

#[test]
fn the_option_at_fault_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no systems here') }}{% endif %}\
                   {{ m.content }}{% endfor %}";
    let model = with_template(dir.path(), refuses);
    fails(&["chat", &model, "--backend", "cpu", "--system", "S"], &["no systems here", "--system"]);
    fails(&["chat", &model, "Hi", "--backend", "cpu", "--system", "S"], &["no systems here", "--system"]);
    ok(&["chat", &model, "Hi", "--backend", "cpu", "-n", "1"]);
    fails(&["chat", &model, "--backend", "cpu", "--system-file", "no-such.txt"], &["--system-file", "no-such.txt"]);
    fails(&["run", "-p", "x", "--backend", "cpu", "--routing-svg", "no/such/x.svg"], &["--routing-svg", "no/such"]);
    if cfg!(target_os = "linux") {
        // A folder that is there and takes no files.
        fails(&["run", "-p", "x", "--routing-svg", "/proc/x.svg"], &["--routing-svg", "/proc/x.svg"]);
        fails(&["logits", "--ids", "1", "-o", "/proc/x"], &["-o", "/proc/x"]);
    }
    let fails_with = |args: &[&str], words: &[&str]| {
        let Out { code, stdout, stderr } = with_input(args, b"x");
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{args:?}: {stderr}");
        words.iter().for_each(|w| assert!(stderr.contains(w), "{args:?} does not say {w:?}: {stderr}"));
    };
    // Standard input can be read once, whoever asks.
    let twice: [(&[&str], &[&str]); 7] = [
        (&["run", "-p", "-", "-f", "-"], &["standard input", "-p", "-f"]),
        (&["run", "-p", "-", "-p", "-"], &["standard input", "-p twice"]),
        (&["run", "-f", "-", "-f", "-"], &["standard input", "-f twice"]),
        (&["chat", &model, "--system-file", "-"], &["standard input", "--system-file", "messages"]),
        (&["chat", &model, "-p", "-", "--system-file", "-"], &["standard input", "--system-file", "-p"]),
        (&["chat", &model, "-", "-f", "-"], &["standard input", "-p", "-f"]),
        (&["chat", &model, "Hi", "-f", "-", "--system-file", "-"], &["standard input", "--system-file", "-f"]),
    ];
    for (args, words) in twice {
        fails_with(args, words);
    }
}

/// Options of the CPU choose it, or are refused beside what does not use them.
#[test]
fn options_say_where_to_run_or_are_refused() {
    let backend = |more: &[&str]| {
        let args = [&["run", "-p", "ROMEO:", "-n", "1", "--json", "-q"], more].concat();
        serde_json::from_str::<serde_json::Value>(&ok(&args)).unwrap()["backend"].as_str().unwrap().to_owned()
    };
    for more in [&["--activations", "int16"][..], &["--no-repack"], &["-t", "1"], &["--simd", "scalar"]] {
        assert!(backend(more).starts_with("cpu"), "{more:?}");
    }
    let run = |more: &[&'static str]| [&["run", "-p", "x"], more].concat();
    fails(&run(&["--activations", "int16", "--tiles", "f16"]), &["--tiles", "--activations", "--backend auto"]);
    fails(&run(&["--backend", "wgpu", "--no-repack"]), &["--no-repack", "wgpu"]);
    fails(&run(&["--backend", "wgpu", "--simd", "avx2"]), &["--simd", "wgpu"]);
    let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
    fails(&run(&["--simd", foreign]), &["this processor has no", "scalar"]);
    fails(&run(&["--backend", "cpu", "--checked"]), &["--checked", "cpu"]);
    fails(&run(&["--backend", "reference", "--activations", "int8"]), &["--activations", "reference"]);
}

#[test]
fn a_pre_tokenizer_that_says_nothing_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let model = with_keys(dir.path(), &[("tokenizer.ggml.pre", "default")]);
    let o = moeray(&["run", &model, "-p", "x", "-n", "1", "--backend", "cpu", "-q"]);
    assert_eq!(o.code, Some(0), "{}", o.stderr);
    assert_eq!(o.stderr.matches("tokenizer.ggml.pre").count(), 1, "{}", o.stderr);
    assert!(o.stderr.starts_with("warning: ") && !o.stderr.contains("moeray::"), "{}", o.stderr);
}

/// What people give in place of a language model is said by name.
#[test]
fn other_things_than_language_models_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let gguf = |name: &str, keys: &[(&str, &str)]| {
        let mut meta = moeray::file::Metadata::new();
        keys.iter().for_each(|(k, v)| meta.set(*k, Value::string(*v)));
        let path = dir.path().join(name);
        let spec = TensorSpec { name: "x".into(), dtype: moeray::quant::DType::F32, shape: vec![1] };
        write_gguf(&path, &meta, &[spec], &mut |_, sink: &mut file::Sink<'_>| sink.write(&[0; 4])).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let lora = gguf("lora.gguf", &[("general.type", "adapter"), ("general.architecture", "llama")]);
    let mmproj = gguf("mmproj.gguf", &[("general.architecture", "clip")]);
    let bert = gguf("bert.gguf", &[("general.architecture", "nomic-bert")]);
    let flux = gguf("flux.gguf", &[("general.architecture", "flux")]);
    let whisper = gguf("whisper.gguf", &[("general.architecture", "whisper")]);
    let diffusers = dir.path().join("sdxl");
    std::fs::create_dir(&diffusers).unwrap();
    put(&diffusers, "model_index.json", b"{}");
    let adapter = dir.path().join("adapter");
    std::fs::create_dir(&adapter).unwrap();
    put(&adapter, "adapter_config.json", b"{}");
    let near = at(dir.path(), "mmprj.gguf");
    let cases: [(&str, &[&str]); 12] = [
        (&lora, &["lora.gguf", "LoRA", "--lora"]),
        (&mmproj, &["mmproj.gguf", "sees or hears", "text model"]),
        (&bert, &["bert.gguf", "embedding"]),
        (&flux, &["flux.gguf", "image"]),
        (&whisper, &["whisper.gguf", "audio"]),
        (diffusers.to_str().unwrap(), &["model_index.json", "image"]),
        (adapter.to_str().unwrap(), &["LoRA"]),
        (&near, &["mmprj.gguf", "did you mean", "mmproj.gguf"]),
        ("Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M", &["repository", "moeray pull Qwen/Qwen3-30B-A3B-GGUF:Q4_K_M"]),
        ("https://huggingface.co/a/b/resolve/main/c.gguf", &["address", "moeray pull a/b"]),
        ("https://example.org/c.gguf", &["address", "curl"]),
        ("qwen3:30b-a3b", &["Ollama", "ollama show qwen3"]),
    ];
    for (model, words) in cases {
        fails(&["run", model, "-p", "x"], words);
        fails(&["chat", model, "x"], words);
    }
    fails(&["chat", "-hf", "a/b"], &["-hf", "hf download"]);
    fails(&["run", &lora, "--lora", "x"], &["--lora"]);
}

/// Words of llama.cpp do what they do there, or say why not.
#[test]
fn words_of_llama_cpp_are_understood() {
    let own =
        ok(&["run", "-p", "ROMEO:", "--backend", "cpu", "-n", "4", "--temp", "0", "--ctx", "64", "--ubatch-size", "8"]);
    let theirs = moeray(&[
        "run",
        "-p",
        "ROMEO:",
        "-ngl",
        "0",
        "--predict",
        "4",
        "--temperature",
        "0",
        "-c",
        "64",
        "-ub",
        "8",
        "-b",
        "9",
    ]);
    assert_eq!((theirs.code, theirs.stdout.as_str()), (Some(0), own.as_str()), "{}", theirs.stderr);
    assert!(theirs.stderr.contains("-b is left out") && theirs.stderr.contains("--ubatch-size"), "{}", theirs.stderr);
}
