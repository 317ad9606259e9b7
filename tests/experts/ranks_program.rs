//! Processes that share a model's experts, as a person starts them. With the feature `mpi` and an `mpirun` they are started in earnest;
//! `cargo test --features mpi -- ranks_program`.

#![cfg(all(feature = "cli", feature = "demo-model"))]

use crate::cli::command;
use std::process::Output;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A process that was started as one of several, and no MPI to speak with the others, or another number than was asked for.
#[test]
fn processes_without_each_other() {
    let run = |vars: &[(&str, &str)], more: &[&str]| -> Output {
        let args = [&["run", "--backend", "cpu", "-q", "-n", "1", "-p", "x"], more].concat();
        command(&args).envs(vars.iter().copied()).output().unwrap()
    };
    let alone = run(&[], &["--ranks", "4"]);
    let said = text(&alone.stderr);
    assert_eq!(alone.status.code(), Some(1), "{said}");
    assert!(said.contains("--ranks 4: this process was started alone") && said.contains("mpirun -n 4"), "{said}");
    assert_eq!(run(&[], &["--ranks", "1"]).status.code(), Some(0));
    assert!(text(&run(&[], &["--ranks", "0"]).stderr).contains("--ranks"));
    let of_four = |rank: &'static str| [("OMPI_COMM_WORLD_RANK", rank), ("OMPI_COMM_WORLD_SIZE", "4")];
    let other = run(&of_four("0"), &["--ranks", "3"]);
    let said = text(&other.stderr);
    assert!(other.status.code() == Some(1) && said.contains("--ranks 3: 4 processes were started"), "{said}");
    // The others say nothing of what all of them know.
    let other = run(&of_four("2"), &["--ranks", "3"]);
    assert!(other.status.code() == Some(1) && other.stderr.is_empty(), "{}", text(&other.stderr));
    // Processes that were started together by accident are not four texts.
    if cfg!(not(feature = "mpi")) {
        for vars in [of_four("0"), [("PMI_RANK", "0"), ("PMI_SIZE", "4")]] {
            let one = run(&vars, &[]);
            let said = text(&one.stderr);
            assert!(one.status.code() == Some(1) && one.stdout.is_empty(), "{said}");
            assert!(said.contains("built without MPI") && said.contains("--features mpi"), "{said}");
        }
    }
}

#[cfg(feature = "mpi")]
mod with_mpi {
    use super::text;
    use crate::support::{gpu_number, skip};
    use serde_json::Value as Json;
    use std::{
        io::Read,
        process::{Command, Output, Stdio},
        time::{Duration, Instant},
    };

    const BIN: &str = env!("CARGO_BIN_EXE_moeray");

