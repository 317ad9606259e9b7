//! A fuzzer of everything that is read: GGUF, `config.json`, headers of safetensors, `tokenizer.json`, chat templates.
//!
//! It takes valid small inputs and changes values as well as bytes: a random key gets an absurd number or another type, a tensor
//! another shape or name, a text another piece. Then it does what a program would do: open, build, load, run a token; encode and
//! decode; render. What must hold: no panic and no abort, no more memory than the input justifies, no long wait. Errors are fine.
//!
//! An execution follows from its seed alone. `tests/run --fuzz SECONDS` runs it for so long, from `MOERAY_FUZZ_SEED` on or from any
//! seed; the ordinary run does a fixed number. The seed of the execution under way is in the file that is named at the
//! beginning: that is the one to look at where the process itself ends (`MOERAY_FUZZ_ONE=SEED` runs it alone).

mod gguf;
mod json;
mod template;
mod tokenizer;
mod values;

use crate::{alloc, support::rng::Rng};
use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};

/// Executions of the ordinary run.
const USUAL: u64 = 20_000;
/// The longest that the ordinary run takes.
const USUAL_TIME: Duration = Duration::from_secs(60);
/// The longest that an execution may take: a second is promised, on a machine that has it for itself and without this build's
/// checks.
const LONGEST: Duration = Duration::from_secs(10);
/// Memory that an input may take beside some multiple of its size, in bytes: a graph, a runner, tables of the tokenizers.
const BESIDE: usize = 64 << 20;
/// How many times its size an input may take in memory: weights as f32, and once more in the order of the backend.
const TIMES: usize = 32;

/// What is fuzzed: a name, how often of the sum of all, and an execution, which gives the size of its input in bytes.
struct Kind {
    name: &'static str,
    share: usize,
    run: fn(&mut Rng) -> usize,
}

const KINDS: &[Kind] = &[
    Kind { name: "GGUF, values", share: 3, run: gguf::values },
    Kind { name: "GGUF, tensors", share: 2, run: gguf::tensors },
    Kind { name: "GGUF, bytes", share: 3, run: gguf::bytes },
    Kind { name: "config.json", share: 4, run: json::config },
    Kind { name: "files beside a config", share: 1, run: json::beside },
    Kind { name: "safetensors, header", share: 2, run: json::header },
    Kind { name: "tokenizer of GGUF", share: 3, run: tokenizer::gguf },
    Kind { name: "tokenizer.json", share: 4, run: tokenizer::json },
    Kind { name: "chat template", share: 10, run: template::run },
];

/// The kind of an execution.
fn kind(rng: &mut Rng) -> &'static Kind {
    let mut at = rng.below(KINDS.iter().map(|k| k.share).sum());
    KINDS.iter().find(|k| at.checked_sub(k.share).map(|rest| at = rest).is_none()).unwrap()
}

/// Runs one execution and says what did not hold.
fn execute(seed: u64) -> Result<&'static str, String> {
    let mut rng = Rng(seed);
    let kind = kind(&mut rng);
    let begin = Instant::now();
    let (result, peak) = alloc::peak(|| catch_unwind(AssertUnwindSafe(|| (kind.run)(&mut rng))));
    let wrong = |what: String| Err(format!("{}, MOERAY_FUZZ_ONE={seed}: {what}", kind.name));
    let Ok(size) = result else { return wrong("panicked".into()) };
    if peak > BESIDE + TIMES * size {
        return wrong(format!("{peak} bytes of memory for an input of {size}"));
    }
    let took = begin.elapsed();
    if took > LONGEST {
        return wrong(format!("{took:.1?}"));
    }
    Ok(kind.name)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is {text}")))
}

/// Executions for so long, or so many; what did not hold, at most ten of it.
fn run(first: u64, most: u64, time: Duration) -> (Vec<String>, u64) {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", std::process::id()));
    let mut last = File::create(&path).unwrap();
    println!("fuzzing from seed {first}; the one under way is in {}", path.display());
    let (begin, mut done, mut wrong, mut counts) = (Instant::now(), 0, vec![], std::collections::BTreeMap::new());
    while done < most && begin.elapsed() < time && wrong.len() < 10 {
        let seed = first.wrapping_add(done);
        last.seek(SeekFrom::Start(0)).unwrap();
        writeln!(last, "{seed:20}").unwrap();
        match execute(seed) {
            Ok(name) => *counts.entry(name).or_insert(0u64) += 1,
            Err(what) => wrong.push(what),
        }
        done += 1;
    }
    println!("{done} executions, {:.0} a second: {counts:?}", done as f64 / begin.elapsed().as_secs_f64());
    std::fs::remove_file(&path).unwrap();
    (wrong, done)
}

#[test]
fn what_is_read_is_survived() {
    if let Some(seed) = number("MOERAY_FUZZ_ONE") {
        return execute(seed).map(|name| println!("{name}: holds")).unwrap();
    }
    let seconds = number("MOERAY_FUZZ_SECONDS");
    let any = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
    let seed = number("MOERAY_FUZZ_SEED").unwrap_or_else(|| seconds.map_or(1, |_| any()));
    let (most, time) = seconds.map_or((USUAL, USUAL_TIME), |s| (u64::MAX, Duration::from_secs(s)));
    let (wrong, done) = run(seed, most, time);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(done > 100, "{done} executions");
}

/// The limits are those of the executions: what panics, takes much memory or much time is seen.
#[test]
fn alarm_a_fault_is_seen() {
    let size = |work: &dyn Fn()| alloc::peak(|| catch_unwind(AssertUnwindSafe(work)));
    assert!(size(&|| panic!("on purpose")).0.is_err());
    assert!(size(&|| drop(vec![0u8; BESIDE + 1])).1 > BESIDE);
    // Every kind has its turn.
    let mut seen: Vec<&str> = (0..400).map(|seed| kind(&mut Rng(seed)).name).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), KINDS.len());
}
