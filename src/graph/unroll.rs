//! A model's graph rewritten for training: attention on the keys and values themselves instead of a cache, positions that restart
//! with every sequence, and results for every token.
//!
//! The rewritten graph reads an input of ids, `starts` `[T, 1]`: for each row the row where its sequence begins. Gradients cannot
//! flow through a cache, and packed texts must not see each other. What has no gradient is refused here, by name.

use super::Builder;
use crate::{
    error::{Error, Result},
    ir::{Attention, Graph, Math, Node, Op, Rope, Rotation, SelfAttention, ValueId},
    ops::train::STARTS,
};
use std::collections::HashMap;

/// The graph for training, with contexts of at most `context` positions.
///
/// # Errors
/// [`Error::Unsupported`] names an op or a form of attention that cannot be trained.
pub fn for_training(graph: &Graph, context: usize) -> Result<Graph> {
    let mut unroll = Unroll {
        graph,
        context,
        builder: Builder::resume(Graph { weights: graph.weights.clone(), ..Graph::default() }),
        values: HashMap::new(),
        caches: HashMap::new(),
        starts: None,
    };
    for node in &graph.nodes {
        unroll.builder.set_layer(node.layer);
        unroll.node(node)?;
    }
    for (name, v) in &graph.outputs {
        let v = unroll.value(*v)?;
        unroll.builder.output(name.clone(), v);
    }
    Ok(unroll.builder.finish())
}

struct Unroll<'a> {
    graph: &'a Graph,
    context: usize,
    builder: Builder,
    values: HashMap<ValueId, ValueId>,
    /// Keys and values by cache.
    caches: HashMap<u32, Vec<ValueId>>,
    starts: Option<ValueId>,
}

impl Unroll<'_> {
    fn value(&self, v: ValueId) -> Result<ValueId> {
        self.values.get(&v).copied().ok_or_else(|| Error::Graph(format!("%{} is used before it is made", v.0)))
    }

    fn starts(&mut self) -> Result<ValueId> {
        if let Some(v) = self.starts {
            return Ok(v);
        }
        let v = self.builder.one(Op::Math(Math::Ids { name: STARTS.into(), cols: 1 }), &[])?;
        self.starts = Some(v);
        Ok(v)
    }

    fn node(&mut self, node: &Node) -> Result<()> {
        let operand = |i: usize| self.value(node.inputs[i]);
        let made = match &node.op {
            Op::KvStore { cache } => {
                let kv = node.inputs.iter().map(|v| self.value(*v)).collect::<Result<Vec<_>>>()?;
                self.caches.insert(cache.0, kv);
                return Ok(());
            }
            Op::TakeOutputs => vec![operand(0)?],
            Op::Rope(r) => {
                let (x, rotation) = (operand(0)?, self.rotation(r));
                let starts = self.starts()?;
                self.builder.add(Op::Math(Math::Rotate(rotation)), &[x, starts])?
            }
            Op::Attend(a) => {
                let q = operand(0)?;
                vec![self.attend(a, q)?]
            }
            Op::ShortConv(_) | Op::DeltaNet(_) => {
                let what = node.op.name();
                return Err(Error::Unsupported(format!(
                    "{what} has no gradient: recurrent layers cannot be trained yet"
                )));
            }
            _ => {
                let inputs = node.inputs.iter().map(|v| self.value(*v)).collect::<Result<Vec<_>>>()?;
                self.builder.add(node.op.clone(), &inputs)?
            }
        };
        node.outputs.iter().zip(made).for_each(|(old, new)| {
            self.values.insert(*old, new);
        });
        Ok(())
    }

    fn rotation(&self, rope: &Rope) -> Rotation {
        let r = rope.for_context(self.context);
        let freq = r.inv_freq.iter().map(|f| f64::from(*f)).collect();
        let (head_dim, dims, pairs, scale) = (r.head_dim, r.dims, r.pairs, f64::from(r.scale));
        Rotation { head_dim, dims, pairs, freq, scale, temperature: r.temperature, inverse: false }
    }

    fn attend(&mut self, a: &Attention, q: ValueId) -> Result<ValueId> {
        let decl = &self.graph.caches[a.cache.0 as usize];
        let (k, v) = match self.caches.get(&a.cache.0).map(Vec::as_slice) {
            Some([k, v]) => (*k, *v),
            // A value is the first numbers of its key.
            Some([k]) if decl.kv_heads == 1 => {
                let v = Math::Columns { first: 0, count: decl.v_dim };
                (*k, self.builder.one(Op::Math(v), &[*k])?)
            }
            Some(_) => {
                let what = "attend on several heads of latent vectors cannot be trained yet";
                return Err(Error::Unsupported(what.into()));
            }
            None => return Err(Error::Graph("attend on a cache that nothing is written to".into())),
        };
        let starts = self.starts()?;
        let attention = SelfAttention {
            heads: a.heads,
            kv_heads: decl.kv_heads,
            k_dim: decl.k_dim,
            v_dim: decl.v_dim,
            scale: f64::from(a.scale),
            window: a.window,
            attention_chunk: a.attention_chunk,
            sinks: a.sinks,
        };
        Ok(self.builder.add(Op::Math(Math::SelfAttend(attention)), &[q, k, v, starts])?[0])
    }
}
