//! What a cache of experts would have done on a recorded text: the experts of a layer share a number of slots, and a policy says
//! whose slot a missing one takes.
//!
//! The rules, a token at a time and a layer by itself, are those that a device can follow without its host:
//!
//! 1. The experts of the token that are in slots are hits.
//! 2. Each of the others, in the router's order, is an upload: it takes the first empty slot, else the slot of the victim that the
//!    policy names among the experts that this token does not use. Of equal victims it is the one in the lowest slot.
//! 3. With fewer slots than experts a token uses (k), a cache would only be filled in vain: it is bypassed, nothing hits, and nothing is
//!    uploaded.
//!
//! The slots are empty before the first token. Texts that follow each other find what the ones before have left.

use super::{LayerTrace, Trace};
use crate::error::{Error, Result};

/// Whose slot a missing expert takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// That of the expert whose last use is longest ago.
    Lru,
    /// That of the expert that was used least; all counts are halved every [`Policy::AGING`] tokens, and of equally used ones it is the one
    /// whose last use is longest ago.
    LfuAged,
    /// That of the expert whose last use is longest ago, but none of those in slots that the tokens before used most: half of the slots are
    /// theirs, or fewer, so that a token's k have room in the others. Of equally used ones those stay that were used last.
    PinnedLru,
    /// That of the expert whose next use is farthest away (Belady 1966): it looks ahead, so that no cache can do better.
    Belady,
}

impl Policy {
    /// Tokens after which [`Policy::LfuAged`] halves its counts.
    pub const AGING: usize = 256;

    /// All of them.
    pub const ALL: [Policy; 4] = [Policy::Lru, Policy::LfuAged, Policy::PinnedLru, Policy::Belady];

    /// Its name: `lru`, `lfu-aged`, `pinned+lru`, `belady`.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Lru => "lru",
            Policy::LfuAged => "lfu-aged",
            Policy::PinnedLru => "pinned+lru",
            Policy::Belady => "belady",
        }
    }

    /// What a cache of so many slots a layer would have done on these texts, one after the other: for each layer its counts.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the texts are of different models, a layer has fewer experts than slots, or there is nothing to follow.
    pub fn simulate(self, texts: &[Trace], slots: Slots) -> Result<Vec<SlotCounts>> {
        let first = texts.first().ok_or_else(|| Error::Invalid("no recorded text".into()))?;
        let shape = |t: &Trace| t.layers().iter().map(|l| (l.layer, l.experts, l.used)).collect::<Vec<_>>();
        if texts.iter().any(|t| shape(t) != shape(first)) {
            return Err(Error::Invalid("the recorded texts are of different models".into()));
        }
        let layer = |i: usize| {
            let parts: Vec<&LayerTrace> = texts.iter().map(|t| &t.layers()[i]).collect();
            let ids: Vec<u32> = parts.iter().flat_map(|l| &l.ids).copied().collect();
            one_layer(&ids, parts[0].used, parts[0].experts, self, slots.of(parts[0].experts)?)
        };
        (0..first.layers().len()).map(layer).collect()
    }
}

/// A number of slots of each layer, as a person says it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Slots {
    /// So many.
    Count(usize),
    /// A part of a layer's experts, in percent; rounded up.
    Percent(f64),
}

impl Slots {
    /// The slots of a layer with so many experts.
    ///
    /// # Errors
    /// [`Error::Invalid`] for none, more than there are experts, or a percentage beyond 100.
    pub fn of(self, experts: usize) -> Result<usize> {
        let slots = match self {
            Slots::Count(n) => n,
            Slots::Percent(p) if p > 0.0 && p <= 100.0 => (p * experts as f64 / 100.0).ceil() as usize,
            Slots::Percent(p) => {
                return Err(Error::Invalid(format!("{p} % of the experts: from 0 to 100 % can have slots")));
            }
        };
        if slots == 0 || slots > experts {
            return Err(Error::Invalid(format!("{slots} slots for {experts} experts: there can be 1 to {experts}")));
        }
        Ok(slots)
    }
}

impl std::str::FromStr for Slots {
    type Err = Error;

    /// `8`, or `25%`.
    fn from_str(text: &str) -> Result<Slots> {
        let bad = || Error::Invalid(format!("{text:?} is no number of slots: 8 is one, or 25%"));
        match text.strip_suffix('%') {
            Some(p) => p.trim().parse().map(Slots::Percent).map_err(|_| bad()),
            None => text.parse().map(Slots::Count).map_err(|_| bad()),
        }
    }
}

/// What a layer's cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// Tokens.
    pub tokens: u64,
    /// Experts that were asked for: tokens times k.
    pub lookups: u64,
    /// Those that were in a slot.
    pub hits: u64,
    /// Experts that were brought to a slot.
    pub uploads: u64,
    /// Experts that were asked for the first time: no cache has them.
    pub first: u64,
}

impl SlotCounts {
    /// Hits among the lookups, from 0 to 1; 0 where there were none.
    pub fn hit_rate(&self) -> f64 {
        if self.lookups == 0 { 0.0 } else { self.hits as f64 / self.lookups as f64 }
    }

    /// Adds those of another layer or text.
    pub fn add(&mut self, other: &SlotCounts) {
        self.tokens += other.tokens;
        self.lookups += other.lookups;
        self.hits += other.hits;
        self.uploads += other.uploads;
        self.first += other.first;
    }
}

