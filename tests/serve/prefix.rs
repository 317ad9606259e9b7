//! The prefix tree by itself: against a list of texts that is searched from end to end.

use moeray::serve::prefix::{Pin, Shape, State, Tree, common};
use proptest::prelude::*;
use std::{collections::BTreeMap, convert::Infallible, sync::Arc};

const PAGE: usize = 4;
/// A page holds a word for each of its positions.
const PAGE_BYTES: usize = 4 * PAGE;
const STATE_BYTES: usize = 12;

/// A word that follows from all tokens up to a position: what keys and values are in earnest.
fn word(text: &[u32], position: usize) -> u32 {
    text[..=position].iter().fold(7, |sum: u32, id| sum.wrapping_mul(31).wrapping_add(*id + 1))
}

/// A page of a sequence that holds this text; what lies behind the text is anything.
fn page(text: &[u32], p: usize) -> Arc<[u8]> {
    let words = (p * PAGE..(p + 1) * PAGE).map(|i| if i < text.len() { word(text, i) } else { 0xdead_beef });
    words.flat_map(u32::to_le_bytes).collect::<Vec<u8>>().into()
}

fn state(text: &[u32], n: usize) -> State {
    (n, word(text, n - 1).to_le_bytes().repeat(STATE_BYTES / 4).into())
}

/// A part of a text in the list: what a node is in the tree.
#[derive(Clone, Debug)]
struct Part {
    /// The text from its beginning to the part's end.
    text: Vec<u32>,
    first: usize,
    used: u64,
    pinned: usize,
    /// Which copies of pages it has.
    pages: Vec<usize>,
    states: Vec<usize>,
}

/// The same as the tree, by looking at everything each time.
#[derive(Default)]
struct Naive {
    parts: Vec<Part>,
    budget: usize,
    stateful: bool,
    clock: u64,
    copies: usize,
}

impl Naive {
    fn known(&self, text: &[u32]) -> usize {
        self.parts.iter().map(|p| common(&p.text, text)).max().unwrap_or(0)
    }

    fn on_path(&self, text: &[u32], known: usize) -> Vec<usize> {
        let is = |p: &Part| p.first < known && common(&p.text, text) >= known.min(p.text.len());
        (0..self.parts.len()).filter(|i| is(&self.parts[*i])).collect()
    }

    fn resume_at(&self, text: &[u32], most: usize) -> usize {
        let n = self.known(text).min(most);
        if !self.stateful {
            return n;
        }
        let on_path = self.on_path(text, self.known(text));
        on_path.iter().flat_map(|i| &self.parts[*i].states).copied().filter(|s| *s <= n).max().unwrap_or(0)
    }

    fn bytes(&self) -> usize {
        let copies: std::collections::BTreeSet<usize> = self.parts.iter().flat_map(|p| p.pages.clone()).collect();
        copies.len() * PAGE_BYTES + self.parts.iter().map(|p| p.states.len()).sum::<usize>() * STATE_BYTES
    }

    fn touch(&mut self, path: &[usize]) {
        self.clock += 1;
        path.iter().for_each(|i| self.parts[*i].used = self.clock);
    }

    fn evict(&mut self, keep: &[u32]) -> bool {
        let parts = &self.parts;
        let is_leaf = |p: &Part| !parts.iter().any(|q| q.first == p.text.len() && q.text.starts_with(&p.text));
        let is_free = |p: &Part| p.pinned == 0 && !keep.starts_with(&p.text[..=p.first]) && is_leaf(p);
        let oldest = (0..parts.len()).filter(|i| is_free(&parts[*i])).min_by_key(|i| parts[*i].used);
        oldest.map(|i| self.parts.remove(i)).is_some()
    }

