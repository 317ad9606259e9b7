//! A training kernel as text: what it reads and writes, how many invocations it has, and what one of them does.
//!
//! Two forms: one invocation for each result (or row), which loops in a fixed order, and tiles of matrix products. Neither adds
//! floats atomically or in an order that depends on the schedule, so results are the same bits in every run. Neither uses
//! subgroups, so that there is one text for all devices.
//!
//! Sizes and factors are no part of the text: it reads them as `p[i]` from a uniform buffer, so that a model's layers, and
//! micro-batches of any number of rows, share a few compiled kernels.

use super::{text::parameter, tile::Tile};
use crate::{
    error::{Error, Result},
    ir::{ValueId, WeightId},
    kernels,
    quant::DType,
};
use std::fmt::Write as _;

/// A buffer of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Buffer {
    /// A value of the graph.
    Value(ValueId),
    /// A segment of a weight, in f32 or packed in the weight's format.
    Weight(WeightId, usize),
    /// The same of a weight's gradient.
    Gradient(WeightId, usize),
    /// Scratch of the lowering, by number.
    Scratch(usize),
    /// Numbers made when the rows were known, by number.
    Table(usize),
}

/// How the invocations lie.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// One for each of so many results; `i` is its number.
    Each(usize),
    /// One for each of so many rows, in workgroups of one of so many heads.
    Blocks {
        /// Rows.
        rows: usize,
        /// Heads.
        heads: usize,
        /// Rows of a workgroup.
        lanes: usize,
    },
    /// Matrix products.
    Tiles {
        /// Most rows of a product's result.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// Products: `e` is a product's number.
        batch: usize,
    },
}

/// What an operand's buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// f32.
    Numbers,
    /// u32.
    Ids,
    /// A segment of a format, which the text calls `W_data`: a kernel has at most one.
    Packed(DType),
}

/// An operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// Which buffer.
    pub buffer: Buffer,
    /// What it holds.
    pub kind: Kind,
}

/// What a kernel does, in the units of [`crate::backend::wgpu::RunOptions::max_work`]: a product counts as half a byte, as a weight of
/// four bits that meets a token.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Whatever the texts of a micro-batch are.
    pub always: f64,
    /// For each row of the longest text.
    pub text_row: f64,
}

impl Work {
    /// Of so many products.
    pub fn of(products: f64) -> Work {
        Work { always: products / 2.0, text_row: 0.0 }
    }

    /// Where the longest text has so many rows.
    pub fn at(&self, longest: usize) -> f64 {
        self.always + self.text_row * longest as f64
    }

    fn part(&self, part: f64) -> Work {
        Work { always: self.always * part, text_row: self.text_row * part }
    }
}

/// What invocations do.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// Statements of invocation `i`.
    Each(String),
    /// Statements of invocation `l.x` of workgroup `w.x` of head `w.y`, of workgroups of so many.
    Block(String, usize),
    /// The parts of a matrix product.
    Tile(Box<Tile>),
}

/// A kernel: the operands `a`, `b`, `c`, … are read, `y`, `z` and `u` are written.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// The op's name, for messages.
    pub name: &'static str,
    /// Read.
    pub reads: Vec<Operand>,
    /// Written.
    pub writes: Vec<Operand>,
    /// The invocations.
    pub shape: Shape,
    /// The numbers that the text reads as `p`.
    pub numbers: Vec<u32>,
    /// How much is done.
    pub work: Work,
    /// What is done.
    pub body: Body,
}

/// Names of what is read: with what is written at most 8, as many storage buffers as every device gives a stage.
const READ: [&str; 7] = ["a", "b", "c", "d", "f", "h", "q"];
const WRITTEN: [&str; 3] = ["y", "z", "u"];
/// Invocations of a workgroup where each makes a result.
const GROUP: usize = 64;
/// Workgroups of a dimension of a dispatch.
const MOST_GROUPS: usize = 65_535;
/// Numbers that a kernel reads at most.
pub const MOST_NUMBERS: usize = 32;
/// The first numbers of every kernel: the number of its last invocation plus 1, and the first invocation or workgroup of a dispatch
/// that is a part of it.
pub const RESERVED: usize = 2;