/// An expert in a slot.
#[derive(Clone, Copy, Debug)]
struct Entry {
    expert: u32,
    /// The token that used it last.
    used: usize,
    count: u64,
}

/// The slots of one layer of a model, fed a token at a time.
#[derive(Clone, Debug)]
pub struct SlotCache {
    policy: Policy,
    used: usize,
    slots: Vec<Option<Entry>>,
    /// Tokens that have used each expert.
    uses: Vec<u64>,
    token: usize,
    counts: SlotCounts,
}

impl SlotCache {
    /// Empty slots of a layer of which each token uses `used` of `experts` experts.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no slots, or more than experts.
    pub fn new(policy: Policy, slots: usize, experts: usize, used: usize) -> Result<Self> {
        let slots = vec![None; Slots::Count(slots).of(experts)?];
        Ok(SlotCache { policy, used, slots, uses: vec![0; experts], token: 0, counts: SlotCounts::default() })
    }

    /// What it has done so far.
    pub fn counts(&self) -> SlotCounts {
        self.counts
    }

    fn slot_of(&self, expert: u32) -> Option<usize> {
        self.slots.iter().position(|s| s.is_some_and(|e| e.expert == expert))
    }

    /// The experts of the next token; `next_use` says when an expert is used again, for [`Policy::Belady`].
    fn token(&mut self, ids: &[u32], next_use: &dyn Fn(u32) -> usize) {
        if self.policy == Policy::LfuAged && self.token > 0 && self.token.is_multiple_of(Policy::AGING) {
            self.slots.iter_mut().flatten().for_each(|e| e.count /= 2);
        }
        self.counts.tokens += 1;
        self.counts.lookups += ids.len() as u64;
        if self.slots.len() >= self.used {
            self.fill(ids, next_use);
        }
        for id in ids {
            if let Some(uses) = self.uses.get_mut(*id as usize) {
                self.counts.first += u64::from(*uses == 0);
                *uses += 1;
            }
        }
        self.token += 1;
    }

    fn fill(&mut self, ids: &[u32], next_use: &dyn Fn(u32) -> usize) {
        let pinned = self.pinned();
        let mut missing = vec![];
        for id in ids {
            let found = self.slot_of(*id).and_then(|at| self.slots[at].as_mut());
            match found {
                Some(entry) => {
                    self.counts.hits += 1;
                    (entry.used, entry.count) = (self.token, entry.count + 1);
                }
                None => missing.push(*id),
            }
        }
        for id in missing {
            if let Some(at) = self.victim(ids, &pinned, next_use) {
                self.slots[at] = Some(Entry { expert: id, used: self.token, count: 1 });
                self.counts.uploads += 1;
            }
        }
    }

    /// The slots that no missing expert takes, before the next token.
    fn pinned(&self) -> Vec<usize> {
        if self.policy != Policy::PinnedLru {
            return vec![];
        }
        let mut full: Vec<_> = self.slots.iter().enumerate().filter_map(|(i, e)| e.map(|e| (i, e))).collect();
        let uses = |expert: u32| self.uses.get(expert as usize).copied().unwrap_or(0);
        full.sort_by_key(|(i, e)| std::cmp::Reverse((uses(e.expert), e.used, *i)));
        let slots = self.slots.len();
        full.truncate((slots / 2).min(slots.saturating_sub(self.used)));
        full.into_iter().map(|(i, _)| i).collect()
    }

    /// The slot that a missing expert takes.
    fn victim(&self, ids: &[u32], pinned: &[usize], next_use: &dyn Fn(u32) -> usize) -> Option<usize> {
        if let Some(empty) = self.slots.iter().position(Option::is_none) {
            return Some(empty);
        }
        let others = self.slots.iter().enumerate().filter_map(|(i, e)| e.map(|e| (i, e)));
        let others = others.filter(|(i, e)| !ids.contains(&e.expert) && !pinned.contains(i));
        // The first of the least.
        let victim = match self.policy {
            Policy::Lru | Policy::PinnedLru => others.min_by_key(|(_, e)| (e.used, 0)),
            Policy::LfuAged => others.min_by_key(|(_, e)| (e.count as usize, e.used)),
            Policy::Belady => others.min_by_key(|(_, e)| (usize::MAX - next_use(e.expert), 0)),
        };
        victim.map(|v| v.0)
    }
}

fn one_layer(ids: &[u32], used: usize, experts: usize, policy: Policy, slots: usize) -> Result<SlotCounts> {
    let mut cache = SlotCache::new(policy, slots, experts, used)?;
    let uses = uses(ids, used, experts);
    let mut done = vec![0; experts];
    for (t, ids) in ids.chunks_exact(used.max(1)).enumerate() {
        for id in ids {
            let (uses, done) = (&uses[*id as usize], &mut done[*id as usize]);
            while uses.get(*done).is_some_and(|at| *at <= t) {
                *done += 1;
            }
        }
        let next_use = |e: u32| uses[e as usize].get(done[e as usize]).copied().unwrap_or(usize::MAX);
        cache.token(ids, &next_use);
    }
    Ok(cache.counts())
}

/// For each expert the tokens that use it, ascending.
fn uses(ids: &[u32], used: usize, experts: usize) -> Vec<Vec<usize>> {
    let mut uses = vec![vec![]; experts];
    for (i, id) in ids.iter().enumerate() {
        if let Some(of) = uses.get_mut(*id as usize) {
            of.push(i / used.max(1));
        }
    }
    uses
}