    fn insert(&mut self, text: &[u32], states: &[usize]) {
        let known = self.known(text);
        let path = self.on_path(text, known);
        let whole: Vec<usize> = path.iter().copied().filter(|i| self.parts[*i].text.len() <= known).collect();
        self.touch(&whole);
        let mut end = if self.stateful { states.last().copied().unwrap_or(0) } else { text.len() };
        let cost = |end: usize| {
            (end.div_ceil(PAGE) - known / PAGE) * PAGE_BYTES
                + states.iter().filter(|s| **s > known && **s <= end).count() * STATE_BYTES
        };
        if end > known {
            while self.bytes() + cost(end) > self.budget && self.evict(&text[..known]) {}
            while end > known && self.bytes() + cost(end) > self.budget {
                end -= 1;
                while self.stateful && end > known && !states.contains(&end) {
                    end -= 1;
                }
            }
        }
        if end > known {
            self.add(text, known, end, states);
        } else {
            let path = self.on_path(text, known);
            self.touch(&path);
        }
        for s in states.iter().filter(|s| **s <= known) {
            let room = self.bytes() + STATE_BYTES <= self.budget;
            if !room {
                break;
            }
            for part in &mut self.parts {
                if part.first < *s && *s <= part.text.len() && part.text[..*s] == text[..*s] && !part.states.contains(s)
                {
                    part.states.push(*s);
                }
            }
        }
    }

    fn add(&mut self, text: &[u32], known: usize, end: usize, states: &[usize]) {
        self.split(&text[..known]);
        let first_page = known / PAGE;
        let pages = (first_page..end.div_ceil(PAGE)).map(|i| self.copies + i).collect();
        self.copies += 1000;
        let states = states.iter().copied().filter(|s| *s > known && *s <= end).collect();
        let text = text[..end].to_vec();
        self.parts.push(Part { text, first: known, used: self.clock, pinned: 0, pages, states });
    }

    /// Divides the part within which a text ends.
    fn split(&mut self, text: &[u32]) {
        let at = text.len();
        let within = |p: &Part| p.first < at && at < p.text.len() && p.text[..at] == *text;
        let Some(i) = self.parts.iter().position(within) else { return };
        let whole = self.parts[i].clone();
        let first_page = whole.first / PAGE;
        let (behind, before): (Vec<usize>, Vec<usize>) = whole.states.iter().partition(|s| **s > at);
        let pages = whole.pages[..at.div_ceil(PAGE) - first_page].to_vec();
        self.parts.push(Part {
            text: text.to_vec(),
            pages,
            states: before,
            pinned: 0,
            used: self.clock,
            ..whole.clone()
        });
        let pages = whole.pages[at / PAGE - first_page..].to_vec();
        self.parts[i] = Part { first: at, pages, states: behind, ..whole };
    }
}

/// What is done with a tree.
#[derive(Clone, Debug)]
enum Act {
    Insert(Vec<u32>, Vec<usize>),
    Take(Vec<u32>, usize),
    Unpin(usize),
}

/// Few different tokens, so that texts begin alike and part at any place.
fn text() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0u32..3, 1..24)
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (text(), prop::collection::btree_set(1usize..24, 0..4)).prop_map(|(text, at)| {
            let at = at.into_iter().filter(|n| *n <= text.len()).collect();
            Act::Insert(text, at)
        }),
        3 => (text(), 1usize..24).prop_map(|(text, n)| Act::Take(text, n)),
        1 => any::<usize>().prop_map(Act::Unpin),
    ]
}

/// The page words of what was taken are those of its own text, position by position.
fn check_pages(text: &[u32], n: usize, from: usize, pages: &[Arc<[u8]>]) -> Result<(), TestCaseError> {
    prop_assert_eq!(pages.len(), n.div_ceil(PAGE).saturating_sub(from));
    for position in from * PAGE..n {
        let at = 4 * (position % PAGE);
        let got = &pages[position / PAGE - from][at..at + 4];
        prop_assert_eq!(got, word(text, position).to_le_bytes(), "position {} of {:?}", position, text);
    }
    Ok(())
}

