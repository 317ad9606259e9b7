//! Products of slots with the matrices of their experts.
//!
//! Matrices are packed, as many at once as [`MOST_PACKED`] numbers hold. Ranges of tokens take them expert after expert, so that what is
//! gathered for the slots of a range, and where their results go, stays in the second cache. Where the slots of a token are summed, they
//! are added in the order of their experts. No sum depends on the ranges: results do not depend on the number of threads.

use super::{
    super::buffer::Out,
    gemm::{
        Left, MOST_PACKED, MR, Machine, NR, Results, Right, Source, Start, TILE_COLS, TILE_ROWS, Target, gemm, tile,
    },
    source::with_rows,
};
use crate::{
    error::Result,
    ir::{Linear, WeightId},
    ops::{
        Array, Weights,
        experts::{by_expert, row_of},
    },
};

/// Rows of an expert in a range of tokens: with fewer, packed matrices are read too often for what is done with them; with more, the rows of
/// the range leave the second cache before the next expert takes them.
const ROWS: usize = 4 * TILE_ROWS;

/// What is multiplied: a row for each slot, or one for all slots of a token.
#[derive(Clone, Copy)]
pub struct Slots<'a> {
    /// `[T, n]` or `[T, k·n]`.
    pub x: &'a Array<f32>,
    /// The expert of each slot, `[T · k]`.
    pub ids: &'a [u32],
}

impl<'a> Slots<'a> {
    /// Slots of a token.
    fn used(&self) -> usize {
        self.ids.len() / self.x.rows.max(1)
    }

    /// The row of a slot.
    fn row(&self, slot: usize, n: usize) -> &'a [f32] {
        row_of(self.x, slot, n, self.used())
    }
}

/// What it is multiplied with.
#[derive(Clone, Copy)]
pub struct Experts<'a> {
    weight: WeightId,
    bias: Option<WeightId>,
    /// Whether results are the matrices' columns.
    transposed: bool,
    w: Weights<'a, f32>,
}

impl<'a> Experts<'a> {
    /// Forwards.
    pub fn of(l: &Linear, w: Weights<'a, f32>) -> Self {
        Experts { weight: l.weight, bias: l.bias, transposed: false, w }
    }

    /// Without biases.
    pub fn plain(weight: WeightId, transposed: bool, w: Weights<'a, f32>) -> Self {
        Experts { weight, bias: None, transposed, w }
    }

    /// Experts, results and summands of each.
    fn sizes(&self) -> [usize; 3] {
        let shape = self.w.tensor(self.weight).shape();
        if self.transposed { [shape[0], shape[2], shape[1]] } else { [shape[0], shape[1], shape[2]] }
    }

    fn with_right<R>(&self, expert: usize, use_it: impl FnOnce(Right<'_>) -> R) -> R {
        let rows = self.w.tensor(self.weight).shape()[1];
        with_rows(self.w, self.weight, expert * rows, |rows| use_it(Right { rows, summed: self.transposed }))
    }

    fn bias(&self, expert: usize) -> Option<Vec<f32>> {
        self.bias.map(|b| self.w.row(b, expert))
    }
}

/// An expert, and slots of it in ascending order.
type Own = (usize, Vec<usize>);

/// Where the results of slots go.
struct Places<'a> {
    out: Out<'a, f32>,
    /// Results of a slot.
    n: usize,
    /// Slots that share a row: those of a token, where they are summed.
    shared: usize,
    /// Whether they are.
    sum: bool,
}

impl Places<'_> {
    fn at(&self, slot: usize) -> usize {
        slot / self.shared * self.n
    }

    /// What results of an expert with this bias are added to, from a column on.
    fn start<'b>(&self, bias: Option<&'b [f32]>, col: usize) -> Start<'b> {
        match bias {
            _ if self.sum => Start::There,
            Some(bias) => Start::Row(&bias[col..]),
            None => Start::Zero,
        }
    }
}

