//! What was measured on devices: which tiles ([`Tiles`]) multiply many rows fastest. A value that the host gives and keeps; the
//! library neither knows nor chooses where its text lies.
//!
//! Measured is a chain of products of a quantised matrix with many rows, once for each way that the device can run, the base
//! first. A way whose numbers differ from the base's more than rounding explains is not taken, however fast: a driver's fault
//! costs speed, not answers.

use super::{RunOptions, device::lock, gpu::Gpu};
use crate::{
    backend::{
        Program,
        runner::{Row, RunnerOptions, Step},
    },
    error::{Error, Result},
    file::{Bytes, Tensor},
    graph::Builder,
    ir::{Linear, Op},
    kernels::{Reduction, Tiles, tiles},
    quant::{self, DType, KvType},
};
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Time that the repetitions of one way may take.
const EACH: Duration = Duration::from_millis(100);
/// Products in a row.
const CHAIN: usize = 8;
/// Mean squared difference from the base, relative, beyond which a way computes something else: eight roundings of
/// activations to 8 bits make some 3e-4.
const MOST_DIFFERENCE: f64 = 1e-2;
/// Devices that are remembered.
const MOST_DEVICES: usize = 16;

/// What was found on a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Device, system and driver.
    pub device: String,
    /// The fastest.
    pub tiles: Tiles,
    /// Seconds of each way that gave right numbers.
    pub seconds: Vec<(Tiles, f64)>,
}

/// Measurements of earlier runs and of this one. Clones share it. [`Tuning::default`] measures nothing: devices take what
/// suits their vendor's.
#[derive(Clone, Debug, Default)]
pub struct Tuning(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    measures: bool,
    known: Vec<Measured>,
}

impl Tuning {
    /// With the text of earlier runs (none: empty); a device that it does not know is measured when it is opened, which takes
    /// a second at most. Lines that cannot be read are ignored: that device is measured anew.
    pub fn from_text(text: &str) -> Self {
        let known = text.lines().filter_map(parse).collect();
        Tuning(Arc::new(Mutex::new(Inner { measures: true, known })))
    }

    /// The text for later runs.
    pub fn text(&self) -> String {
        lock(&self.0).known.iter().map(line).collect()
    }

    /// What is known.
    #[cfg(test)]
    fn known(&self) -> Vec<Measured> {
        lock(&self.0).known.clone()
    }

    /// The tiles for a device: known, or found by `measure`. `None`: nothing is measured, or it failed.
    pub(super) fn tiles(&self, device: &str, measure: impl FnOnce() -> Result<Measured>) -> Option<Tiles> {
        let mut inner = lock(&self.0);
        if !inner.measures {
            return None;
        }
        if let Some(m) = inner.known.iter().find(|m| m.device == device) {
            return Some(m.tiles);
        }
        match measure() {
            Ok(m) => {
                tracing::info!("measured {device}: {} tiles are fastest, of {:?}", m.tiles.row().name, m.seconds);
                let tiles = m.tiles;
                inner.known.push(Measured { device: device.to_string(), ..m });
                let more = inner.known.len().saturating_sub(MOST_DEVICES);
                inner.known.drain(..more);
                Some(tiles)
            }
            Err(e) => {
                tracing::info!("{device} could not be measured: {e}");
                None
            }
        }
    }
}

/// `device <tab> tiles <tab> name=seconds name=seconds`
fn line(m: &Measured) -> String {
    let times: Vec<String> = m.seconds.iter().map(|(t, s)| format!("{}={s:e}", t.row().name)).collect();
    format!("{}\t{}\t{}\n", m.device, m.tiles.row().name, times.join(" "))
}

