//! Ops that depend on positions: rotary embeddings, and writing to the cache.

use super::*;

impl State {
    /// Applies an optional norm and a rotary embedding to a value, in either order.
    pub(super) fn norm_and_rope(
        &mut self,
        f: StepContext<'_>,
        x: ValueId,
        norm: Option<&Norm>,
        rope: &Rope,
        qk_norm_after_rope: bool,
        out: &mut [f32],
    ) -> Result<()> {
        let cols = f.place(x).cols;
        let table = rope_table(&mut self.ropes, rope, f)?;
        let env = env(f, &self.scratch, &self.all_tokens);
        let p = f.place(x);
        let from = &self.floats[p.buffer][..f.rows(p.rows) * p.cols];
        each_row(env, from, cols, out, &|t, x, y| {
            match norm {
                Some(n) if !qk_norm_after_rope => {
                    env.simd(RmsNorm { x, y: &mut *y, w: f.vector(n.weight), eps: n.eps })
                }
                _ => y.copy_from_slice(x),
            }
            env.simd(table.rotation(y, t));
            if let (Some(n), true) = (norm, qk_norm_after_rope) {
                let w = f.vector(n.weight);
                env.simd(NormInPlace { x: y, w, eps: n.eps });
            }
        })
    }

    /// Runs `rope_store`: writes rotated queries to `out`, rotated keys and values to the cache.
    pub(super) fn rope_store(&mut self, f: StepContext<'_>, node: &Node, out: &mut [f32]) -> Result<()> {
        let Op::RopeStore { q_norm, k_norm, rope, qk_norm_after_rope, cache } = &node.op else {
            return Err(Error::Graph(format!("{} rotates and stores nothing", node.op.name())));
        };
        let [q, k, v] = [0, 1, 2].map(|i| node.inputs[i]);
        self.norm_and_rope(f, q, q_norm.as_ref(), rope, *qk_norm_after_rope, out)?;
        let mut keys = take(&mut self.normed);
        keys.grow(self.floats_of(f, k).len());
        let rotated = self.norm_and_rope(f, k, k_norm.as_ref(), rope, *qk_norm_after_rope, &mut keys);
        let stored = rotated.and_then(|()| self.store(f, k, Some(&keys), Some(v), cache.0));
        self.normed = keys;
        stored
    }

    /// Writes keys (`rotated` ones where given, else those of value `k`) and values to the caches of their sequences.
    pub(super) fn store(
        &mut self,
        f: StepContext<'_>,
        k: ValueId,
        rotated: Option<&[f32]>,
        v: Option<ValueId>,
        cache: u32,
    ) -> Result<()> {
        let mut sequences = take(&mut self.sequences);
        let keys = self.floats_of(f, k);
        let keys = rotated.map_or(keys, |t| &t[..keys.len()]);
        let env = self.env(f);
        let done = f.segments.iter().try_for_each(|s| {
            let c = &mut sequences[s.sequence].caches[cache as usize];
            c.store_keys(env, s.past, s.of(keys, f.place(k).cols))?;
            match v {
                Some(v) => c.store_values(env, s.past, s.of(self.floats_of(f, v), f.place(v).cols)),
                None => Ok(()),
            }
        });
        self.sequences = sequences;
        done
    }
}

/// The table of a rope, filled with the positions of this step.
fn rope_table<'a>(tables: &'a mut [RopeTable], rope: &Rope, f: StepContext<'_>) -> Result<&'a RopeTable> {
    let table = tables.iter_mut().find(|t| t.is_of(rope));
    let table = table.ok_or_else(|| Error::Graph("a rope without a table".into()))?;
    table.make(f.segments.iter().flat_map(|s| s.past..s.end()));
    Ok(table)
}