    /// `mpirun` with these arguments, in order; `None` where there is none.
    fn mpirun(before: &[&str], args: &[&str]) -> Option<Command> {
        let found = Command::new("mpirun").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !found.is_ok_and(|s| s.success()) {
            skip("no mpirun");
            return None;
        }
        let (first, rest) = before.split_first().map_or(("mpirun", &[][..]), |(f, rest)| (*f, rest));
        let mut c = Command::new(first);
        c.args(rest);
        if !before.is_empty() {
            c.arg("mpirun");
        }
        c.arg("--oversubscribe").args(args);
        // As root, which machines that test often are.
        c.envs([("OMPI_ALLOW_RUN_AS_ROOT", "1"), ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"), ("LP_NUM_THREADS", "1")]);
        c.env_remove("RUST_LOG").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Some(c)
    }

    const RUN: [&str; 10] = ["run", "--temp", "0", "-q", "--json", "-n", "16", "--ignore-eos", "-p", "ROMEO:"];

    fn as_json(o: &Output) -> Json {
        assert!(o.status.success(), "{}{}", text(&o.stdout), text(&o.stderr));
        let out = text(&o.stdout);
        assert_eq!(out.lines().count(), 1, "one rank prints: {out}");
        serde_json::from_str(&out).unwrap()
    }

    fn places() -> Vec<Vec<String>> {
        let words = |list: &[&str]| list.iter().map(|w| w.to_string()).collect();
        let mut all: Vec<Vec<String>> = vec![words(&["--backend", "cpu", "--threads", "1"])];
        all.extend(gpu_number().map(|n| words(&["--device", &n])));
        all
    }

    /// The same greedy tokens as one process for 1 to 4 ranks, on the processor and on a GPU; the demo model's 8 experts do not divide by
    /// 3. Of each layer one message a token. With only a loopback interface, too.
    #[test]
    fn the_same_tokens() {
        for place in places() {
            let place: Vec<&str> = place.iter().map(String::as_str).collect();
            let alone = Command::new(BIN).args(RUN).args(&place).output().unwrap();
            let alone = as_json(&alone);
            assert!(alone["ranks"].is_null());
            for n in ["1", "2", "3", "4"] {
                let args = [&["-n", n, BIN], &RUN[..], &place, &["--ranks", n]].concat();
                let Some(mut c) = mpirun(&[], &args) else { return };
                let shared = as_json(&c.output().unwrap());
                assert_eq!(shared["ids"], alone["ids"], "{n} ranks with {place:?}");
                if n == "1" {
                    continue;
                }
                assert!(shared["backend"].as_str().unwrap().contains(&format!("experts on {n} ranks (MPI)")));
                // The prompt and 15 tokens through four layers; what is agreed on before takes a few.
                let gathers = shared["ranks"]["all_gathers"].as_u64().unwrap();
                assert!((64..64 + 12).contains(&gathers), "{shared}");
                assert_eq!(shared["ranks"]["all_to_alls"].as_u64(), Some(0));
            }
        }
        let args = [&["-n", "2", BIN], &RUN[..], &["--backend", "cpu"]].concat();
        let inside = ["unshare", "-rn", "sh", "-c", "ip link set lo up; exec \"$@\"", "sh"];
        let loopback = Command::new("unshare").args(["-rn", "ip", "link", "set", "lo", "up"]).status();
        if !loopback.is_ok_and(|s| s.success()) {
            return skip("no network namespaces");
        }
        let Some(mut c) = mpirun(&inside, &args) else { return };
        as_json(&c.output().unwrap());
    }

    /// A prompt of more than 64 tokens goes by all-to-all, and comes to the same.
    #[test]
    fn long_prompts() {
        let prompt = "To be, or not to be, that is the question: Whether 'tis nobler in the mind to suffer ".repeat(8);
        let run = ["run", "--temp", "0", "-q", "--json", "-n", "4", "--backend", "cpu", "-p", &prompt];
        let alone = as_json(&Command::new(BIN).args(run).output().unwrap());
        assert!(alone["prompt_tokens"].as_u64().unwrap() > 128);
        let Some(mut c) = mpirun(&[], &[&["-n", "3", BIN], &run[..]].concat()) else { return };
        let shared = as_json(&c.output().unwrap());
        assert_eq!(shared["ids"], alone["ids"]);
        assert!(shared["ranks"]["all_to_alls"].as_u64().unwrap() >= 4, "{shared}");
    }

    /// Ranks with different files or options, one without its file, a wrong number: refused, said once, and nothing hangs.
    #[test]
    fn ranks_that_do_not_fit() {
        let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/bard-q4_k_m.gguf");
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other.gguf");
        let mut bytes = std::fs::read(demo).unwrap();
        // The last weights of the file, some of which are compared.
        let at = bytes.len() - (64 << 10);
        bytes[at..].iter_mut().step_by(16).for_each(|b| *b ^= 1);
        std::fs::write(&other, bytes).unwrap();
        let other = other.to_str().unwrap();
        let refused = |first: &[&str], second: &[&str], words: &[&str]| {
            let run = [BIN, "run", "-q", "-n", "4", "--backend", "cpu", "-p", "x"];
            let args = [&["-n", "1"], &run[..], first, &[":", "-n", "1"], &run[..], second].concat();
            let Some(mut c) = mpirun(&[], &args) else { return };
            let clock = Instant::now();
            let o = c.output().unwrap();
            let said = text(&o.stderr);
            assert!(!o.status.success() && o.stdout.is_empty(), "{said}");
            assert!(words.iter().all(|w| said.contains(w)), "{first:?} {second:?}: {said}");
            assert_eq!(said.matches("error: ").count(), 1, "said once: {said}");
            assert!(clock.elapsed() < Duration::from_secs(20));
        };
        refused(&[demo], &[other], &["another model than rank 0"]);
        refused(&[demo], &[demo, "--simd", "scalar"], &["runs otherwise", "scalar"]);
        refused(&[demo], &["missing.gguf"], &["rank 1", "missing.gguf"]);
        refused(&[demo, "--ranks", "3"], &[demo, "--ranks", "3"], &["--ranks 3: 2 processes"]);
    }

    /// The process of a rank, found by its environment.
    fn pid_of_rank(mark: &str, rank: &str) -> Option<String> {
        let env = format!("OMPI_COMM_WORLD_RANK={rank}");
        let has = |pid: &str| {
            let read = |what: &str| std::fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let all = [read("environ"), read("cmdline")].map(|b| String::from_utf8_lossy(&b).into_owned());
            all[0].split('\0').any(|v| v == env) && all[1].split('\0').any(|v| v == mark)
        };
        let all = std::fs::read_dir("/proc").ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
        all.filter(|n| n.bytes().all(|b| b.is_ascii_digit())).find(|pid| has(pid))
    }

    /// A rank that is killed ends all within 5 seconds with an error: where mpirun ends the others, and where it lets them be.
    #[test]
    fn a_killed_rank_ends_all() {
        if !cfg!(target_os = "linux") {
            return skip("no /proc");
        }
        for (how, words) in [
            (&["--enable-recovery"][..], "rank 2 has given no sign of life"),
            // Here the launcher says it.
            (&[], "rank 2 with PID"),
        ] {
            let mark = format!("--seed={}", 1000 + how.len());
            let run = ["run", "--temp", "0", "-q", "-n", "100000", "--ctx", "100100", "--ignore-eos", "-p", "ROMEO:"];
            let place = ["--backend", "cpu", "--threads", "1", &mark];
            let args = [how, &["-n", "3", BIN], &run[..], &place].concat();
            let Some(mut c) = mpirun(&[], &args) else { return };
            let mut child = c.spawn().unwrap();
            let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
            // They are at work once text comes.
            let mut first = [0; 16];
            out.read_exact(&mut first).unwrap();
            let reader = std::thread::spawn(move || _ = std::io::copy(&mut out, &mut std::io::sink()));
            let pid = pid_of_rank(&mark, "2").expect("a process of rank 2");
            assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
            let clock = Instant::now();
            let status = child.wait().unwrap();
            let took = clock.elapsed();
            reader.join().unwrap();
            let mut said = String::new();
            err.read_to_string(&mut said).unwrap();
            // Where mpirun lets the others be, its own status says nothing of them.
            assert!(!how.is_empty() || !status.success(), "{said}");
            assert!(took < Duration::from_secs(5), "{took:?}: {said}");
            assert!(said.contains(words), "{how:?}, after {took:?}: {said}");
        }
    }
}