/// Each slot through the matrix of its expert, `[T, k·n]`, or the sums of tokens' slots, `[T, n]`.
///
/// # Errors
/// [`crate::Error::Device`] where a thread panicked.
pub fn product(machine: Machine<'_>, x: Slots<'_>, experts: Experts<'_>, sum: bool) -> Result<Array<f32>> {
    let ([count, n, k], used) = (experts.sizes(), x.used());
    let (shared, cols) = if sum { (used, n) } else { (1, used * n) };
    let mut y = machine.spare.array(x.x.rows, cols);
    if sum {
        y.data.fill(0.0);
    }
    let to = Places { out: Out::new(&mut y.data), n, shared, sum };
    let lists = lists(x.ids, count, shared);
    match MOST_PACKED / (n.next_multiple_of(NR) * k).max(1) {
        0 => lists.iter().try_for_each(|own| large(machine, x, experts, own, &to))?,
        most => lists.chunks(most).try_for_each(|own| together(machine, x, experts, own, &to))?,
    }
    Ok(y)
}

/// The slots of each expert that has some. Where `shared` slots of a token go to one row, those of one list are of different tokens, as rows
/// of a tile are written side by side.
fn lists(ids: &[u32], count: usize, shared: usize) -> Vec<Own> {
    let mut all = vec![];
    for (expert, mut left) in by_expert(ids, count).into_iter().enumerate() {
        while !left.is_empty() {
            let (mut own, mut again): (Vec<usize>, Vec<usize>) = (vec![], vec![]);
            for slot in left {
                let same = own.last().is_some_and(|last| last / shared == slot / shared);
                if same { again.push(slot) } else { own.push(slot) }
            }
            all.push((expert, own));
            left = again;
        }
    }
    all
}

/// An expert whose matrix is too large to be packed at once, on all threads.
fn large(
    machine: Machine<'_>,
    x: Slots<'_>,
    experts: Experts<'_>,
    (expert, slots): &Own,
    to: &Places<'_>,
) -> Result<()> {
    let [_, n, k] = experts.sizes();
    let bias = experts.bias(*expert);
    let start = to.start(bias.as_deref(), 0);
    let a = Left { row: &|r| x.row(slots[r], k), summed: false };
    let to = Target { out: &to.out, at: &|r| to.at(slots[r]), start };
    experts.with_right(*expert, |right| gemm(machine, [slots.len(), n, k], a, right, to))
}

/// Experts whose matrices are packed at once.
fn together(machine: Machine<'_>, x: Slots<'_>, experts: Experts<'_>, own: &[Own], to: &Places<'_>) -> Result<()> {
    let ([_, n, k], used, rows) = (experts.sizes(), x.used(), x.x.rows);
    let size = n.next_multiple_of(NR) * k;
    let mut packed = machine.spare.aligned(own.len() * size);
    pack(machine, experts, own, &mut packed)?;
    let biases: Vec<_> = own.iter().map(|(e, _)| experts.bias(*e)).collect();
    let across = n.div_ceil(TILE_COLS);
    let ranges = ranges(rows * used, own.len(), across, machine.pool.threads());
    machine.pool.run(ranges * across, &|_, item| {
        let (range, col) = (item / across, item % across * TILE_COLS);
        let (cols, slots) = (TILE_COLS.min(n - col), [range, range + 1].map(|r| rows * r / ranges * used));
        // SAFETY: a slot's row is of one range, these columns of one item, which has each once at a time.
        let part = |slot: usize| unsafe { to.out.slice(to.at(slot) + col, cols) };
        for (i, (_, all)) in own.iter().enumerate() {
            let [first, end] = slots.map(|s| all.partition_point(|slot| *slot < s));
            let start = to.start(biases[i].as_deref(), col);
            // Tiles of equal size.
            let own = &all[first..end];
            let tiles = own.len().div_ceil(TILE_ROWS).max(1);
            for own in own.chunks(own.len().div_ceil(tiles).next_multiple_of(MR).max(MR)) {
                let a = |r: usize| x.row(own[r], k).as_ptr();
                let results = Results { rows: own.len(), cols, part: &|r| part(own[r]), start };
                // SAFETY: the processor has the level by the contract of `Machine`; each row has k numbers.
                unsafe { tile(machine.simd_level, (&a, 1), (&packed[i * size + col * k..], k), results) };
            }
        }
    })
}

