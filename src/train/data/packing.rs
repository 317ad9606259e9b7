//! The rows of an epoch: texts cut to pieces, and pieces put together to sequences.

use super::{corpus::Corpus, hash};
use crate::sampler::Rng;

/// How sequences are made of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackingOptions {
    /// Rows of a sequence.
    pub sequence_len: usize,
    /// Whether short texts share a sequence.
    pub packed: bool,
    /// Whether the order is random, and the places where long texts are cut.
    pub shuffle: bool,
    /// The seed of both.
    pub seed: u64,
}

/// Rows of one text that stand together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// The token of the first row, in the corpus.
    at: usize,
    rows: u32,
}

/// The sequences of one epoch.
#[derive(Clone, Debug)]
pub struct Packing {
    pieces: Vec<Piece>,
    /// The first piece of each sequence, and the number of all pieces.
    sequences: Vec<usize>,
}

/// Sequences that still take pieces.
const OPEN: usize = 64;

impl Packing {
    /// The sequences of `epoch`: a function of the corpus, the options and the epoch alone.
    pub fn new(corpus: &Corpus, options: &PackingOptions, epoch: u64) -> Packing {
        let mut rng = Rng::new(options.seed ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut pieces = cut(corpus, options, epoch);
        if options.shuffle {
            shuffle(&mut pieces, &mut rng);
        }
        let mut sequences = together(&pieces, options);
        if options.shuffle {
            // Which sequence is full first depends on lengths; what is learnt first should not.
            shuffle(&mut sequences, &mut rng);
        }
        let mut starts = vec![0];
        let mut all = Vec::with_capacity(pieces.len());
        for s in sequences {
            all.extend(s);
            starts.push(all.len());
        }
        Packing { pieces: all, sequences: starts }
    }

    /// The number of sequences.
    pub fn len(&self) -> usize {
        self.sequences.len() - 1
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces of a sequence: first token and rows of each.
    pub(super) fn sequence(&self, i: usize) -> impl Iterator<Item = (usize, usize)> {
        let range = self.sequences[i]..self.sequences[i + 1];
        self.pieces[range].iter().map(|p| (p.at, p.rows as usize))
    }
}

/// Texts as pieces of at most a sequence. A long text is cut at other places in every epoch, so that each token is seen behind
/// many beginnings.
fn cut(corpus: &Corpus, options: &PackingOptions, epoch: u64) -> Vec<Piece> {
    let most = options.sequence_len;
    let mut pieces = vec![];
    for (i, text) in corpus.texts().iter().enumerate() {
        let (mut at, end) = (text.start, text.start + text.len - 1);
        let long = text.divisible && text.len - 1 > most;
        let mut take = most;
        if long && options.shuffle {
            let seed = (options.seed ^ (options.seed >> 32) ^ epoch) as u32;
            take = 1 + hash::below(seed, 3, i as u32, most as u32) as usize;
        }
        while at < end {
            let rows = take.min(end - at);
            pieces.push(Piece { at, rows: rows as u32 });
            at += rows;
            take = most;
        }
    }
    pieces
}

/// Pieces that are put together at once, the longest first.
const WINDOW: usize = 4096;

/// Pieces put together: each into the open sequence that it fills best; the fullest is closed where there are too many. Some
/// thousand pieces at a time come in the order of their lengths, since short ones fill what long ones leave.
fn together(pieces: &[Piece], options: &PackingOptions) -> Vec<Vec<Piece>> {
    if !options.packed {
        return pieces.iter().map(|p| vec![*p]).collect();
    }
    let most = options.sequence_len;
    let mut done: Vec<Vec<Piece>> = vec![];
    // Of each open sequence the rows that are left, and its pieces.
    let mut open: Vec<(usize, Vec<Piece>)> = vec![];
    let mut ordered = pieces.to_vec();
    ordered.chunks_mut(WINDOW).for_each(|w| w.sort_by_key(|p| std::cmp::Reverse(p.rows)));
    for p in &ordered {
        let rows = p.rows as usize;
        let fits = open.iter().enumerate().filter(|(_, (left, _))| *left >= rows).min_by_key(|(_, (left, _))| *left);
        let at = match fits.map(|(i, _)| i) {
            Some(i) => i,
            None => {
                if open.len() == OPEN {
                    let fullest = open.iter().enumerate().min_by_key(|(_, (left, _))| *left).map_or(0, |(i, _)| i);
                    done.push(open.remove(fullest).1);
                }
                open.push((most, vec![]));
                open.len() - 1
            }
        };
        open[at].0 -= rows;
        open[at].1.push(*p);
        if open[at].0 == 0 {
            done.push(open.remove(at).1);
        }
    }
    done.extend(open.into_iter().map(|(_, s)| s));
    done
}

/// Fisher and Yates' shuffle.
fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for i in (1..items.len()).rev() {
        let j = ((u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64) as usize;
        items.swap(i, j);
    }
}
