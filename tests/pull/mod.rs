//! Downloads: a hub on loopback, whatever breaks on the way, and the cache as huggingface_hub has it.

mod hub;

use self::hub::{COMMIT, Faults, Hub, noise, sha256};
use moeray::{
    CancelToken, Error,
    hub::{Places, PullOptions, PullProgress, Pulled},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const REPO: &str = "bard/verse-GGUF";

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"verse".to_vec()),
        ("verse-Q4_K_M.gguf", noise(1, 300_000)),
        ("verse-Q8_0.gguf", noise(2, 50_000)),
        ("BF16/verse-BF16-00001-of-00002.gguf", noise(3, 20_000)),
        ("BF16/verse-BF16-00002-of-00002.gguf", noise(4, 30_000)),
        ("mmproj-F16.gguf", noise(5, 9_000)),
    ]
}

fn options(hub: &Hub, cache: &Path) -> PullOptions {
    PullOptions {
        endpoint: hub.endpoint(),
        token: None,
        cache: cache.to_owned(),
        revision: "main".into(),
        proxy_of_environment: false,
        cancel: CancelToken::default(),
    }
}

fn get(name: &str, o: &PullOptions) -> moeray::Result<Pulled> {
    o.pull(name, &mut |_| {})
}

fn blobs(cache: &Path) -> Vec<String> {
    let folder = cache.join("models--bard--verse-GGUF/blobs");
    let mut all: Vec<String> =
        fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn what_is_asked_for_comes_and_nothing_else() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(REPO, &files()));
    let cache = dir.path().join("hub");
    let o = PullOptions { token: Some("secret".into()), ..options(&hub, &cache) };
    let mut progress = vec![];
    let q4 = o.pull("hf:bard/verse-GGUF:q4_k_m", &mut |p| {
        if let PullProgress::Received { bytes, .. } = p {
            progress.push(bytes);
        }
    });
    let q4 = q4.unwrap();
    assert_eq!((q4.bytes, q4.received, q4.commit.as_str()), (300_000, 300_000, COMMIT));
    assert_eq!(fs::read(&q4.path).unwrap(), files()[1].1);
    assert!(progress.is_sorted() && progress.last() == Some(&300_000), "{progress:?}");
    assert_eq!(blobs(&cache), [sha256(&files()[1].1)]);
    // Who keeps the files learns no token.
    let seen = hub.seen();
    assert_eq!(seen.len(), 4, "{seen:?}");
    for s in &seen {
        assert_eq!(s.token.as_deref(), if s.path.contains("signed") { None } else { Some("secret") }, "{s:?}");
    }
    let places = Places { hugging_face: Some(cache.clone()), ..Places::default() };
    assert_eq!(places.find("bard/verse-GGUF").unwrap(), Some(q4.path.clone()));
    let repo = cache.join("models--bard--verse-GGUF");
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert!(cache.join(".locks/models--bard--verse-GGUF").join(format!("{}.lock", sha256(&files()[1].1))).is_file());
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(&q4.path).unwrap(),
        Path::new("../../blobs").join(sha256(&files()[1].1)),
        "links are relative, as huggingface_hub writes them"
    );
    // Once more: only the listing is asked for.
    let again = get("bard/verse-GGUF:Q4_K_M", &o).unwrap();
    assert_eq!((again.received, &again.path, hub.seen().len()), (0, &q4.path, 1));
    // All parts of a split one, deeper in the tree.
    let split = get("bard/verse-GGUF:BF16", &o).unwrap();
    assert_eq!((split.bytes, split.received), (50_000, 50_000));
    assert!(split.path.ends_with("BF16/verse-BF16-00001-of-00002.gguf") && split.path.is_file());
    #[cfg(unix)]
    assert!(fs::read_link(&split.path).unwrap().starts_with("../../../blobs"));
    assert_eq!(fs::read(split.path.with_file_name("verse-BF16-00002-of-00002.gguf")).unwrap(), files()[4].1);
    assert!(!repo.join("snapshots").join(COMMIT).join("README.md").exists());
}