/// Packs the matrices of experts, one behind the other.
fn pack(machine: Machine<'_>, experts: Experts<'_>, own: &[Own], packed: &mut [f32]) -> Result<()> {
    let [_, n, k] = experts.sizes();
    if n * k == 0 {
        return Ok(());
    }
    let parts: Vec<_> = packed.chunks_mut(n.next_multiple_of(NR) * k).map(Out::new).collect();
    let pieces = experts.with_right(own[0].0, |right| right.pieces([n, k]));
    machine.pool.run(own.len() * pieces, &|_, item| {
        let (i, piece) = (item / pieces, item % pieces);
        // SAFETY: each piece of each expert is of one item.
        experts.with_right(own[i].0, |right| unsafe { right.pack(piece, [n, k], &parts[i]) });
    })
}

/// How many ranges: an expert has about [`ROWS`] rows in each, and threads have equally many items.
fn ranges(slots: usize, experts: usize, across: usize, threads: usize) -> usize {
    let fitting = (slots / (experts * ROWS)).max(1);
    (fitting..fitting + threads).find(|r| (r * across).is_multiple_of(threads)).unwrap_or(fitting)
}

/// `into[e] += Σ dy xᵀ` over the slots of each of `count` experts, in ascending order; `into` is `[E, out, in]`.
///
/// # Errors
/// [`crate::Error::Device`] where a thread panicked.
pub fn outer(
    machine: Machine<'_>,
    x: Slots<'_>,
    dy: &Array<f32>,
    [count, out, inp]: [usize; 3],
    into: &mut [f32],
) -> Result<()> {
    let (to, dy) = (Out::new(into), Slots { x: dy, ids: x.ids });
    each_expert(machine, x.ids, count, &|e, slots| {
        if slots.is_empty() {
            return Ok(());
        }
        let a = Left { row: &|r| dy.row(slots[r], out), summed: true };
        let b = Right { rows: Source::Slices(&|r| x.row(slots[r], inp)), summed: true };
        let to = Target { out: &to, at: &|o| (e * out + o) * inp, start: Start::There };
        gemm(machine, [out, inp, slots.len()], a, b, to)
    })
}

/// Runs `one` for every expert with its slots: experts side by side, or one after the other on all threads where one has most of
/// the slots. Both give the same numbers.
fn each_expert(
    machine: Machine<'_>,
    ids: &[u32],
    count: usize,
    one: &(dyn Fn(usize, &[usize]) -> Result<()> + Sync),
) -> Result<()> {
    let slots = by_expert(ids, count);
    let most = slots.iter().map(Vec::len).max().unwrap_or(0);
    if count < 2 * machine.pool.threads() || 2 * most > ids.len() {
        return slots.iter().enumerate().try_for_each(|(e, s)| one(e, s));
    }
    // The largest first: at the end, where threads wait for each other, only small ones are left.
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|e| std::cmp::Reverse(slots[*e].len()));
    let failed = std::sync::Mutex::new(None);
    machine.pool.run(count, &|_, i| {
        let e = order[i];
        if let Err(error) = one(e, &slots[e]) {
            *super::super::pool::lock_unpoisoned(&failed) = Some(error);
        }
    })?;
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_once_in_a_list_where_its_slots_are_summed() {
        let ids = [1, 1, 0, 1, 1, 1];
        assert_eq!(lists(&ids, 3, 1), [(0, vec![2]), (1, vec![0, 1, 3, 4, 5])]);
        assert_eq!(lists(&ids, 3, 2), [(0, vec![2]), (1, vec![0, 3, 4]), (1, vec![1, 5])]);
    }

    #[test]
    fn threads_have_equally_many_items() {
        for (slots, experts, across, threads) in [(32_768, 64, 2, 2), (8192, 8, 1, 2), (10, 4, 3, 16), (0, 1, 1, 3)] {
            let found = ranges(slots, experts, across, threads);
            assert!(found > 0 && (found * across) % threads == 0, "{found} ranges for {slots} slots");
        }
        assert_eq!(ranges(32_768, 64, 2, 2), 2);
    }
}
