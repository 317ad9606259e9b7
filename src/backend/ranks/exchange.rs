//! The exchange in the middle of a layer: who has an expert has computed its slots; everybody needs the weighted sum of all.
//!
//! All ranks know all ids, for they have the same router and the same input; so everybody knows how many words come from whom. Of a few
//! tokens every rank gives its slots to everybody, which is one message a layer, and each sums all slots. Of many tokens each rank sums a
//! part of the tokens, so that a slot goes to one rank only, and then gives the sums to everybody: two messages, and of `k · n` numbers a
//! token it is `k · n / ranks + n` that arrive. Both sum in the order of the slots.
//!
//! A word in front of each rank's slots follows from the ids that it has seen: ranks that have come to different choices, as unlike
//! processors might, notice it before a wrong number is made.

use super::World;
use crate::{
    backend::{
        host::{HostExperts, HostResult, HostRows, HostRunner},
        runner::checksum,
    },
    error::{Error, Result},
    graph::{RankRegion, experts_of_rank},
};
use std::{ops::Range, sync::Arc};

/// Most tokens of a step whose slots go to everybody.
pub const MOST_GATHERED: usize = 64;

/// What stands for the experts of all ranks in the graph of one.
///
/// `most_gathered`: most tokens of a step whose slots go to everybody; [`MOST_GATHERED`] as a rule.
pub fn exchange(world: &Arc<World>, regions: &[RankRegion], most_gathered: usize) -> Arc<dyn HostExperts> {
    Arc::new(Shared { world: world.clone(), regions: regions.into(), most_gathered })
}

struct Shared {
    world: Arc<World>,
    regions: Arc<[RankRegion]>,
    most_gathered: usize,
}

impl HostExperts for Shared {
    fn describe(&self) -> String {
        self.world.describe()
    }

    fn weight_bytes(&self) -> u64 {
        // They are those of the rank's own graph.
        0
    }

    fn runner(&self, _rows: usize) -> Result<Box<dyn HostRunner>> {
        let size = self.world.size();
        let owners = |r: &RankRegion| {
            let of = |rank: usize| experts_of_rank(r.experts, rank, size).map(move |_| rank as u32);
            (0..size).flat_map(of).collect()
        };
        Ok(Box::new(Exchange {
            world: self.world.clone(),
            regions: self.regions.clone(),
            owners: self.regions.iter().map(owners).collect(),
            most_gathered: self.most_gathered,
            room: Room::default(),
        }))
    }
}

/// Exchanges, with the memory of one after the other.
struct Exchange {
    world: Arc<World>,
    regions: Arc<[RankRegion]>,
    /// Of each region the rank of each expert.
    owners: Vec<Vec<u32>>,
    most_gathered: usize,
    room: Room,
}

/// Memory that stays from one exchange to the next.
#[derive(Default)]
struct Room {
    send: Vec<u32>,
    all: Vec<u32>,
    sums: Vec<u32>,
    /// Words of each rank that come, and that go.
    counts: Vec<usize>,
    send_counts: Vec<usize>,
    /// Where each rank's next slot lies in `all`.
    next: Vec<usize>,
}

/// What goes into one exchange.
#[derive(Clone, Copy)]
struct Call<'a> {
    rows: usize,
    /// k.
    used: usize,
    /// n.
    cols: usize,
    slots: HostRows<'a>,
    ids: HostRows<'a>,
    weights: HostRows<'a>,
    owners: &'a [u32],
    rank: usize,
}

