//! A graph as text: one line a node, as `moeray inspect --graph` shows it.

use super::{Graph, GroupScore, Op, Renormalise, Router, Rows, Score, Type, ValueId};
use std::fmt;

fn value(v: ValueId) -> String {
    format!("%{}", v.0)
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = |r: &Rows| match r {
            Rows::Tokens => 'T',
            Rows::Outputs => 'O',
        };
        match self {
            Type::F32(r, c) => write!(f, "f32[{}, {c}]", rows(r)),
            Type::U32(r, c) => write!(f, "u32[{}, {c}]", rows(r)),
            Type::Cache(c) => write!(f, "cache{}", c.0),
        }
    }
}

/// `top 8 of 256 by sigmoid with selection bias, from 4 of 8 groups (sum of top two), renormalised (sum + 1e-20), times 2.5`.
impl fmt::Display for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let score = match self.score {
            Score::Softmax => "softmax",
            Score::SoftmaxOfSelected => "softmax of the selected",
            Score::Sigmoid => "sigmoid",
            Score::SqrtSoftplus => "sqrt-softplus",
        };
        write!(f, "top {} of {} by {score}", self.used, self.experts)?;
        if self.selection_bias.is_some() {
            write!(f, " with selection bias")?;
        }
        if let Some(g) = self.groups {
            let by = match g.score {
                GroupScore::Max => "best expert",
                GroupScore::TopTwo => "sum of top two",
            };
            write!(f, ", from {} of {} groups ({by})", g.used, g.count)?;
        }
        match self.renormalise {
            Renormalise::No => {}
            Renormalise::Sum => write!(f, ", renormalised")?,
            Renormalise::SumPlus(e) => write!(f, ", renormalised (sum + {e:e})")?,
            Renormalise::SumAtLeast(e) => write!(f, ", renormalised (sum at least {e:e})")?,
        }
        if self.scale != 1.0 {
            write!(f, ", times {}", self.scale)?;
        }
        Ok(())
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
            match &node.op {
                Op::Router(r) | Op::NormRouter { router: r, .. } => {
                    write!(f, " [{r}]")?;
                }
                Op::Attend(a) => write!(f, " [{} heads, window {:?}]", a.heads, a.window)?,
                Op::Glu(a)
                | Op::Act(a)
                | Op::LinearGlu { act: a, .. }
                | Op::LinearAct { act: a, .. }
                | Op::ExpertGlu { act: a, .. }
                | Op::ExpertAct { act: a, .. } => write!(f, " [{a:?}]")?,
                _ => {}
            }
            writeln!(f, " : {}", types.join(", "))?;
        }
        for (name, v) in &self.outputs {
            writeln!(f, "output {name} = {}", value(*v))?;
        }
        Ok(())
    }
}
