//! How the positions that attention sees are shared out among workgroups: `shaders/common/pieces.wgsl` counts in the same way.

use super::Sizes;
use crate::kernels::numbers::{PIECE_ALONE, PIECE_LEAST, PIECE_WORKGROUPS};

/// What the pieces of an attention depend on, beside the sizes of a step. They follow what the cache holds, not what it has room
/// for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pieces {
    /// Heads of keys.
    pub kv_heads: u32,
    /// Query heads of each.
    pub group: u32,
    /// Query rows of a workgroup.
    pub rows: u32,
    /// Whether a workgroup takes rows of one token only.
    pub by_token: bool,
    /// Pieces that are wanted at most; 1: there is only one.
    pub most: u32,
    /// Positions that a query sees at most; 0: all.
    pub window: u32,
}

impl Pieces {
    /// Workgroups that a piece has.
    fn blocks(&self, tokens: u32) -> u32 {
        let rows = self.rows.max(1);
        let each =
            if self.by_token { tokens * self.group.div_ceil(rows) } else { (tokens * self.group).div_ceil(rows) };
        (self.kv_heads * each).max(1)
    }

    fn wanted(&self, tokens: u32) -> u32 {
        PIECE_WORKGROUPS.div_ceil(self.blocks(tokens)).clamp(1, self.most.max(1))
    }

    /// Pieces that a step of so many tokens has at most, whatever the cache holds.
    pub fn most_of(&self, tokens: u32) -> u32 {
        match self.wanted(tokens) {
            1 => 1,
            // A piece is so many sixteenths long as go into its share: at least 16 of 17.
            wanted => wanted + wanted / PIECE_LEAST + 1,
        }
    }

    /// How many pieces a step has, and positions of each.
    pub fn of(&self, s: Sizes) -> (u32, u32) {
        let mut span = s.past + s.tokens;
        if self.window > 0 {
            span = span.min(self.window + s.tokens - s.tokens.min(1));
        }
        let wanted = self.wanted(s.tokens);
        if wanted == 1 || span <= PIECE_ALONE {
            return (1, span);
        }
        let length = (span / wanted).max(PIECE_LEAST);
        (span.div_ceil(length), length)
    }
}

/// Workgroups of a dispatch in z.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// 1.
    One,
    /// One for each piece.
    Pieces(Pieces),
    /// 1 where there are several pieces, else the dispatch is left out.
    IfSeveral(Pieces),
}

impl Depth {
    /// Workgroups for these sizes; 0: none at all.
    pub fn eval(&self, s: Sizes) -> u32 {
        match self {
            Depth::One => 1,
            Depth::Pieces(p) => p.of(s).0,
            Depth::IfSeveral(p) => u32::from(p.of(s).0 > 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces cover every position, and are never more than there is room for.
    #[test]
    fn pieces_cover_everything() {
        for (kv_heads, group, rows, window) in
            [(4, 8, 8, 0), (1, 16, 4, 0), (1, 8, 8, 300), (16, 1, 4, 0), (2, 5, 4, 129)]
        {
            for by_token in [false, true] {
                let p = Pieces { kv_heads, group, rows, by_token, most: 240, window };
                for tokens in [1, 2, 3, 8, 31, 64, 512] {
                    for past in (0..3000).step_by(7).chain([8191, 32767, 1 << 20]) {
                        let s = Sizes { tokens, outputs: 1, past };
                        let (count, length) = p.of(s);
                        let span = if window > 0 { (past + tokens).min(window + tokens - 1) } else { past + tokens };
                        assert!(count * length >= span && (count - 1) * length < span, "{p:?} {s:?}");
                        assert!(count <= p.most_of(tokens) && count <= 256, "{p:?} {s:?}: {count}");
                    }
                }
            }
        }
    }
}
