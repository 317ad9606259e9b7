//! The prefix cache: texts that left their sequences, as a radix tree over token ids with keys and values in pages.
//!
//! What one sequence has read is not read again by another. Running sequences keep their own keys and values, side by side in
//! the backend's caches, because three backends' attention kernels read a sequence's rows in a straight line; tables of
//! pages inside of them would cost every token of every text to save what few texts share. So this tree lies behind the sequences, in
//! the host's memory: when a sequence is given to another text, what it holds goes into the tree, but for what the tree has
//! already; when a prompt comes whose beginning the tree knows, the pages are copied into its sequence. A copy moves
//! some ten kilobytes a token, thousands of times faster than reading the token anew, and a beginning that many texts share is
//! stored once. While nobody needs a conversation's sequence its text stays there and nothing is copied at all.
//!
//! Texts are compared token by token: there are no hashes, and no collisions. Matches are exact to the token although keys and values
//! come in pages: a page of which only the first tokens match is copied as a whole, and what follows overwrites the rest. Where two
//! texts part within a page each has a copy of that page.
//!
//! Recurrent states cannot go back to any token: nodes keep copies of them at some positions, and only there can a text be
//! resumed. (Window attention needs no such care: its caches hold all positions.)
//!
//! The tree has a budget of bytes. For new texts the leaves go that were used least recently; what running sequences began with is
//! pinned.
//!
//! Deliberately absent: runners, devices, what a page holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, Range},
    sync::Arc,
};

/// Sizes of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of a page.
    pub page: usize,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Whether texts can be resumed only where recurrent states were kept.
    pub stateful: bool,
    /// Bytes that pages and states may take together.
    pub budget: usize,
}

/// Recurrent states after so many tokens.
pub type State = (usize, Arc<[u8]>);

/// What a sequence began with: its nodes stay until [`Tree::unpin`].
#[derive(Debug, PartialEq, Eq)]
pub struct Pin(usize);

/// The beginning of a text.
#[derive(Debug)]
pub struct Taken<P> {
    /// Its pages, from the one on that was asked for.
    pub pages: Vec<P>,
    /// Recurrent states that are known of it, of a stateful tree: the last ones stand behind it.
    pub states: Vec<State>,
    /// Keeps it from going.
    pub pin: Pin,
}

/// See the [module](self). `P` are pages.
#[derive(Debug)]
pub struct Tree<P> {
    shape: Shape,
    bytes: usize,
    evicted: u64,
    clock: u64,
    /// The first is the root, which has no tokens.
    nodes: Vec<Node<P>>,
    /// Places in `nodes` that are to be used again.
    free: Vec<usize>,
    /// Nodes that may go, by when they were used last.
    leaves: BTreeSet<(u64, usize)>,
}

/// Some tokens behind those of its parent.
#[derive(Debug)]
struct Node<P> {
    parent: usize,
    /// Position of the first of its tokens.
    first: usize,
    tokens: Vec<u32>,
    /// By their first tokens.
    children: BTreeMap<u32, usize>,
    /// The pages that its tokens lie in. Where the first of them begins before `first`, it holds the parents' tokens too.
    pages: Vec<P>,
    /// States at positions in `first + 1 ..= end`, ascending.
    states: Vec<State>,
    used: u64,
    pins: usize,
}

impl<P> Default for Node<P> {
    fn default() -> Self {
        Node {
            parent: 0,
            first: 0,
            tokens: vec![],
            children: BTreeMap::new(),
            pages: vec![],
            states: vec![],
            used: 0,
            pins: 0,
        }
    }
}

impl<P> Node<P> {
    fn end(&self) -> usize {
        self.first + self.tokens.len()
    }
}

/// How two texts begin alike.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

impl<P: Clone + Deref<Target = [u8]>> Tree<P> {
    /// An empty tree.
    pub fn new(shape: Shape) -> Self {
        let shape = Shape { page: shape.page.max(1), ..shape };
        let nodes = vec![Node::default()];
        Tree { shape, bytes: 0, evicted: 0, clock: 0, nodes, free: vec![], leaves: BTreeSet::new() }
    }

    /// Its sizes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Bytes of pages and states.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many nodes went for others so far.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// How many tokens of a text the tree knows.
    pub fn known(&self, text: &[u32]) -> usize {
        self.walk(text).1
    }