impl<'a> Call<'a> {
    /// The experts of a token.
    fn ids(&self, t: usize) -> &'a [u32] {
        &self.ids.words[t * self.ids.stride..][..self.used]
    }

    /// The rank that has slot j of token t.
    fn owner(&self, t: usize, j: usize) -> usize {
        self.owners[self.ids(t)[j] as usize] as usize
    }

    fn slot(&self, t: usize, j: usize) -> &'a [u32] {
        &self.slots.words[t * self.slots.stride + j * self.cols..][..self.cols]
    }

    fn weight(&self, t: usize, j: usize) -> f32 {
        f32::from_bits(self.weights.words[t * self.weights.stride + j])
    }

    /// Whether all of it is there.
    fn is_whole(&self) -> bool {
        let has = |r: &HostRows<'_>, cols: usize| r.words.len() >= (self.rows.max(1) - 1) * r.stride + cols;
        let (k, n) = (self.used, self.cols);
        has(&self.slots, k * n)
            && has(&self.ids, k)
            && has(&self.weights, k)
            && (0..self.rows).all(|t| self.ids(t).iter().all(|id| (*id as usize) < self.owners.len()))
    }

    /// A word that follows from the choice of experts.
    fn check(&self, region: usize) -> u32 {
        let sum = (0..self.rows).fold(region as u64, |sum, t| {
            (sum ^ checksum(bytemuck::cast_slice(self.ids(t)))).wrapping_mul(0x0000_0100_0000_01b3)
        });
        (sum ^ sum >> 32) as u32
    }

    /// Adds to `counts` the words of the slots of some tokens, by their rank.
    fn count(&self, tokens: Range<usize>, counts: &mut [usize]) {
        tokens.for_each(|t| (0..self.used).for_each(|j| counts[self.owner(t, j)] += self.cols));
    }

    /// Appends this rank's slots of some tokens.
    fn take(&self, tokens: Range<usize>, to: &mut Vec<u32>) {
        for t in tokens {
            for j in (0..self.used).filter(|j| self.owner(t, *j) == self.rank) {
                to.extend_from_slice(self.slot(t, j));
            }
        }
    }

    /// The weighted sums of some tokens from what came from all ranks, `counts[r]` words from rank r, in front of which stands the word
    /// that the choice of experts came to there; `next` is memory, and `to` has a row for each token.
    fn sum<'o>(
        &self,
        tokens: Range<usize>,
        (all, counts, check): (&[u32], &[usize], u32),
        next: &mut Vec<usize>,
        mut to: impl Iterator<Item = &'o mut [f32]>,
    ) -> Result<()> {
        next.clear();
        let mut at = 0;
        for (rank, count) in counts.iter().enumerate() {
            if all.get(at) != Some(&check) {
                return Err(Error::Network(format!(
                    "rank {rank} has chosen other experts than rank {}: their processors or devices compute differently",
                    self.rank
                )));
            }
            next.push(at + 1);
            at += count;
        }
        let missing = || Error::Graph("an exchange of experts without room for its result".into());
        for t in tokens {
            let y = to.next().and_then(|y| y.get_mut(..self.cols)).ok_or_else(missing)?;
            y.fill(0.0);
            for j in 0..self.used {
                let (owner, weight) = (self.owner(t, j), self.weight(t, j));
                let slot = &all[next[owner]..][..self.cols];
                next[owner] += self.cols;
                y.iter_mut().zip(slot).for_each(|(y, s)| *y += weight * f32::from_bits(*s));
            }
        }
        Ok(())
    }
}

impl HostRunner for Exchange {
    fn run(&mut self, region: usize, rows: usize, inputs: &[HostRows<'_>], out: HostResult<'_>) -> Result<()> {
        let missing = || Error::Graph(format!("exchange {region} of experts, {rows} rows: not there"));
        let r = self.regions.get(region).copied().ok_or_else(missing)?;
        let owners = std::mem::take(&mut self.owners[region]);
        let rank = self.world.rank();
        let done = match inputs {
            [slots, ids, weights] => {
                let (slots, ids, weights) = (*slots, *ids, *weights);
                let (used, cols) = (r.used, r.cols);
                let call = Call { rows, used, cols, slots, ids, weights, owners: &owners, rank };
                match call.is_whole() && out.words.len() >= (rows.max(1) - 1) * out.stride + cols {
                    false => Err(missing()),
                    true if rows <= self.most_gathered => self.share_all(call, call.check(region), out),
                    true => self.by_token(call, call.check(region), out),
                }
            }
            _ => Err(missing()),
        };
        self.owners[region] = owners;
        done
    }

    fn bytes(&self) -> u64 {
        4 * (self.room.send.capacity() + self.room.all.capacity() + self.room.sums.capacity()) as u64
    }
}

impl Exchange {
    /// Every rank's slots to every rank.
    fn share_all(&mut self, call: Call<'_>, check: u32, out: HostResult<'_>) -> Result<()> {
        let Room { send, all, counts, next, .. } = &mut self.room;
        counts.clear();
        counts.resize(self.world.size(), 1);
        call.count(0..call.rows, counts);
        send.clear();
        send.push(check);
        call.take(0..call.rows, send);
        self.world.all_gather(send, counts, all)?;
        call.sum(0..call.rows, (all, counts, check), next, out.words.chunks_mut(out.stride.max(1)))
    }

    /// The slots of a part of the tokens to each rank, and the sums to everybody.
    fn by_token(&mut self, call: Call<'_>, check: u32, out: HostResult<'_>) -> Result<()> {
        let Room { send, all, sums, counts, send_counts, next } = &mut self.room;
        let size = self.world.size();
        let part = |rank: usize| rank * call.rows / size..(rank + 1) * call.rows / size;
        let own = part(call.rank);
        counts.clear();
        counts.resize(size, 1);
        call.count(own.clone(), counts);
        send.clear();
        send_counts.clear();
        for rank in 0..size {
            let before = send.len();
            send.push(check);
            call.take(part(rank), send);
            send_counts.push(send.len() - before);
        }
        self.world.all_to_all(send, send_counts, counts, all)?;
        sums.clear();
        sums.resize(own.len() * call.cols, 0);
        let rows = bytemuck::cast_slice_mut(sums).chunks_mut(call.cols.max(1));
        call.sum(own, (all, counts, check), next, rows)?;
        (0..size).for_each(|rank| counts[rank] = part(rank).len() * call.cols);
        self.world.all_gather(sums, counts, all)?;
        let rows = out.words.chunks_mut(out.stride.max(1)).zip(all.chunks_exact(call.cols.max(1)));
        rows.for_each(|(y, sum)| y[..call.cols].copy_from_slice(bytemuck::cast_slice(sum)));
        Ok(())
    }
}
