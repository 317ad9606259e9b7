//! Assigns a buffer to every value of the graph; values whose lifetimes do not overlap share one.

use crate::ir::{Graph, Rows, Type, ValueId};

/// What a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Whether it holds u32 ids instead of f32 values.
    pub ids: bool,
    /// Whether it has a row for each token or for each output of a step.
    pub rows: Rows,
    /// The columns of the widest value in it.
    pub cols: usize,
}

/// Where a value lives, and its shape.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Index into [`Layout::buffers`]; meaningless for caches.
    pub buffer: usize,
    /// The columns of the value.
    pub cols: usize,
    /// Whether it has a row for each token or for each output of a step.
    pub rows: Rows,
}

/// Buffers, and the place of each value.
#[derive(Debug, Default)]
pub struct Layout {
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// The place of each value, by value id.
    pub places: Vec<Place>,
}

impl Layout {
    /// Lays a graph out: goes through the nodes in order, gives each output the free buffer that fits best (or widens one, or
    /// makes one), and frees the buffers of values that nobody reads later.
    pub fn new(graph: &Graph) -> Self {
        let mut last = vec![0usize; graph.values.len()];
        for (i, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().chain(&node.outputs).for_each(|v| last[v.0 as usize] = i);
        }
        graph.outputs.iter().for_each(|(_, v)| last[v.0 as usize] = usize::MAX);
        let nowhere = Place { buffer: 0, cols: 0, rows: Rows::Tokens };
        let mut layout = Layout { buffers: vec![], places: vec![nowhere; graph.values.len()] };
        let mut free: Vec<usize> = vec![];
        for (i, node) in graph.nodes.iter().enumerate() {
            // Outputs first: they must not share with this node's inputs.
            for v in &node.outputs {
                layout.place(graph, *v, &mut free);
            }
            let mut done: Vec<ValueId> = node.inputs.iter().chain(&node.outputs).copied().collect();
            done.sort();
            done.dedup();
            for v in done {
                if last[v.0 as usize] == i && graph.ty(v).dims().is_some() {
                    free.push(layout.places[v.0 as usize].buffer);
                }
            }
        }
        layout
    }

    fn place(&mut self, graph: &Graph, v: ValueId, free: &mut Vec<usize>) {
        let (ids, rows, cols) = match graph.ty(v) {
            Type::F32(r, c) => (false, r, c),
            Type::U32(r, c) => (true, r, c),
            Type::Cache(_) | Type::Grad(_) => return,
        };
        let fits = |b: &usize| self.buffers[*b].ids == ids && self.buffers[*b].rows == rows;
        // The narrowest that is wide enough, else the widest.
        let key = |b: &usize| {
            let have = self.buffers[*b].cols;
            if have >= cols { (0, have) } else { (1, usize::MAX - have) }
        };
        let best = free.iter().copied().enumerate().filter(|(_, b)| fits(b)).min_by_key(|(_, b)| key(b));
        let buffer = match best {
            Some((at, b)) => {
                free.swap_remove(at);
                self.buffers[b].cols = self.buffers[b].cols.max(cols);
                b
            }
            None => {
                self.buffers.push(Buffer { ids, rows, cols });
                self.buffers.len() - 1
            }
        };
        self.places[v.0 as usize] = Place { buffer, cols, rows };
    }
}