fn parse(line: &str) -> Option<Measured> {
    let mut parts = line.split('\t');
    let (device, tiles, times) = (parts.next()?, Tiles::named(parts.next()?)?, parts.next()?);
    let time = |s: &str| {
        let (name, seconds) = s.split_once('=')?;
        Some((Tiles::named(name)?, seconds.parse().ok()?))
    };
    let seconds = times.split_whitespace().map(time).collect::<Option<Vec<_>>>()?;
    (parts.next().is_none() && !device.is_empty()).then(|| Measured { device: device.to_string(), tiles, seconds })
}

impl Gpu {
    /// Measures products of `tokens` rows with matrices of `hidden` by `hidden` weights, in every way that this device can run.
    /// `hidden` is a multiple of 256. The base is always measured; no further way is begun once `budget` is spent.
    ///
    /// # Errors
    /// [`Error::Device`] where the device fails, [`Error::Invalid`] for sizes that cannot be.
    #[doc(hidden)]
    pub fn measure(&self, hidden: usize, tokens: usize, budget: Duration) -> Result<Measured> {
        if hidden == 0 || !hidden.is_multiple_of(256) || tokens < 2 {
            return Err(Error::Invalid(format!("measuring {tokens} rows of {hidden} columns")));
        }
        let program = program(hidden)?;
        let x: Vec<f32> = (0..tokens * hidden).map(|i| noise(i as u64)).collect();
        let (start, mut base, mut seconds) = (Instant::now(), vec![], vec![]);
        for row in tiles::ROWS.iter().filter(|r| (r.runs)(&self.caps().features)) {
            if !seconds.is_empty() && start.elapsed() >= budget {
                break;
            }
            let found = match self.time_of(&program, row.tiles, &x, tokens) {
                Ok(found) => found,
                // What the base cannot do is no matter of tiles.
                Err(e) if row.tiles == Tiles::F32 => return Err(e),
                Err(e) => {
                    tracing::info!("{} tiles do not run here: {e}", row.name);
                    continue;
                }
            };
            if row.tiles == Tiles::F32 {
                base.clone_from(&found.1);
            }
            let difference = difference(&found.1, &base);
            if difference < MOST_DIFFERENCE {
                seconds.push((row.tiles, found.0.as_secs_f64()));
            } else {
                tracing::warn!("{} tiles give wrong numbers here ({difference:e}): not used", row.name);
            }
        }
        let fastest = seconds.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map_or(Tiles::F32, |f| f.0);
        Ok(Measured { device: self.name().to_string(), tiles: fastest, seconds })
    }

    /// The shortest time of a step, and its result.
    fn time_of(&self, program: &Program, tiles: Tiles, x: &[f32], tokens: usize) -> Result<(Duration, Vec<f32>)> {
        let run = RunOptions { reduction: Some(Reduction::Workgroup), tiles: Some(tiles), ..RunOptions::default() };
        let loaded = self.load_with(program.clone(), run, &mut |_| Ok(()))?;
        let options = RunnerOptions { ctx: tokens, sequences: 1, ubatch: tokens, kv: KvType::F32 };
        let mut runner = loaded.runner(options)?;
        let row = |i: usize| Row { logits: i + 1 == tokens, ..Row::fed(0, 0, i) };
        let (rows, inputs): (Vec<Row>, _) = ((0..tokens).map(row).collect(), [("x", x)]);
        let step = Step { rows: &rows, inputs: &inputs, ..Step::default() };
        runner.step(&step)?;
        let (start, mut best) = (Instant::now(), Duration::MAX);
        for _ in 0..5 {
            let begin = Instant::now();
            runner.step(&step)?;
            best = best.min(begin.elapsed());
            if start.elapsed() > EACH {
                break;
            }
        }
        Ok((best, runner.results().outputs.first().map_or_else(Vec::new, |o| o.f32.clone())))
    }
}

/// Mean squared difference over mean square; infinite where either is empty or not finite.
fn difference(a: &[f32], b: &[f32]) -> f64 {
    let square = |v: f64| v * v;
    let apart: f64 = a.iter().zip(b).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    let size: f64 = b.iter().map(|b| square(f64::from(*b))).sum();
    let ratio = apart / size;
    if a.len() == b.len() && ratio.is_finite() { ratio } else { f64::INFINITY }
}