    /// The largest position up to `most` at which a text can be resumed.
    pub fn resume_at(&self, text: &[u32], most: usize) -> usize {
        let (path, known) = self.walk(text);
        let n = known.min(most);
        if !self.shape.stateful {
            return n;
        }
        let states = path.iter().flat_map(|i| &self.nodes[*i].states);
        states.map(|s| s.0).filter(|at| *at <= n).max().unwrap_or(0)
    }

    /// The first `n` tokens of a text, from page `from` on; `None` where they are not known, or states behind them are not.
    pub fn take(&mut self, text: &[u32], n: usize, from: usize) -> Option<Taken<P>> {
        let (path, known) = self.walk(text.get(..n)?);
        if known < n || n == 0 {
            return None;
        }
        let states: Vec<State> =
            path.iter().flat_map(|i| &self.nodes[*i].states).filter(|s| s.0 <= n).cloned().collect();
        if self.shape.stateful && states.last().is_none_or(|s| s.0 != n) {
            return None;
        }
        let page = self.shape.page;
        let pages = (from..n.div_ceil(page)).map(|p| {
            // The deepest node with tokens in the page has all of it.
            let node = path.iter().rev().map(|i| &self.nodes[*i]).find(|node| node.first < n.min((p + 1) * page))?;
            node.pages.get(p - node.first / page).cloned()
        });
        let pages = pages.collect::<Option<Vec<_>>>()?;
        self.touch(&path);
        let last = *path.last()?;
        self.pin(last);
        Some(Taken { pages, states, pin: Pin(last) })
    }

    /// Lets what a sequence began with go.
    pub fn unpin(&mut self, pin: Pin) {
        let node = &mut self.nodes[pin.0];
        node.pins = node.pins.saturating_sub(1);
        self.settle(pin.0);
    }

    /// Takes in a text, which ends in a whole page of its sequence, with copies of states behind some of its tokens, ascending. Of
    /// what is not known yet `read` gives the pages by their numbers; where the budget does not hold all of it, it is the
    /// beginning. Gives the number of new tokens.
    ///
    /// # Errors
    /// What `read` says; nothing new is in the tree then.
    pub fn insert<E>(
        &mut self,
        text: &[u32],
        states: &[State],
        read: impl FnOnce(Range<usize>) -> Result<Vec<P>, E>,
    ) -> Result<usize, E> {
        let (path, known) = self.walk(text);
        let last = *path.last().unwrap_or(&0);
        // A node of which the text has only the beginning is divided: its end was not used.
        let parts = known < self.nodes[last].end();
        self.touch(&path[..path.len() - usize::from(parts)]);
        // What the text goes on from must not go for it.
        self.pin(last);
        let end = self.make_room(text.len(), known, states);
        self.unpin(Pin(last));
        if end <= known {
            self.touch(&path);
            self.add_states(&text[..known], states);
            return Ok(0);
        }
        let page = self.shape.page;
        let wanted = known / page..end.div_ceil(page);
        let pages = read(wanted.clone())?;
        if pages.len() != wanted.len() {
            return Ok(0);
        }
        let parent = if parts { self.split(last, known) } else { last };
        let new: Vec<State> = states.iter().filter(|s| s.0 > known && s.0 <= end).cloned().collect();
        self.bytes += pages.iter().map(|p| p.len()).sum::<usize>() + bytes_of(&new);
        let tokens = text[known..end].to_vec();
        let (used, first) = (self.clock, tokens[0]);
        let node = Node { parent, first: known, tokens, pages, states: new, used, ..Node::default() };
        let leaf = self.place(node);
        self.nodes[parent].children.insert(first, leaf);
        self.settle(parent);
        self.settle(leaf);
        self.add_states(&text[..known], states);
        Ok(end - known)
    }

    /// The nodes that a text goes through, the last perhaps in part, and how many of its tokens they have.
    fn walk(&self, text: &[u32]) -> (Vec<usize>, usize) {
        let (mut path, mut at, mut node) = (vec![], 0, 0);
        while let Some(child) = text.get(at).and_then(|id| self.nodes[node].children.get(id)) {
            path.push(*child);
            node = *child;
            let tokens = &self.nodes[node].tokens;
            let same = common(tokens, &text[at..]);
            at += same;
            if same < tokens.len() {
                break;
            }
        }
        (path, at)
    }

    fn touch(&mut self, path: &[usize]) {
        self.clock += 1;
        for i in path {
            self.leaves.remove(&(self.nodes[*i].used, *i));
            self.nodes[*i].used = self.clock;
            self.settle(*i);
        }
    }

    fn pin(&mut self, i: usize) {
        self.nodes[i].pins += 1;
        self.settle(i);
    }