fn same(acts: &[Act], budget: usize, stateful: bool) -> Result<(), TestCaseError> {
    let mut tree = Tree::new(Shape { page: PAGE, page_bytes: PAGE_BYTES, stateful, budget });
    let mut naive = Naive { budget, stateful, ..Naive::default() };
    let mut pins: Vec<(Pin, Vec<u32>)> = vec![];
    for act in acts {
        match act {
            Act::Insert(text, at) => {
                let at: &[usize] = if stateful { at } else { &[] };
                let states: Vec<State> = at.iter().map(|n| state(text, *n)).collect();
                let read = |pages: std::ops::Range<usize>| Ok::<_, Infallible>(pages.map(|p| page(text, p)).collect());
                let before = tree.known(text);
                let new = tree.insert(text, &states, read).unwrap();
                prop_assert!(tree.known(text) >= before + new);
                naive.insert(text, at);
            }
            Act::Take(text, most) => {
                let n = tree.resume_at(text, *most);
                prop_assert_eq!(n, naive.resume_at(text, *most), "{:?}", text);
                let from = n / PAGE / 2;
                let Some(taken) = tree.take(text, n, from) else {
                    prop_assert_eq!(n, 0);
                    continue;
                };
                check_pages(text, n, from, &taken.pages)?;
                for (at, bytes) in &taken.states {
                    prop_assert_eq!(&(*at, bytes.clone()), &state(text, *at));
                }
                prop_assert_eq!(taken.states.last().map(|s| s.0), stateful.then_some(n));
                let path = naive.on_path(&text[..n], n);
                naive.touch(&path);
                let last = path.into_iter().max_by_key(|i| naive.parts[*i].first).unwrap();
                naive.parts[last].pinned += 1;
                let pinned = naive.parts[last].text.clone();
                pins.push((taken.pin, pinned));
            }
            Act::Unpin(which) if !pins.is_empty() => {
                let (pin, text) = pins.swap_remove(which % pins.len());
                tree.unpin(pin);
                naive.parts.iter_mut().find(|p| p.text == text).unwrap().pinned -= 1;
            }
            Act::Unpin(_) => {}
        }
        prop_assert!(tree.bytes() <= budget, "{} of {budget} bytes", tree.bytes());
        prop_assert_eq!(tree.bytes(), naive.bytes());
        // What is pinned is there.
        for (_, text) in &pins {
            prop_assert_eq!(tree.known(text), text.len());
        }
        for act in acts {
            if let Act::Insert(text, _) | Act::Take(text, _) = act {
                prop_assert_eq!(tree.known(text), naive.known(text), "{:?}", text);
                prop_assert_eq!(tree.resume_at(text, 9), naive.resume_at(text, 9), "{:?}", text);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// With room for everything nothing is ever forgotten.
    #[test]
    fn matches_are_the_longest(acts in prop::collection::vec(act(), 1..40), stateful: bool) {
        same(&acts, usize::MAX / 2, stateful)?;
    }

    /// With little room the leaves go that were used least recently, and no others.
    #[test]
    fn the_least_recently_used_leaves_go(acts in prop::collection::vec(act(), 1..60), pages in 0usize..16, stateful: bool) {
        same(&acts, pages * PAGE_BYTES + 5, stateful)?;
    }
}

/// A beginning that many texts share is there once.
#[test]
fn shared_beginnings_are_stored_once() {
    let shape = Shape { page: PAGE, page_bytes: PAGE_BYTES, stateful: false, budget: 1 << 20 };
    let mut tree = Tree::new(shape);
    let beginning: Vec<u32> = (0..400).collect();
    let mut copied: BTreeMap<usize, usize> = BTreeMap::new();
    for i in 0..50u32 {
        let text: Vec<u32> = beginning.iter().copied().chain((0..10).map(|k| 1000 + 20 * i + k)).collect();
        let read = |pages: std::ops::Range<usize>| {
            pages.clone().for_each(|p| *copied.entry(p).or_default() += 1);
            Ok::<_, Infallible>(pages.map(|p| page(&text, p)).collect())
        };
        assert_eq!(tree.insert(&text, &[], read).unwrap(), if i == 0 { 410 } else { 10 });
    }
    assert!(copied.iter().all(|(p, n)| *n == if *p < 100 { 1 } else { 50 }), "{copied:?}");
    assert_eq!(tree.bytes(), (100 + 50 * 3) * PAGE_BYTES);
}

/// Pages that cannot be read leave the tree as it was.
#[test]
fn what_could_not_be_read_is_not_there() {
    let mut tree = Tree::new(Shape { page: PAGE, page_bytes: PAGE_BYTES, stateful: false, budget: 1 << 20 });
    let text = [1, 2, 3, 4, 5];
    assert_eq!(tree.insert(&text, &[], |_| Err("no")), Err("no"));
    assert_eq!((tree.known(&text), tree.bytes()), (0, 0));
    assert_eq!(tree.insert(&text, &[], |p| Ok::<_, &str>(p.map(|p| page(&text, p)).collect())), Ok(5));
    assert!(tree.take(&[1, 2, 9], 3, 0).is_none() && tree.take(&text, 9, 0).is_none());
}