#[test]
fn a_repository_of_safetensors() {
    let files = [
        ("config.json", b"{}".to_vec()),
        ("tokenizer.json", noise(7, 6000)),
        ("model-00001-of-00002.safetensors", noise(8, 9000)),
        ("model-00002-of-00002.safetensors", noise(9, 9000)),
        ("model.safetensors.index.json", b"{\"weight_map\": {}}".to_vec()),
        ("consolidated.safetensors", noise(10, 9000)),
        ("chat_template.jinja", b"x".to_vec()),
        ("logo.png", b"x".to_vec()),
        ("original/model.safetensors", noise(11, 9000)),
    ];
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(REPO, &files));
    let got = get(REPO, &options(&hub, dir.path())).unwrap();
    let mut names: Vec<String> =
        fs::read_dir(&got.path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let want: Vec<&str> = vec![
        "chat_template.jinja",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(names, want);
    for (name, bytes) in files.iter().filter(|f| want.contains(&f.0)) {
        assert_eq!(&fs::read(got.path.join(name)).unwrap(), bytes, "{name}");
    }
}

/// Whatever the connection does, the bytes are right in the end, and each comes about once.
#[test]
fn broken_connections() {
    let hub = Hub::start(REPO, &files());
    let right = &files()[1].1;
    let cases = [
        ("cut", Faults { cut: Some(70_000), ..Faults::default() }, 300_000),
        ("busy", Faults { busy: 2, ..Faults::default() }, 300_000),
        ("spoilt once", Faults { spoilt: 1, ..Faults::default() }, 600_000),
    ];
    for (name, faults, received) in cases {
        let dir = tempfile::tempdir().unwrap();
        hub.set(faults);
        let got = get("bard/verse-GGUF:Q4_K_M", &options(&hub, dir.path())).unwrap();
        assert_eq!((&fs::read(&got.path).unwrap(), got.received), (right, received), "{name}");
        let froms: Vec<u64> = hub.seen().iter().filter(|s| s.path.contains("signed")).filter_map(|s| s.from).collect();
        if name == "cut" {
            assert_eq!(froms, [70_000, 140_000, 210_000, 280_000]);
        }
    }
    // A server without ranges begins anew each time, and gets to the end where it may.
    let dir = tempfile::tempdir().unwrap();
    let o = options(&hub, dir.path());
    hub.set(Faults { spoilt: 9, ..Faults::default() });
    let e = get("bard/verse-GGUF:Q4_K_M", &o).unwrap_err();
    assert!(matches!(&e, Error::Format { .. }) && e.to_string().contains("another sha256"), "{e}");
    assert!(blobs(&o.cache).is_empty(), "nothing wrong is left: {:?}", blobs(&o.cache));
    let sha = sha256(right);
    let incomplete = o.cache.join("models--bard--verse-GGUF/blobs").join(format!("{sha}.incomplete"));
    fs::write(&incomplete, &right[..100_000]).unwrap();
    hub.set(Faults { no_ranges: true, ..Faults::default() });
    let got = get("bard/verse-GGUF:Q4_K_M", &o).unwrap();
    assert_eq!((&fs::read(&got.path).unwrap(), got.received), (right, 300_000));
    // What another left, and was none of this file.
    let dir = tempfile::tempdir().unwrap();
    let o = options(&hub, dir.path());
    let blobs = o.cache.join("models--bard--verse-GGUF/blobs");
    for (left, received) in
        [(right[..100_000].to_vec(), 200_000), (noise(77, 100_000), 500_000), (noise(78, 400_000), 300_000)]
    {
        hub.set(Faults::default());
        let _ = fs::remove_dir_all(dir.path().join("models--bard--verse-GGUF"));
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{sha}.incomplete")), left).unwrap();
        let got = get("bard/verse-GGUF:Q4_K_M", &o).unwrap();
        assert_eq!((&fs::read(&got.path).unwrap(), got.received), (right, received));
    }
    // It gives up, says so, and keeps what has come.
    let dir = tempfile::tempdir().unwrap();
    let o = options(&hub, dir.path());
    fs::create_dir_all(dir.path().join("models--bard--verse-GGUF/blobs")).unwrap();
    let incomplete = dir.path().join(format!("models--bard--verse-GGUF/blobs/{sha}.incomplete"));
    fs::write(&incomplete, &right[..100_000]).unwrap();
    hub.set(Faults { wrong_range: true, ..Faults::default() });
    let e = get("bard/verse-GGUF:Q4_K_M", &o).unwrap_err();
    assert!(matches!(&e, Error::Network(why) if why.contains("unexpected range") && why.contains("kept")), "{e}");
    assert_eq!(fs::metadata(&incomplete).unwrap().len(), 100_000);
}

#[test]
fn two_at_once_fetch_it_once() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(REPO, &files()));
    hub.set(Faults { slow: 5, ..Faults::default() });
    let o = options(&hub, dir.path());
    let both: Vec<(Pulled, bool)> = std::thread::scope(|s| {
        let one = || {
            let mut waited = false;
            let got = o.pull("bard/verse-GGUF:Q4_K_M", &mut |p| waited |= matches!(p, PullProgress::Waiting { .. }));
            (got.unwrap(), waited)
        };
        let threads = [s.spawn(one), s.spawn(one)];
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(both.iter().map(|b| b.0.received).sum::<u64>(), 300_000);
    assert_eq!(both.iter().filter(|b| b.1).count(), 1, "one waited for the other");
    // A cancelled one keeps what has come.
    let dir = tempfile::tempdir().unwrap();
    let o = options(&hub, dir.path());
    let e = o.pull("bard/verse-GGUF:Q4_K_M", &mut |p| {
        if matches!(p, PullProgress::Received { bytes, .. } if bytes > 100_000) {
            o.cancel.cancel();
        }
    });
    assert!(matches!(e, Err(Error::Cancelled)));
    o.cancel.reset();
    let rest = get("bard/verse-GGUF:Q4_K_M", &o).unwrap().received;
    assert!(rest > 0 && rest < 200_000, "{rest}");
}

#[test]
fn refusals_say_what_would_help() {
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(REPO, &files()));
    let o = options(&hub, dir.path());
    let says = |name: &str, o: &PullOptions| get(name, o).unwrap_err().to_string();
    let e = says("bard/verse-GGUF:Q2_K", &o);
    for word in ["without Q2_K", "bard/verse-GGUF:Q4_K_M", "bard/verse-GGUF:BF16"] {
        assert!(e.contains(word), "{e}");
    }
    for name in ["verse", "a/b/c", "", "../x", "qwen3:30b", "bard/verse GGUF"] {
        assert!(matches!(get(name, &o), Err(Error::Invalid(_))), "{name}");
    }
    assert!(says("bard/other", &o).contains("no repository bard/other"));
    assert!(matches!(get(REPO, &PullOptions { revision: "../../x".into(), ..o.clone() }), Err(Error::Invalid(_))));
    assert!(matches!(get(REPO, &PullOptions { endpoint: "huggingface".into(), ..o.clone() }), Err(Error::Invalid(_))));
    hub.set(Faults { gated: Some(("right", "GatedRepo")), ..Faults::default() });
    let e = says(REPO, &o);
    assert!(e.contains("accepted its terms") && e.contains("no token was sent"), "{e}");
    let e = says(REPO, &PullOptions { token: Some("wrong".into()), ..o.clone() });
    assert!(e.contains("the token that was sent does not open it") && !e.contains("wrong"), "{e}");
    assert!(get(REPO, &PullOptions { token: Some("right".into()), ..o.clone() }).is_ok());
    // A hub that wants its files elsewhere in the file system.
    let evil = Hub::start(REPO, &[("../../../evil-Q4_K_M.gguf", noise(1, 5000))]);
    let e = says(REPO, &options(&evil, &dir.path().join("a/b/c")));
    assert!(e.contains("no name of a file"), "{e}");
    assert!(!dir.path().join("evil-Q4_K_M.gguf").exists() && blobs(&dir.path().join("a/b/c")).is_empty());
    // Nobody there.
    let gone = PullOptions { endpoint: "http://127.0.0.1:9".into(), ..o };
    gone.cancel.cancel();
    assert!(matches!(get(REPO, &gone), Err(Error::Cancelled)));
}

