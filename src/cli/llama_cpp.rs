//! The option words of llama.cpp's programs, which many fingers know: understood where the same is meant, answered with
//! Moeray's word where it is not.

use super::failure::{Failure, Outcome, say};
use std::ffi::OsString;

/// What becomes of a word.
#[derive(Clone, Copy)]
enum Means {
    /// Another word for the same; its value stays.
    Same(&'static str),
    /// A switch of another name.
    Alone(&'static str),
    /// Nothing here, and its value neither: why.
    Nothing(&'static str),
    /// A switch that is nothing here: why.
    NothingAlone(&'static str),
    /// Something that cannot be had: why.
    No(&'static str),
    /// Layers on the GPU.
    Layers,
    /// On, off or auto, which may be missing.
    Flash,
}
use Means::{Alone, Flash, Layers, No, Nothing, NothingAlone, Same};

const DOWNLOAD: &str = if cfg!(feature = "pull") {
    "nothing is downloaded unasked; get the model first, with moeray pull OWNER/NAME:QUANT, or with: \
    hf download OWNER/NAME --include '*Q4_K_M*.gguf' --local-dir ."
} else {
    "nothing is downloaded; get the model first, for example with: \
    hf download OWNER/NAME --include '*Q4_K_M*.gguf' --local-dir ."
};

/// Words of llama.cpp (`common/arg.cpp`), by verb where they mean something else in one.
const WORDS: &[(&[&str], Means)] = &[
    (&["-c", "--ctx-size"], Same("--ctx")),
    (&["--predict", "--n-predict"], Same("--tokens")),
    (&["--temperature"], Same("--temp")),
    (&["-ub"], Same("--ubatch-size")),
    (&["-pg"], Same("--prompt-gen")),
    (&["-sys", "--system-prompt"], Same("--system")),
    (&["-sysf", "--system-prompt-file"], Same("--system-file")),
    (&["-r", "--reverse-prompt"], Same("--stop")),
    (&["-ctk", "--cache-type-k", "-ctv", "--cache-type-v"], Same("--kv")),
    (&["-dev"], Same("--device")),
    (&["-ngl", "--gpu-layers", "--n-gpu-layers"], Layers),
    (&["-fa", "--flash-attn"], Flash),
    (&["-b", "--batch-size"], Nothing("--ubatch-size says how many tokens of a prompt are computed at once")),
    (&["-tb", "--threads-batch"], Nothing("-t counts for prompts, too")),
    (&["-ts", "--tensor-split"], Same("--split")),
    (
        &["-sm", "--split-mode", "-mg", "--main-gpu"],
        Nothing("--device chooses the GPU, and of several each has a range of layers"),
    ),
    (&["--numa", "--prio", "--poll", "-C", "--cpu-mask"], Nothing("threads are left to the system")),
    (&["--keep"], Nothing("nothing of a conversation is dropped without a word")),
    (
        &["--mlock", "--no-mmap", "--no-warmup", "--no-perf", "--log-disable", "--color", "--simple-io"],
        NothingAlone("it makes no difference here"),
    ),
    (
        &["-cnv", "--conversation", "-st", "--single-turn", "-mli", "--multiline-input", "--jinja"],
        NothingAlone("`moeray chat` is made for conversations, and `moeray run` for texts"),
    ),
    (
        &["-i", "--interactive", "-if", "--interactive-first", "-no-cnv"],
        NothingAlone("`moeray chat` is made for conversations, and `moeray run` for texts"),
    ),
    (&["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file", "-mu", "--model-url", "-dr"], No(DOWNLOAD)),
    (&["--lora-scaled"], No("say --lora FILE=SCALE")),
    (&["--mmproj", "-mm", "--image", "--audio"], No("Moeray runs the text part of models: it sees and hears nothing")),
    (&["-md", "--model-draft", "--draft", "--draft-max"], No("Moeray has no speculative decoding yet")),
    (&["-ot"], Same("--override-tensor")),
    (&["-cmoe"], Alone("--cpu-moe")),
    (&["-ncmoe"], Same("--n-cpu-moe")),
    (&["--chat-template", "--chat-template-file"], No("`moeray chat` uses the template that the model brings")),
    (&["--grammar-file", "-j"], No("`moeray run` has --json-schema and --grammar, which take a text or a file")),
    (
        &[
            "--presence-penalty",
            "--frequency-penalty",
            "--mirostat",
            "--dry-multiplier",
            "--xtc-probability",
            "--typical",
        ],
        No("Moeray has --temp, --top-k, --top-p, --min-p and --repeat-penalty"),
    ),
    (
        &["--rope-scaling", "--rope-freq-base", "--rope-freq-scale", "--yarn-orig-ctx"],
        No("positions are computed as the model's file says"),
    ),
];

/// Words of llama-finetune, for `finetune` alone.
const FINETUNE: &[(&[&str], Means)] = &[
    (&["-lr"], Same("--learning-rate")),
    (&["-lr-min"], Same("--learning-rate-min")),
    (&["-wd"], Same("--weight-decay")),
    (&["-epochs"], Same("--epochs")),
    (&["-val"], Same("--val-split")),
    (&["-opt"], Same("--optimizer")),
];

/// Verbs whose words are as in llama-bench, where `-b`, `-ngl` and the like would be tests of their own.
const VERBS: &[&str] = &["run", "chat", "perplexity", "logits", "bench", "finetune"];

/// The arguments in Moeray's words. What was left out is said on standard error.
pub fn translated(arguments: Vec<OsString>) -> Outcome<Vec<OsString>> {
    let is_verb = |a: &OsString| a.to_str().is_some_and(|a| VERBS.contains(&a));
    let quiet = arguments.iter().any(|a| a == "-q" || a == "--quiet");
    let Some(verb) = arguments.iter().position(is_verb).filter(|at| *at < 4) else { return Ok(arguments) };
    let mut out: Vec<OsString> = arguments[..=verb].to_vec();
    let mut rest = arguments[verb + 1..].iter().cloned().peekable();
    while let Some(argument) = rest.next() {
        let text = argument.to_str().unwrap_or_default().to_owned();
        if text == "--" {
            out.push(argument);
            out.extend(rest.by_ref());
            break;
        }
        let (word, joined) = match text.split_once('=') {
            Some((word, value)) if word.starts_with("--") => (word, Some(value.to_owned())),
            _ => (text.as_str(), None),
        };
        let verb = arguments[verb].to_str().unwrap_or_default();
        let Some(means) = meaning(word, verb) else {
            out.push(argument);
            // The value of an option is no option, whatever it looks like.
            if TAKES_TEXT.contains(&word) && joined.is_none() {
                out.extend(rest.next());
            }
            continue;
        };
        let mut value = || joined.clone().map(OsString::from).or_else(|| rest.next());
        let note = |why: &str| {
            if !quiet {
                say(format_args!("note: {word} is left out: {why}"));
            }
        };
        match means {
            Same(own) => {
                out.push(own.into());
                out.extend(value());
            }
            Alone(own) => out.push(own.into()),
            Nothing(why) => {
                value();
                note(why);
            }
            NothingAlone(why) => note(why),
            No(why) => return Err(Failure::new(format!("{word}: {why}"))),
            Layers => match value() {
                Some(n) if n == "0" => out.extend(["--backend".into(), "cpu".into()]),
                Some(n) if n == "all" || n == "auto" || n == "-1" => {}
                n => {
                    out.push("--gpu-layers".into());
                    out.extend(n);
                }
            },
            Flash => {
                let word = |a: &OsString| ["on", "off", "auto", "0", "1"].iter().any(|w| a == w);
                if joined.is_none() {
                    rest.next_if(word);
                }
                note("attention is computed in one piece always");
            }
        }
    }
    Ok(out)
}

/// Own options whose values may look like options.
const TAKES_TEXT: &[&str] = &["--lora", "-p", "--prompt", "-s", "--system", "--stop", "-f", "--file", "-m", "--model"];

fn meaning(word: &str, verb: &str) -> Option<Means> {
    if !word.starts_with('-') {
        return None;
    }
    // llama-bench repeats with -r, and so does bench.
    if verb == "bench" && word == "-r" {
        return None;
    }
    let own = if verb == "finetune" { FINETUNE } else { &[] };
    own.iter().chain(WORDS).find(|(words, _)| words.contains(&word)).map(|(_, means)| *means)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::translated;

    fn words(text: &str) -> String {
        let arguments = text.split(' ').map(Into::into).collect();
        let out =
            translated(arguments).map(|out| out.iter().map(|a| a.to_str().unwrap().to_owned()).collect::<Vec<_>>());
        out.map_or_else(|e| format!("{e:?}"), |out| out.join(" "))
    }

    #[test]
    fn words_of_llama_cpp() {
        assert_eq!(words("moeray chat m.gguf -c 4096 -ngl 99 -q"), "moeray chat m.gguf --ctx 4096 --gpu-layers 99 -q");
        assert_eq!(words("moeray run m -cmoe -q -ot exps=CPU"), "moeray run m --cpu-moe -q --override-tensor exps=CPU");
        assert_eq!(words("moeray run m -ncmoe 3 -ngl all"), "moeray run m --n-cpu-moe 3");
        assert_eq!(words("moeray run -q m.gguf -ngl 0 -fa on -n 5"), "moeray run -q m.gguf --backend cpu -n 5");
        assert_eq!(words("moeray run -q -fa -p x -b 512 -ub 64"), "moeray run -q -p x --ubatch-size 64");
        assert_eq!(words("moeray run -q -p -c --ctx-size=8"), "moeray run -q -p -c --ctx 8");
        assert_eq!(words("moeray -q bench -r 3 -ctk q8_0"), "moeray -q bench -r 3 --kv q8_0");
        assert_eq!(words("moeray inspect m.gguf -c 4"), "moeray inspect m.gguf -c 4");
        assert!(words("moeray chat -hf a/b").contains("hf download"));
        assert_eq!(
            words("moeray finetune -m m -lr 1e-4 -c 64 -wd 0"),
            "moeray finetune -m m --learning-rate 1e-4 --ctx 64 --weight-decay 0"
        );
        assert_eq!(words("moeray run -q m -lr 1e-4"), "moeray run -q m -lr 1e-4");
        assert_eq!(words("moeray run -q m --lora x=0.5"), "moeray run -q m --lora x=0.5");
        assert!(words("moeray run -q m --lora-scaled x 0.5").contains("--lora FILE=SCALE"));
    }
}
