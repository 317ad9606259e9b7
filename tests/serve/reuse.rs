//! What was read once is not read again: conversations that take turns on few sequences, models with recurrent states and windows,
//! budgets, and texts saved to files. `cached_tokens` is the witness, and the counter of fed rows says whether it tells the truth.

use super::client::{JSON, Server, demo, merged, options};
use crate::goldens;
use moeray::{
    serve::{App, Fleet, ServeOptions},
    session::{BackendChoice, LoadOptions, Model},
};
use serde_json::{Value, json};
use std::{
    fs,
    io::Read,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

fn with_store(sequences: usize, ctx: usize, bytes: u64) -> ServeOptions {
    let mut o = options(sequences, ctx, 16);
    o.engine.prefix_bytes = bytes;
    o
}

/// A server, and how many rows of prompts it was fed when somebody last looked.
struct Watched {
    s: Server,
    fed: f64,
}

impl Watched {
    fn new(model: &Model, options: ServeOptions) -> Watched {
        Watched { s: Server::of(Fleet::of(Arc::new(App::new(model, options).unwrap()))), fed: 0.0 }
    }

    /// A greedy answer, and how many tokens of its prompt were cached; the rows that were fed are the others.
    fn ask(&mut self, prompt: &Value, tokens: usize, more: &Value) -> (String, usize, usize) {
        let body = json!({"model": "demo", "prompt": prompt, "temperature": 0, "max_tokens": tokens});
        let j = self.s.good("/v1/completions", &merged(&body, more));
        let usage = &j["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() as usize;
        let total = usage["prompt_tokens"].as_u64().unwrap() as usize;
        let fed = self.s.metric("moeray_prefill_tokens_total");
        assert_eq!(fed - self.fed, (total - cached) as f64, "{j}");
        self.fed = fed;
        (j["choices"][0]["text"].as_str().unwrap().to_owned(), cached, total)
    }

    fn plain(&mut self, prompt: &str, tokens: usize) -> (String, usize, usize) {
        self.ask(&json!(prompt), tokens, &json!({}))
    }
}

const ROMAN: &str = "Friends, Romans, countrymen, lend me your ears; I come to bury Caesar, not to praise him. The evil that men do \
                     lives after them; the good is oft interred with their bones. ";
const DANE: &str = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer the slings and arrows of \
                    outrageous fortune, or to take arms against a sea of troubles. ";

/// Two conversations on one sequence: each turn of either reads what is new in it, and says what it says alone.
#[test]
fn conversations_take_turns_on_one_sequence() {
    let mut w = Watched::new(demo(), with_store(1, 512, 64 << 20));
    let mut alone = Watched::new(demo(), with_store(1, 512, 0));
    let (mut roman, mut dane) = (ROMAN.to_owned(), DANE.to_owned());
    let mut read = [0, 0];
    for turn in 0..4 {
        for (i, text) in [&mut roman, &mut dane].into_iter().enumerate() {
            let (answer, cached, total) = w.plain(text, 8);
            assert_eq!((turn > 0, cached > 0), (cached > 0, turn > 0));
            // All that was there after the last turn, but for its last token, which was never fed, and for a token that letters
            // across the border make of two.
            assert!(cached + 2 >= read[i], "turn {turn}: {cached} of {}", read[i]);
            assert_eq!(answer, alone.plain(text, 8).0, "turn {turn} of {i}");
            read[i] = total + 7;
            text.push_str(&answer);
            text.push_str(" And then?");
        }
    }
    // The same again, and another last message, after everybody else.
    let (_, cached, total) = w.plain(&roman, 4);
    let first = w.plain(&dane, 4).1;
    assert!(first > 0);
    assert_eq!(w.plain(&roman, 4).1, total - 1, "{cached}");
    w.plain(&dane, 4);
    let edited = roman.strip_suffix(" And then?").unwrap().to_owned() + " But why?";
    let (_, cached, _) = w.plain(&edited, 4);
    assert!(cached + 8 >= total, "{cached} of {total}");
    let fetched = w.s.metric("moeray_prefix_copies_total{way=\"fetch\"}");
    assert!(fetched >= 8.0, "{fetched}");
    // Without the store one sequence forgets.
    assert!(alone.plain(&roman, 4).1 <= 8 || alone.plain(&dane, 4).1 <= 8);
}

/// Two clients in turn behind one system prompt, on fewer sequences than conversations.
#[test]
fn a_system_prompt_is_read_once() {
    let mut w = Watched::new(demo(), with_store(2, 512, 64 << 20));
    let shared = w.plain(ROMAN, 1).2;
    for round in 0..2 {
        for name in ["ANTONY", "BRUTUS", "CASSIUS", "PORTIA", "CASCA"] {
            let (_, cached, total) = w.plain(&format!("{ROMAN}{name}: what I say is {}", name.repeat(3)), 6);
            let least = if round == 0 { shared - 2 } else { total - 1 };
            assert!(cached >= least, "{name} in round {round}: {cached} of {total}");
        }
        w.plain(DANE, 3);
        w.plain("A horse! A horse! My kingdom for a horse! ", 40);
    }
}

/// A budget is kept: what was used least recently is gone, what was used last is there.
#[test]
fn a_full_store_forgets_the_oldest() {
    let budget = {
        let mut w = Watched::new(demo(), with_store(1, 256, 64 << 20));
        w.plain(DANE, 2);
        w.plain(ROMAN, 2);
        w.s.metric("moeray_prefix_cache_bytes") as u64 * 3
    };
    let mut w = Watched::new(demo(), with_store(1, 256, budget));
    let texts: Vec<String> = (0..8).map(|i| format!("{i}{i}{i}. {DANE}")).collect();
    for text in &texts {
        assert!(w.plain(text, 2).1 < 8);
        let bytes = w.s.metric("moeray_prefix_cache_bytes");
        assert!(bytes <= budget as f64, "{bytes} of {budget}");
    }
    assert!(w.s.metric("moeray_prefix_cache_evictions_total") >= 4.0);
    let (_, cached, total) = w.plain(&texts[6], 2);
    assert_eq!(cached, total - 1);
    assert!(w.plain(&texts[0], 2).1 < 8, "the oldest is still there");
}

/// A golden's model with a vocabulary of single letters, of which some are control tokens.
fn lettered(name: &str, to: &Path) -> Model {
    for file in ["config.json", "model.safetensors"] {
        fs::copy(goldens::folder(name).join(file), to.join(file)).unwrap();
    }
    let config: Value = serde_json::from_str(&fs::read_to_string(to.join("config.json")).unwrap()).unwrap();
    let size = config["vocab_size"].as_u64().unwrap();
    let vocab: serde_json::Map<String, Value> = (0..size).map(|i| (letter(i as u32), json!(i))).collect();
    let control = |id: u32| {
        json!({"id": id, "content": letter(id), "special": true, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [control(0), control(1), control(2)],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let cpu = moeray::cpu::Options { threads: Some(2), ..Default::default() };
    let options = LoadOptions { backend: BackendChoice::Cpu(cpu), ..LoadOptions::default() };
    Model::load(to, &options, &mut |_| {}).unwrap()
}

/// Each letter is a token; the first three are control tokens.
fn letter(id: u32) -> String {
    match id {
        0..3 => format!("<|{id}|>"),
        3..96 => char::from(id as u8 + 30).to_string(),
        _ => format!("<word {id}>"),
    }
}

/// The ids of what an answer's text says.
fn ids_of(text: &str) -> Vec<u32> {
    text.bytes().map(|b| u32::from(b) - 30).collect()
}

/// A message behind a control token.
fn message(seed: u32, n: u32) -> Vec<u32> {
    std::iter::once(2).chain((0..n).map(|i| 3 + (seed * 7 + i * i + i / 3) % 80)).collect()
}

/// Letters alone, no control tokens and no words.
fn letters_only(vocab: usize) -> Value {
    let others = (0..3).chain(96..vocab);
    let bias: serde_json::Map<String, Value> = others.map(|id| (id.to_string(), json!(-100))).collect();
    json!({"logit_bias": bias, "ignore_eos": true})
}

/// Conversations with a model that has recurrent states or windows, taking turns on two sequences.
fn turns(name: &str, exact: bool) {
    let dir = tempfile::tempdir().unwrap();
    let model = lettered(name, dir.path());
    let mut w = Watched::new(&model, with_store(2, 256, 64 << 20));
    let fresh = || Watched::new(&model, with_store(1, 256, 0));
    let conversations: Vec<Vec<u32>> = (1..5).map(|i| [message(9, 50), message(i, 30)].concat()).collect();
    let ask = |w: &mut Watched, ids: &[u32]| w.ask(&json!(ids), 5, &letters_only(model.vocab()));
    let mut answered = vec![];
    for (i, c) in conversations.iter().enumerate() {
        let (answer, cached, _) = ask(&mut w, c);
        // The first message is read once: its border is where a state was kept. Keys need no border: the control token behind it
        // is shared too.
        let shared = if exact { 52 } else { 51 };
        assert_eq!(cached, if i == 0 { 0 } else { shared }, "{name}, conversation {i}");
        assert_eq!(answer, ask(&mut fresh(), c).0, "{name}, conversation {i}");
        answered.push(answer);
    }
    for (i, c) in conversations.iter().enumerate() {
        let (answer, cached, total) = ask(&mut w, c);
        // Regenerated: the message is read anew at most from its border on.
        let least = if exact { total - 1 } else { 51 };
        assert!(cached >= least, "{name}: regeneration {i} has {cached} of {total}");
        assert_eq!(answer, answered[i], "{name}: regeneration {i}");
    }
    for (i, c) in conversations.iter().enumerate() {
        // The second turn: the answer is there too, but for its last token.
        let next = [&c[..], &ids_of(&answered[i]), &message(40 + i as u32, 12)].concat();
        let (answer, cached, _) = ask(&mut w, &next);
        assert_eq!(cached, c.len() + 4, "{name}: second turn {i}");
        assert_eq!(answer, ask(&mut fresh(), &next).0, "{name}: second turn {i}");
        // Its last message edited: all before that one stays.
        let edited = [&c[..], &ids_of(&answered[i]), &message(60 + i as u32, 14)].concat();
        let (_, cached, _) = ask(&mut w, &edited);
        assert!(cached >= c.len() + 4, "{name}: edited message {i} has {cached}");
    }
}

#[test]
fn recurrent_states_are_resumed() {
    turns("qwen3_next", false);
}

#[test]
fn short_convolutions_are_resumed() {
    turns("lfm2_moe", false);
}

#[test]
fn windows_are_resumed() {
    turns("gpt_oss", true);
}

fn act(s: &Server, slot: &str, action: &str, body: &Value) -> super::client::Answer {
    s.post(&format!("/slots/{slot}?action={action}"), body)
}

/// A text goes to a file and comes back in another server; what does not belong there is refused, and changes nothing.
#[test]
fn slots_are_saved_and_restored() {
    let (folder, models) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let saving = |sequences: usize| {
        let mut o = with_store(sequences, 256, 8 << 20);
        o.slot_folder = Some(folder.path().to_owned());
        o
    };
    let hybrid = lettered("qwen3_next", models.path());
    let conversation = [message(9, 50), message(1, 30)].concat();
    let texts = [(demo(), json!(ROMAN)), (&hybrid, json!(conversation))];
    for (i, (model, text)) in texts.iter().enumerate() {
        let mut w = Watched::new(model, saving(2));
        let empty = act(&w.s, "1", "save", &json!({"filename": "empty"}));
        assert_eq!((empty.status, empty.text.contains("no text")), (400, true), "{}", empty.text);
        let (answer, _, total) = w.ask(text, 5, &json!({"ignore_eos": true}));
        let slots = w.s.get("/slots").json();
        let used = slots.as_array().unwrap().iter().position(|s| s["n_cached_tokens"] != 0).unwrap().to_string();
        let name = format!("text-{i}.bin");
        let saved = act(&w.s, &used, "save", &json!({"filename": name}));
        let j = saved.json();
        assert_eq!((saved.status, &j["n_saved"], &j["filename"]), (200, &json!(total + 4), &json!(name)), "{j}");
        assert_eq!(j["n_written"].as_u64().unwrap(), fs::metadata(folder.path().join(&name)).unwrap().len());
        super::openapi::check_answer("/slots/{id}", &j);
        // In another server, in another slot.
        let mut w = Watched::new(model, saving(3));
        let restored = act(&w.s, "2", "restore", &json!({"filename": name}));
        assert_eq!((restored.status, &restored.json()["n_restored"]), (200, &json!(total + 4)), "{}", restored.text);
        super::openapi::check_answer("/slots/{id}", &restored.json());
        assert_eq!(w.s.get("/slots").json()[2]["n_cached_tokens"], total + 4);
        let (again, cached, _) = w.ask(text, 5, &json!({"ignore_eos": true}));
        assert!(again == answer && cached >= 51.min(total - 1), "{cached}: {again} {answer}");
        // Bytes that were damaged, cut off, or are another model's.
        let bytes = fs::read(folder.path().join(&name)).unwrap();
        for at in [0, 9, 13, 17, 30, bytes.len() / 2, bytes.len() - 1] {
            let mut bad = bytes.clone();
            bad[at] ^= 0x41;
            fs::write(folder.path().join("bad"), bad).unwrap();
            let a = act(&w.s, "0", "restore", &json!({"filename": "bad"}));
            assert_eq!(a.status, 400, "byte {at}: {}", a.text);
        }
        for length in [0, 7, 23, 40, bytes.len() - 3] {
            fs::write(folder.path().join("bad"), &bytes[..length]).unwrap();
            assert_eq!(act(&w.s, "0", "restore", &json!({"filename": "bad"})).status, 400, "{length} bytes");
        }
        if i == 1 {
            assert_eq!(act(&w.s, "0", "restore", &json!({"filename": "text-0.bin"})).status, 400);
        }
        let erased = act(&w.s, "2", "erase", &json!({}));
        assert_eq!(erased.status, 200, "{}", erased.text);
        super::openapi::check_answer("/slots/{id}", &erased.json());
        assert_eq!(w.s.get("/slots").json()[2]["n_cached_tokens"], 0);
    }
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.len() == 3, "half-written files: {left:?}");
}

/// No path from a request reaches the file system.
#[test]
fn names_are_names() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("slots");
    fs::create_dir(&folder).unwrap();
    fs::write(outer.path().join("secret"), "x").unwrap();
    let mut o = with_store(1, 2048, 0);
    o.slot_folder = Some(folder.clone());
    let s = Server::start(o);
    s.text("ROMEO:", 2, &json!({}));
    let long = "x".repeat(129);
    let absolute = outer.path().join("secret").to_str().unwrap().to_owned();
    let names =
        ["", ".", "..", ".hidden", "../secret", "a/b", "a\\b", "a b", "é", "x\0", "%2e%2e", "C:x", &long, &absolute];
    for name in names {
        for action in ["save", "restore"] {
            let a = act(&s, "0", action, &json!({"filename": name}));
            assert_eq!(
                (a.status, &a.json()["error"]["param"]),
                (400, &json!("filename")),
                "{action} {name:?}: {}",
                a.text
            );
        }
    }
    assert_eq!((fs::read_dir(&folder).unwrap().count(), fs::read_dir(outer.path()).unwrap().count()), (0, 2));
    // Neither links nor folders are read.
    #[cfg(unix)]
    std::os::unix::fs::symlink(outer.path().join("secret"), folder.join("link")).unwrap();
    fs::create_dir(folder.join("dir")).unwrap();
    for name in ["link", "dir"] {
        if folder.join(name).exists() {
            assert_eq!(act(&s, "0", "restore", &json!({"filename": name})).status, 400, "{name}");
        }
    }
    let status = |slot: &str, action: &str, body: &Value| act(&s, slot, action, body).status;
    let named = json!({"filename": "x"});
    assert_eq!(
        (status("0", "restore", &named), status("1", "save", &named), status("x", "save", &named)),
        (404, 404, 404)
    );
    assert_eq!(
        (status("0", "nonsense", &named), status("0", "", &named), status("0", "save", &json!({}))),
        (400, 400, 400)
    );
    assert_eq!((s.get("/slots/0?action=save").status, status("0", "save", &json!({"filename": 5}))), (405, 400));
    // A slot in use can be saved; it is not taken away.
    let body = json!({"model": "demo", "prompt": "ROMEO:", "max_tokens": 1900, "ignore_eos": true, "stream": true});
    let mut running = s.send("POST", "/v1/completions", JSON, body.to_string().as_bytes());
    running.read_exact(&mut [0; 64]).unwrap();
    let begin = Instant::now();
    while s.get("/slots").json()[0]["n_decoded"] == 0 {
        assert!(begin.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(
        (status("0", "save", &named), status("0", "erase", &json!({})), status("0", "restore", &named)),
        (200, 409, 409)
    );
    drop(running);
    // Without a folder there is nothing of it.
    let plain = Server::start(with_store(1, 64, 0));
    let a = act(&plain, "0", "save", &named);
    assert_eq!((a.status, &a.json()["error"]["code"]), (400, &json!("not_supported")));
}
