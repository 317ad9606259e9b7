//! From the merges of a `tokenizer.json` to SentencePiece's scores.
//!
//! SentencePiece merges the two neighbours whose union has the highest score; `tokenizer.json` has a list of pairs and
//! merges the pair that comes first. The two agree where every pair of tokens whose union is a token is in the list, and
//! where the pairs of one union stand together: then the union's place in the list is its score. Lists that transformers
//! made from a SentencePiece model are like that.

use super::vocab::{NORMAL, bad, cannot};
use crate::error::Result;
use std::collections::{HashMap, HashSet};

/// A score for every token: minus its place among the unions; tokens that no merge makes come last.
///
/// # Errors
/// [`crate::Error::Tokenizer`] for a merge of unknown tokens; [`crate::Error::Unsupported`] where scores could not give
/// the same merges.
pub(super) fn scores(tokens: &[String], types: &[i32], merges: &[(&str, &str)]) -> Result<Vec<f32>> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(i, t)| (t.as_str(), i)).collect();
    let find = |text: &str| {
        ids.get(text).copied().ok_or_else(|| bad(format!("a merge in tokenizer.json needs the token {text:?}")))
    };
    let mut pairs = HashSet::with_capacity(merges.len());
    let mut place: Vec<Option<usize>> = vec![None; tokens.len()];
    let (mut places, mut last) = (0, usize::MAX);
    for (l, r) in merges {
        pairs.insert((find(l)?, find(r)?));
        let union = find(&format!("{l}{r}"))?;
        if union != last {
            if place[union].replace(places).is_some() {
                return Err(cannot(format!("merges into {:?} at several ranks", tokens[union])));
            }
            places += 1;
            last = union;
        }
    }
    let normal = |text: &str| ids.get(text).copied().filter(|i| types.get(*i) == Some(&NORMAL));
    for (union, text) in tokens.iter().enumerate().filter(|(i, _)| types.get(*i) == Some(&NORMAL)) {
        for (at, _) in text.char_indices().skip(1) {
            let (l, r) = text.split_at(at);
            if let (Some(left), Some(right)) = (normal(l), normal(r))
                && !pairs.contains(&(left, right))
            {
                return Err(cannot(format!("the tokens {l:?}, {r:?} and {:?}, but no merge", tokens[union])));
            }
        }
    }
    let score = |(i, place): (usize, Option<usize>)| match place {
        Some(p) => -(p as f32),
        None if types.get(i) == Some(&NORMAL) => -(places as f32),
        None => 0.0,
    };
    Ok(place.into_iter().enumerate().map(score).collect())
}