/// What is left of a repository when one of its models is removed, and then the last.
#[test]
fn removing() {
    let mut all = files();
    // The same bytes under two names.
    all.push(("copy-F16.gguf", all[2].1.clone()));
    let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(REPO, &all));
    let o = options(&hub, dir.path());
    let places = Places { hugging_face: Some(dir.path().to_owned()), ..Places::default() };
    for quant in ["Q4_K_M", "Q8_0", "F16", "BF16"] {
        get(&format!("{REPO}:{quant}"), &o).unwrap();
    }
    let names = || places.list().into_iter().map(|f| f.name).collect::<Vec<_>>();
    assert_eq!(names().len(), 4);
    assert!(places.remove(&format!("{REPO}:Q2_K")).is_err());
    let would = places.removal(&format!("{REPO}:Q8_0")).unwrap();
    assert_eq!((would.1, would.0.len()), (0, 1), "another name has the same bytes");
    assert_eq!(names().len(), 4, "saying is not doing");
    assert_eq!(places.remove(&format!("{REPO}:Q8_0")).unwrap(), would);
    assert_eq!(places.remove(&format!("{REPO}:F16")).unwrap().1, 50_000);
    assert_eq!(places.remove(&format!("{REPO}:BF16")).unwrap().1, 50_000, "both parts");
    assert_eq!((names(), blobs(dir.path())), (vec![format!("{REPO}:Q4_K_M")], vec![sha256(&all[1].1)]));
    let last = places.remove(REPO).unwrap();
    assert_eq!(last.1, 300_000);
    assert!(names().is_empty() && !dir.path().join("models--bard--verse-GGUF").exists());
    assert!(!dir.path().join(".locks/models--bard--verse-GGUF").exists());
}