impl Kernel {
    /// The text of the kernel.
    pub fn text(&self, flushes_halves: bool) -> String {
        let functions: String = kernels::TRAINING.iter().map(|f| f.text).collect();
        let mut t = format!(
            "{functions}@group(0) @binding(0) var<uniform> p: array<vec4<u32>, {}>;
@group(0) @binding(1) var<uniform> draw: vec4<u32>;\n",
            MOST_NUMBERS / 4
        );
        let named = self.reads.iter().zip(READ).map(|(o, n)| (o, n, "read"));
        let named = named.chain(self.writes.iter().zip(WRITTEN).map(|(o, n)| (o, n, "read_write")));
        for (i, (o, name, access)) in named.enumerate() {
            let (name, kind) = match o.kind {
                Kind::Numbers => (name, "f32"),
                Kind::Ids => (name, "u32"),
                Kind::Packed(dtype) => {
                    t.push_str(&kernels::dequantizer(dtype, flushes_halves));
                    ("W_data", "vec4<u32>")
                }
            };
            // Writing to text cannot fail.
            _ = writeln!(t, "@group(0) @binding({}) var<storage, {access}> {name}: array<{kind}>;", i + 2);
        }
        match &self.body {
            Body::Each(body) => {
                let (count, first, row) = (parameter(0), parameter(1), MOST_GROUPS * GROUP);
                _ = write!(
                    t,
                    "@compute @workgroup_size({GROUP})\nfn main(@builtin(global_invocation_id) invocation: vec3<u32>) {{
    let i = {first} + invocation.y * {row}u + invocation.x;
    if (i >= {count}) {{ return; }}
    {body}\n}}\n"
                );
            }
            Body::Block(body, lanes) => {
                _ = write!(
                    t,
                    "@compute @workgroup_size({lanes})
fn main(@builtin(workgroup_id) w: vec3<u32>, @builtin(local_invocation_id) l: vec3<u32>) {{
    {body}\n}}\n"
                );
            }
            Body::Tile(tile) => t.push_str(&tile.text()),
        }
        t
    }

    /// Lets it write its one result plus another value of the same shape to `to`.
    ///
    /// # Errors
    /// [`Error::Graph`] for a kernel that does not make each result in one place.
    pub fn add(&mut self, other: Operand, to: Operand) -> Result<()> {
        self.reads.push(other);
        self.writes = vec![to];
        let name = READ[self.reads.len() - 1];
        match &mut self.body {
            Body::Each(body) => {
                // Writing to text cannot fail.
                _ = write!(body, "\n    y[i] += {name}[i];");
            }
            Body::Block(..) => {
                return Err(Error::Graph(format!("the kernel of {} cannot add to its result", self.name)));
            }
            // The first part of the product adds the value, this one adds to that.
            Body::Tile(tile) if tile.adds => self.reads.truncate(self.reads.len() - 1),
            Body::Tile(tile) => tile.value = format!("{} + {name}[at]", tile.value),
        }
        Ok(())
    }

    /// Parts of at most so much work each, wherever a text of `rows` rows is the longest; as far as it can be divided.
    pub fn parts(self, most: f64, rows: usize) -> Vec<Kernel> {
        let parts = (self.work.at(rows) / most).ceil();
        let (all, unit) = match self.shape {
            Shape::Each(count) => (count, GROUP),
            Shape::Blocks { rows, lanes, .. } => (rows, lanes),
            Shape::Tiles { cols, .. } => (cols, self.sides()[1]),
        };
        let units = all.div_ceil(unit);
        if parts <= 1.0 || units <= 1 {
            return vec![self];
        }
        let step = (units as f64 / parts).floor().max(1.0) as usize * unit;
        let firsts = (0..all).step_by(step);
        firsts.map(|first| self.part(first, step.min(all - first), unit)).collect()
    }

    /// The part of `count` invocations, rows or columns from `first` on, in workgroups of `unit`.
    fn part(&self, first: usize, count: usize, unit: usize) -> Kernel {
        let mut part = self.clone();
        let all = match &mut part.shape {
            Shape::Each(n) => {
                part.numbers[0] = u32::try_from(first + count).unwrap_or(u32::MAX);
                std::mem::replace(n, count)
            }
            Shape::Blocks { rows: n, .. } | Shape::Tiles { cols: n, .. } => std::mem::replace(n, count),
        };
        let first = if matches!(part.shape, Shape::Each(_)) { first } else { first / unit };
        part.numbers[1] = u32::try_from(first).unwrap_or(u32::MAX);
        part.work = self.work.part(count as f64 / all as f64);
        part
    }

    /// Rows and columns of a workgroup's tile.
    fn sides(&self) -> [usize; 2] {
        match &self.body {
            Body::Tile(tile) => tile.sides(),
            Body::Each(_) | Body::Block(..) => [1, 1],
        }
    }

    /// Workgroups of the dispatch; `None` where there are too many.
    pub fn grid(&self) -> Option<[u32; 3]> {
        let within = |n: usize| u32::try_from(n).ok().filter(|_| n <= MOST_GROUPS);
        match self.shape {
            Shape::Each(count) => {
                let groups = count.div_ceil(GROUP);
                Some([within(groups.min(MOST_GROUPS))?, within(groups.div_ceil(MOST_GROUPS))?, 1])
            }
            Shape::Blocks { rows, heads, lanes } => Some([within(rows.div_ceil(lanes))?, within(heads)?, 1]),
            Shape::Tiles { rows, cols, batch } => {
                let [tall, wide] = self.sides();
                Some([within(cols.div_ceil(wide))?, within(rows.div_ceil(tall))?, within(batch)?])
            }
        }
    }
}