    /// Notes whether a node may go.
    fn settle(&mut self, i: usize) {
        let node = &self.nodes[i];
        let key = (node.used, i);
        if i != 0 && node.children.is_empty() && node.pins == 0 {
            self.leaves.insert(key);
        } else {
            self.leaves.remove(&key);
        }
    }

    fn place(&mut self, node: Node<P>) -> usize {
        match self.free.pop() {
            Some(i) => {
                self.nodes[i] = node;
                i
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        }
    }

    /// Makes two nodes of one, the first of which ends at position `at`; gives that one. The second keeps number and pins, and a
    /// page that both have tokens in is shared.
    fn split(&mut self, i: usize, at: usize) -> usize {
        let page = self.shape.page;
        let node = &mut self.nodes[i];
        let (first, parent, used) = (node.first, node.parent, self.clock);
        let behind = node.tokens.split_off(at - first);
        let tokens = std::mem::replace(&mut node.tokens, behind);
        let behind = node.pages.split_off(at / page - first / page);
        let mut pages = std::mem::replace(&mut node.pages, behind);
        if at % page != 0 {
            pages.extend(node.pages.first().cloned());
        }
        let behind = node.states.split_off(node.states.partition_point(|s| s.0 <= at));
        let states = std::mem::replace(&mut node.states, behind);
        node.first = at;
        let (id, behind) = (tokens[0], node.tokens[0]);
        let children = BTreeMap::from([(behind, i)]);
        let upper = self.place(Node { parent, first, tokens, children, pages, states, used, pins: 0 });
        self.nodes[i].parent = upper;
        self.nodes[parent].children.insert(id, upper);
        upper
    }

    /// Lets leaves go until tokens `known .. end` of a text fit, and gives the `end` up to which they do.
    fn make_room(&mut self, end: usize, known: usize, states: &[State]) -> usize {
        let Shape { page, page_bytes, stateful, budget } = self.shape;
        let pages = |end: usize| (end.div_ceil(page) - known / page) * page_bytes;
        let with = |end: usize| {
            let new = states.iter().filter(|s| s.0 > known && s.0 <= end);
            pages(end) + new.map(|s| s.1.len()).sum::<usize>()
        };
        // Nothing is of use behind the last states.
        let end = if stateful { states.last().map_or(0, |s| s.0.min(end)) } else { end };
        if end <= known {
            return known;
        }
        while self.bytes + with(end) > budget && self.evict() {}
        let room = budget.saturating_sub(self.bytes);
        if with(end) <= room {
            return end;
        }
        if stateful {
            return states.iter().map(|s| s.0).filter(|n| *n > known && with(*n) <= room).max().unwrap_or(known);
        }
        ((known / page + room / page_bytes.max(1)) * page).clamp(known, end)
    }

    /// Adds states to tokens that were known without, as far as they fit.
    fn add_states(&mut self, known: &[u32], states: &[State]) {
        let (path, _) = self.walk(known);
        for (at, state) in states.iter().filter(|s| s.0 <= known.len()) {
            let holds = |i: &&usize| self.nodes[**i].first < *at && *at <= self.nodes[**i].end();
            let Some(i) = path.iter().find(holds) else { continue };
            if self.bytes + state.len() > self.shape.budget {
                return;
            }
            let node = &mut self.nodes[*i];
            if let Err(place) = node.states.binary_search_by_key(at, |s| s.0) {
                node.states.insert(place, (*at, state.clone()));
                self.bytes += state.len();
            }
        }
    }

    /// Lets the leaf go that was used least recently; `false` where there is none.
    fn evict(&mut self) -> bool {
        let Some((_, i)) = self.leaves.pop_first() else { return false };
        let node = std::mem::take(&mut self.nodes[i]);
        let parent = &mut self.nodes[node.parent];
        // A page in which the parent has tokens too may be the same copy.
        let shared = match (parent.pages.last(), node.pages.first()) {
            (Some(a), Some(b)) => std::ptr::eq(&**a, &**b),
            _ => false,
        };
        let own = &node.pages[usize::from(shared)..];
        self.bytes -= own.iter().map(|p| p.len()).sum::<usize>() + bytes_of(&node.states);
        parent.children.remove(&node.tokens[0]);
        self.settle(node.parent);
        self.free.push(i);
        self.evicted += 1;
        true
    }
}

fn bytes_of(states: &[State]) -> usize {
    states.iter().map(|s| s.1.len()).sum()
}
