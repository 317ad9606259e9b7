//! Data: texts into tokens, tokens into batches, and what is said to files that are none.

use moeray::{
    file,
    tokenizer::Tokenizer,
    train::{
        MicroBatch,
        data::{Corpus, Cursor, Excess, Feed, FeedOptions, PackingOptions, Source, read},
    },
};
use std::{collections::BTreeMap, fs, path::Path};

const CHAT: &str = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\
    {{ '\\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

fn tokenizer() -> Tokenizer {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/bard-q4_k_m.gguf");
    Tokenizer::from_checkpoint(&file::open(&demo).unwrap()).unwrap()
}

fn options(rows: usize) -> FeedOptions {
    let packing = PackingOptions { sequence_len: rows, packed: true, shuffle: true, seed: 11 };
    FeedOptions { packing, micro_batch_size: 2, accumulation: 2, windows: false }
}

/// Texts whose tokens are all different, so that every row tells where it comes from.
fn corpus(lengths: &[usize], longest: usize) -> Corpus {
    let mut c = Corpus::new(100_000, longest);
    let mut next = 1u32;
    for (i, n) in lengths.iter().enumerate() {
        let ids: Vec<u32> = (next..next + *n as u32).collect();
        next += *n as u32 + 1;
        if i % 2 == 0 || *n > longest {
            c.add_text(&format!("text {i}"), ids).unwrap();
        } else {
            let learnt = (0..*n).map(|j| j * 2 >= *n).collect();
            c.add_sample(&format!("sample {i}"), ids, learnt, Excess::Raise).unwrap();
        }
    }
    c
}

/// What each row of a micro-batch must be, whatever it holds.
fn check(m: &MicroBatch, rows: usize) {
    assert_eq!(m.rows() % rows, 0);
    for r in 0..m.rows() {
        let start = m.starts[r] as usize;
        assert!(start <= r && start / rows == r / rows, "a text stays in its sequence");
        assert_eq!(m.positions[r] as usize, r - start);
        if m.ids[r] == 0 {
            assert!(start == r && m.weights[r] == 0.0, "padding sees itself alone");
        } else {
            assert_eq!(m.targets[r], m.ids[r] + 1);
            assert!(start == r || m.ids[r] == m.ids[r - 1] + 1);
        }
    }
}

#[test]
fn every_row_comes_once_an_epoch() {
    let lengths: Vec<usize> = (0..70).map(|i| 2 + i * 7 % 31).chain([500, 33, 34]).collect();
    let c = corpus(&lengths, 33);
    let want: usize = lengths.iter().map(|n| n - 1).sum();
    let mut orders = vec![];
    for packed in [true, false] {
        let mut o = options(32);
        o.packing.packed = packed;
        let mut feed = Feed::new(c.clone(), o).unwrap();
        for epoch in 0..2 {
            feed.seek(Cursor { epoch, sequence: 0 }).unwrap();
            let (mut seen, mut order) = (BTreeMap::<u32, usize>::new(), vec![]);
            while feed.cursor().epoch == epoch {
                let batch = feed.next_batch();
                for m in &batch.micro {
                    check(m, 32);
                    // A step may reach into the next epoch.
                    order.extend(m.ids.iter().filter(|id| **id > 0));
                }
            }
            order.truncate(want);
            order.iter().for_each(|id| *seen.entry(*id).or_default() += 1);
            assert!(
                seen.len() == want && seen.values().all(|n| *n == 1),
                "packed {packed}, epoch {epoch}: {}",
                seen.len()
            );
            orders.push(order);
        }
        let padded = feed.sequences() as usize * 32;
        assert!(!packed || padded as f64 <= 1.05 * want as f64, "{padded} rows for {want}");
    }
    assert!(orders[0] != orders[1] && orders[0] != orders[2], "another order in every epoch");
}

#[test]
fn a_cursor_goes_on_where_it_was() {
    let c = corpus(&[90, 5, 17, 8, 40, 11, 300, 6], 33);
    let mut all = Feed::new(c.clone(), options(16)).unwrap();
    let batches: Vec<_> = (0..40).map(|_| (all.cursor(), all.next_batch().micro)).collect();
    assert!(all.cursor().epoch >= 2);
    for (cursor, micro) in batches.iter().rev() {
        let mut feed = Feed::new(c.clone(), options(16)).unwrap();
        feed.seek(*cursor).unwrap();
        assert_eq!(feed.next_batch().micro, *micro, "{cursor:?}");
    }
    let mut o = options(16);
    o.packing.seed = 12;
    assert_ne!(Feed::new(c, o).unwrap().next_batch().micro, batches[0].1, "another seed, another order");
}

#[test]
fn scales_and_shares_make_one_mean() {
    let mut feed = Feed::new(corpus(&[5, 60, 9, 30, 12], 33), options(16)).unwrap();
    let batch = feed.next_batch();
    let sum: f64 = batch.micro.iter().map(|m| m.weights.iter().map(|w| f64::from(*w) * m.scale).sum::<f64>()).sum();
    let share: f64 = batch.micro.iter().map(|m| m.share).sum();
    assert!((sum - 1.0).abs() < 1e-12 && (share - 1.0).abs() < 1e-12);
    assert!(batch.learnt < batch.rows, "samples have questions that are not learnt");
}

#[test]
fn windows_begin_where_the_hash_says() {
    let c = corpus(&[1000], 33);
    let o = FeedOptions { windows: true, ..options(16) };
    let mut feed = Feed::new(c, o).unwrap();
    for step in 0..20u32 {
        let batch = feed.next_batch();
        for (b, start) in batch.micro.iter().flat_map(|m| m.ids.chunks(16)).map(|s| s[0] - 1).enumerate() {
            assert_eq!(start, moeray::train::data::below(11, 1, step * 4 + b as u32, 1000 - 16 - 2));
        }
        batch.micro.iter().for_each(|m| check(m, 16));
    }
}

#[test]
fn windows_go_from_text_to_text_and_leave_out_what_is_held_back() {
    let (train, held) = corpus(&[400, 300, 500], 33).split(0.1, 3).unwrap();
    let ids =
        |c: &Corpus| -> Vec<u32> { c.texts().iter().flat_map(|t| t.start as u32..(t.start + t.len) as u32).collect() };
    // Tokens are numbered from 1, and one number is left out between two texts.
    let number = |token: u32| token + 1 + u32::from(token >= 400) + u32::from(token >= 700);
    let (all, kept): (Vec<u32>, Vec<u32>) =
        (ids(&train).into_iter().map(number).collect(), ids(&held).into_iter().map(number).collect());
    let mut feed = Feed::new(train, FeedOptions { windows: true, ..options(16) }).unwrap();
    let mut crossed = 0;
    for step in 0..200u32 {
        for (b, rows) in feed
            .next_batch()
            .micro
            .iter()
            .flat_map(|m| m.ids.chunks(16).zip(m.targets.chunks(16)).collect::<Vec<_>>())
            .enumerate()
        {
            let at = moeray::train::data::below(11, 1, step * 4 + b as u32, all.len() as u32 - 16 - 2) as usize;
            assert_eq!((rows.0, rows.1), (&all[at..at + 16], &all[at + 1..at + 17]));
            crossed += usize::from(rows.0[15] - rows.0[0] > 15);
            assert!(rows.1.iter().all(|id| !kept.contains(id)));
        }
    }
    assert!(crossed > 5);
}

#[test]
fn held_back_data_is_not_trained_on() {
    let lengths: Vec<usize> = (0..60).map(|_| 9).chain([2000]).collect();
    let (train, held) = corpus(&lengths, 33).split(0.1, 3).unwrap();
    let ids = |c: &Corpus| -> Vec<u32> {
        let mut feed = Feed::new(c.clone(), options(16)).unwrap();
        feed.all(0).iter().flat_map(|b| &b.micro).flat_map(|m| m.targets.clone()).filter(|t| *t > 0).collect()
    };
    let (a, b) = (ids(&train), ids(&held));
    assert!(b.iter().all(|id| !a.contains(id)) && b.len() > 200, "{} and {}", a.len(), b.len());
    assert!(
        b.iter().any(|id| *id > 700) && b.iter().any(|id| *id < 600),
        "the tail of the long text, and some samples"
    );
    assert!(corpus(&[9], 33).split(0.1, 3).is_err());
}

/// The tokens of a corpus with those that are learnt in brackets.
fn shown(tokenizer: &Tokenizer, corpus: Corpus) -> Vec<String> {
    let o = FeedOptions {
        packing: PackingOptions { sequence_len: 128, packed: false, shuffle: false, seed: 0 },
        micro_batch_size: 1,
        accumulation: 1,
        windows: false,
    };
    let mut feed = Feed::new(corpus, o).unwrap();
    let text = |id: u32| tokenizer.decode_with(&[id], true);
    let one = |m: &MicroBatch| {
        let mut out = text(m.ids[0]);
        let rows = m.positions.iter().zip(&m.starts).zip(&m.targets).zip(&m.weights);
        for (((_, start), target), weight) in rows.filter(|(((_, s), _), _)| **s == 0) {
            let _ = start;
            out += &if *weight > 0.0 { format!("[{}]", text(*target)) } else { text(*target) };
        }
        out.replace("][", "")
    };
    feed.all(0).iter().map(|b| one(&b.micro[0])).collect()
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> Source {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, bytes).unwrap();
    Source::new(path)
}

#[test]
fn json_lines_of_each_kind() {
    let dir = tempfile::tempdir().unwrap();
    let t = tokenizer().with_chat_template(CHAT);
    let lines = "{\"text\": \"Good morrow\"}\n\n{\"prompt\": \"Who is there?\", \"completion\": \" Nay, answer me\"}\n\
        {\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Ho\"}, \
        {\"role\": \"user\", \"content\": \"So\"}, {\"role\": \"assistant\", \"content\": \"No\"}]}\n\
        {\"conversations\": [{\"from\": \"human\", \"value\": \"Hi\"}, {\"from\": \"gpt\", \"value\": \"Ho\"}]}\n";
    let source = write(dir.path(), "a.jsonl", lines.as_bytes());
    let end = "<|endoftext|>";
    let all = shown(&t, read(std::slice::from_ref(&source), Some(&t), 4096, 128).unwrap());
    let plain = |s: &str| s.replace(['[', ']'], "");
    assert_eq!(all.len(), 4);
    assert!(all[0].ends_with(&format!("{end}]")) && plain(&all[0]).contains("Good morrow"), "{all:?}");
    assert!(all[1].ends_with(&format!("Who is there?[ Nay, answer me{end}]")), "{all:?}");
    assert!(
        all[2].ends_with(&format!("<|user|>Hi\n<|assistant|>[Ho{end}]\n<|user|>So\n<|assistant|>[No{end}]\n")),
        "answers alone, in both turns: {all:?}"
    );
    assert!(all[3].ends_with(&format!("<|user|>Hi\n<|assistant|>[Ho{end}]\n")), "{all:?}");
    let everything = shown(&t, read(&[Source { train_on_inputs: true, ..source }], Some(&t), 4096, 128).unwrap());
    assert!(
        everything[1].contains("[") && everything[1].ends_with(&format!("is there? Nay, answer me{end}]")),
        "{everything:?}"
    );
}

#[test]
fn a_template_that_forgets_makes_two_samples() {
    // Earlier answers are rendered without their last word: the prompt of the second turn does not continue the first.
    let forgetful = "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}A:..{% else %}{{ 'u' if m.role == 'user' else 'a' }}:{{ m.content }}\
        {% endif %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}";
    let dir = tempfile::tempdir().unwrap();
    let t = tokenizer().with_chat_template(forgetful);
    let line = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": \"Ho\"}, \
        {\"role\": \"user\", \"content\": \"So\"}, {\"role\": \"assistant\", \"content\": \"No\"}]}";
    let all = shown(&t, read(&[write(dir.path(), "a.jsonl", line.as_bytes())], Some(&t), 4096, 128).unwrap());
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all[0].ends_with("a:[Ho<|endoftext|>]") && all[1].ends_with("a:[No<|endoftext|>]"), "{all:?}");
    assert!(all[1].contains("A:..") && !all[1].contains("[A"), "{all:?}");
}

#[test]
fn folders_and_token_files() {
    let dir = tempfile::tempdir().unwrap();
    let u16s: Vec<u8> = (1..200u16).flat_map(u16::to_le_bytes).collect();
    let u32s: Vec<u8> = (1..200u32).flat_map(u32::to_le_bytes).collect();
    let llmc: Vec<u8> =
        [[20_240_520u32, 1, 199].as_slice(), &[0; 253]].concat().iter().flat_map(|w| w.to_le_bytes()).collect();
    write(dir.path(), "d/a.bin", &u16s);
    write(dir.path(), "d/b/c.u32", &u32s);
    write(dir.path(), "d/b/d.bin", &[llmc, u16s.clone()].concat());
    write(dir.path(), "d/ignored.png", b"x");
    let c = read(&[Source::new(dir.path().join("d"))], None, 200, 16).unwrap();
    assert_eq!(c.texts().iter().map(|t| t.len).collect::<Vec<_>>(), [199, 199, 199]);
    let mut feed = Feed::new(c, options(16)).unwrap();
    feed.all(0).iter().flat_map(|b| &b.micro).for_each(|m| check(m, 16));
}

#[test]
fn hostile_data_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let t = tokenizer();
    let long = format!("{{\"prompt\": \"a\", \"completion\": \"{}\"}}", "word ".repeat(90));
    let u16s = |ids: &[u16]| ids.iter().flat_map(|i| i.to_le_bytes()).collect::<Vec<u8>>();
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty.txt", vec![], &["empty.txt", "is empty"]),
        ("empty.jsonl", vec![], &["empty.jsonl", "is empty"]),
        ("empty.bin", vec![], &["empty.bin", "is empty"]),
        ("blank.jsonl", b"\n\n  \n".to_vec(), &["blank.jsonl", "no line"]),
        ("latin.txt", vec![b'a', 0xe9, b'b'], &["latin.txt", "offset 1"]),
        ("odd.bin", vec![1, 0, 2], &["odd.bin", "3 bytes"]),
        ("range.bin", u16s(&[1, 2, 4096, 3]), &["range.bin", "token 2", "4096", "4095"]),
        ("range.u32", vec![255; 8], &["range.u32", "token 0", "4294967295"]),
        ("one.bin", u16s(&[1]), &["one.bin", "one token"]),
        ("llmc.bin", [20_240_520u32, 9, 4].iter().flat_map(|w| w.to_le_bytes()).collect(), &["llm.c", "version"]),
        ("short.bin", [20_240_520u32, 1, 4].iter().flat_map(|w| w.to_le_bytes()).collect(), &["short.bin", "4 tokens"]),
        ("bad.jsonl", b"{\"text\": \"a b c\"}\n{\"text\": ".to_vec(), &["bad.jsonl, line 2", "JSON"]),
        ("keys.jsonl", b"{\"txt\": \"a\"}".to_vec(), &["keys.jsonl, line 1", "txt", "completion"]),
        ("list.jsonl", b"[1, 2]".to_vec(), &["list.jsonl, line 1"]),
        ("type.jsonl", b"{\"text\": 5}".to_vec(), &["type.jsonl, line 1", "a number"]),
        (
            "chat.jsonl",
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}".to_vec(),
            &["chat.jsonl, line 1", "chat template"],
        ),
        ("messages.jsonl", b"{\"messages\": {}}".to_vec(), &["messages.jsonl, line 1", "a list"]),
        ("long.jsonl", long.clone().into_bytes(), &["long.jsonl, line 1", "sequence_len", "excess_length_strategy"]),
        ("what.dat", b"abc".to_vec(), &["what.dat", "ds_type"]),
    ];
    for (name, bytes, words) in cases {
        let e = read(&[write(d, name, &bytes)], Some(&t), 4096, 64).unwrap_err().to_string();
        assert!(words.iter().all(|w| e.contains(w)), "{name}: {e}");
    }
    let chat = |line: &str| {
        let t = tokenizer().with_chat_template(CHAT);
        read(&[write(d, "c.jsonl", line.as_bytes())], Some(&t), 4096, 64).map_err(|e| e.to_string())
    };
    assert!(chat("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}").unwrap_err().contains("assistant"));
    assert!(chat("{\"messages\": [{\"content\": \"x\"}]}").unwrap_err().contains("role"));
    assert!(chat("{\"messages\": []}").unwrap_err().contains("assistant"));
    // Samples that are too long are left out or cut where that was asked for.
    let both = write(d, "both.jsonl", format!("{long}\n{{\"prompt\": \"a\", \"completion\": \" b c\"}}").as_bytes());
    let dropped = read(&[Source { excess: Excess::Drop, ..both.clone() }], Some(&t), 4096, 64).unwrap();
    assert_eq!((dropped.texts().len(), dropped.dropped()), (1, 1));
    let cut = read(&[Source { excess: Excess::Truncate, ..both }], Some(&t), 4096, 64).unwrap();
    assert_eq!(cut.texts().iter().map(|t| t.len).max(), Some(65));
    let alone = Source { excess: Excess::Drop, ..write(d, "alone.jsonl", long.as_bytes()) };
    assert!(read(&[alone], Some(&t), 4096, 64).unwrap_err().to_string().contains("too long"));
    for (path, words) in [(d.join("nothing"), "nothing"), (d.join("empty"), "without data")] {
        fs::create_dir_all(d.join("empty")).unwrap();
        let e = read(&[Source::new(path)], Some(&t), 4096, 64).unwrap_err().to_string();
        assert!(e.contains(words), "{e}");
    }
    let text = write(d, "text.txt", b"some words");
    assert!(read(&[text], None, 4096, 64).unwrap_err().to_string().contains("no tokenizer"));
    assert!(Feed::new(Corpus::new(5, 5), options(16)).is_err());
}