/// A number in -1 .. 1 for each i: the low bits of a linear congruential generator's (Knuth's MMIX) upper half.
fn noise(i: u64) -> f32 {
    let bits = i.wrapping_add(1).wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let bits = (bits ^ (bits >> 29)).wrapping_mul(6_364_136_223_846_793_005) >> 40;
    bits as f32 / (1u32 << 23) as f32 - 1.0
}

/// A chain of products with one Q4_K matrix, whose last row comes back.
fn program(hidden: usize) -> Result<Program> {
    // 16 distinct rows: quantising is slow, and no kernel profits from rows that repeat.
    let scale = (3.0 / hidden as f32).sqrt();
    let rows: Vec<f32> = (0..16 * hidden).map(|i| scale * noise((i as u64) << 20)).collect();
    let mut few = vec![];
    quant::quantize(DType::Q4K, &rows, &mut few)?;
    let bytes = few.repeat(hidden / 16);
    let tensor = Tensor::new(DType::Q4K, vec![hidden, hidden], vec![Bytes::from_vec(bytes)])?;
    let mut b = Builder::new();
    let weight = b.weight("measured", &[hidden, hidden]);
    let mut x = b.one(Op::Input { name: "x".into(), cols: hidden }, &[])?;
    for _ in 0..CHAIN {
        x = b.one(Op::Linear(Linear { weight, bias: None }), &[x])?;
    }
    let y = b.one(Op::TakeOutputs, &[x])?;
    b.output("y", y);
    Program::new(b.finish(), vec![tensor])
}

#[cfg(test)]
mod tests {
    use super::{Measured, Tuning, difference};
    use crate::{Error, kernels::Tiles};

    #[test]
    fn text_comes_back_and_what_is_unreadable_is_measured_anew() {
        let m = |device: &str, tiles| Measured {
            device: device.into(),
            tiles,
            seconds: vec![(Tiles::F32, 1.5e-3), (tiles, 2.5e-4)],
        };
        let tuning = Tuning::from_text("");
        assert_eq!(tuning.tiles("a", || Ok(m("other name", Tiles::Int8))), Some(Tiles::Int8));
        assert_eq!(tuning.tiles("b", || Ok(m("b", Tiles::F16))), Some(Tiles::F16));
        let never = || -> crate::Result<Measured> { panic!("known") };
        let again = Tuning::from_text(&tuning.text());
        assert_eq!(again.known(), vec![m("a", Tiles::Int8), m("b", Tiles::F16)]);
        assert_eq!(again.tiles("a", never), Some(Tiles::Int8));
        let text = tuning.text().replace("int8\t", "int7\t");
        let damaged = Tuning::from_text(&text);
        assert_eq!(damaged.known(), vec![m("b", Tiles::F16)]);
        assert_eq!(damaged.tiles("a", || Err(Error::Device("gone".into()))), None);
        // Who asked for no measurement gets none.
        assert_eq!(Tuning::default().tiles("a", never), None);
        let many: String = (0..40).map(|i| format!("{i}\tf32\tf32=1e-3\n")).collect();
        let full = Tuning::from_text(&many);
        full.tiles("new", || Ok(m("new", Tiles::F32)));
        assert_eq!(full.known().len(), super::MOST_DEVICES);
        assert_eq!(full.known().last().map(|k| k.device.clone()), Some("new".into()));
    }

    #[test]
    fn wrong_numbers_show() {
        assert!(difference(&[1.0, 2.0], &[1.0, 2.001]) < 1e-5);
        for wrong in [&[2.0, 1.0][..], &[1.0], &[f32::NAN, 2.0], &[f32::INFINITY, 2.0], &[]] {
            assert!(difference(wrong, &[1.0, 2.0]) > super::MOST_DIFFERENCE, "{wrong:?}");
        }
    }
}
