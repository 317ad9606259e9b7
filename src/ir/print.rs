//! A graph as text: one line a node, as `moeray inspect --graph` shows it.

use super::{Graph, Router, Rows, Type, ValueId};
use std::fmt;

fn value(v: ValueId) -> String {
    format!("%{}", v.0)
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = |r: &Rows| match r {
            Rows::Tokens => "T".to_string(),
            Rows::Outputs => "O".to_string(),
            Rows::Fixed(n) => n.to_string(),
        };
        match self {
            Type::F32(r, c) => write!(f, "f32[{}, {c}]", rows(r)),
            Type::U32(r, c) => write!(f, "u32[{}, {c}]", rows(r)),
            Type::Cache(c) => write!(f, "cache{}", c.0),
            Type::Grad(w) => write!(f, "gradient{}", w.0),
        }
    }
}

impl fmt::Display for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "top {} of {}, {}", self.used, self.experts, self.variant())
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let list = |vs: &[ValueId]| vs.iter().map(|v| value(*v)).collect::<Vec<_>>().join(", ");
            let types: Vec<String> = node.outputs.iter().map(|v| self.ty(*v).to_string()).collect();
            let names: Vec<&str> = node.op.weights().iter().map(|w| self.weight(*w).name.as_str()).collect();
            write!(f, "{} = {}({})", list(&node.outputs), node.op.name(), list(&node.inputs))?;
            if !names.is_empty() {
                write!(f, " {{{}}}", names.join(", "))?;
            }
            let note = node.op.note();
            if !note.is_empty() {
                write!(f, " [{note}]")?;
            }
            writeln!(f, " : {}", types.join(", "))?;
        }
        for (name, v) in &self.outputs {
            writeln!(f, "output {name} = {}", value(*v))?;
        }
        Ok(())
    }
}