#[cfg(all(unix, feature = "cli", feature = "demo-model"))]
mod program {
    use super::*;
    use std::process::{Command, Output, Stdio};

    fn moeray(hub: &Hub, cache: &Path, args: &[&str]) -> Command {
        let mut c = Command::new(env!("CARGO_BIN_EXE_moeray"));
        c.args(args).env("HF_ENDPOINT", hub.endpoint()).env("HF_HUB_CACHE", cache).env("HF_TOKEN", "t");
        c.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        c
    }

    fn text(out: &Output) -> (Option<i32>, &str, &str) {
        (out.status.code(), std::str::from_utf8(&out.stdout).unwrap(), std::str::from_utf8(&out.stderr).unwrap())
    }

    /// Killed at two fifths, it goes on there; what came runs by its name, and goes when it is told to.
    #[test]
    fn killed_and_gone_on() {
        let demo = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf")).unwrap();
        let (dir, hub) = (tempfile::tempdir().unwrap(), Hub::start(REPO, &[("verse-Q4_K_M.gguf", demo.clone())]));
        let cache = dir.path().join("hub");
        hub.set(Faults { slow: 4, ..Faults::default() });
        let mut first = moeray(&hub, &cache, &["pull", REPO]).spawn().unwrap();
        let blobs = cache.join("models--bard--verse-GGUF/blobs");
        let incomplete: PathBuf = blobs.join(format!("{}.incomplete", sha256(&demo)));
        let begin = Instant::now();
        while fs::metadata(&incomplete).map_or(0, |m| m.len()) < demo.len() as u64 * 2 / 5 {
            assert!(begin.elapsed() < Duration::from_secs(60) && first.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(2));
        }
        first.kill().unwrap();
        first.wait().unwrap();
        let left = fs::metadata(&incomplete).unwrap().len();
        assert!(left < demo.len() as u64 && !blobs.join(sha256(&demo)).exists());
        hub.set(Faults::default());
        hub.seen();
        let out = moeray(&hub, &cache, &["pull", REPO]).output().unwrap();
        let (code, path, err) = text(&out);
        assert_eq!(code, Some(0), "{err}");
        let seen = hub.seen();
        assert_eq!(seen.last().unwrap().from, Some(left), "{seen:?}");
        assert_eq!(fs::read(path.trim()).unwrap(), demo);
        assert!(!incomplete.exists() && err.contains("moeray run bard/verse-GGUF"), "{err}");
        let run = ["run", REPO, "-p", "ROMEO:", "-n", "2", "--backend", "cpu", "-q"];
        let out = moeray(&hub, &cache, &run).output().unwrap();
        assert_eq!(text(&out).0, Some(0), "{}", text(&out).2);
        let out = moeray(&hub, &cache, &["rm", REPO, "--dry-run"]).output().unwrap();
        assert!(text(&out).1.contains("models--bard--verse-GGUF") && cache.join("models--bard--verse-GGUF").exists());
        let out = moeray(&hub, &cache, &["rm", REPO]).output().unwrap();
        assert!(text(&out).0 == Some(0) && !cache.join("models--bard--verse-GGUF").exists(), "{}", text(&out).2);
        let out = moeray(&hub, &cache, &["rm", REPO]).output().unwrap();
        assert!(text(&out).0 == Some(1) && text(&out).2.contains("moeray list"), "{}", text(&out).2);
    }
}
