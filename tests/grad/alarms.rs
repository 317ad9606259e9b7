//! Known mistakes of others, made on purpose: the comparison with differences must reject each.

use super::net::{Net, differences};
use moeray::{
    backend::training::{
        Training,
        walk::{Nodes, Walk},
    },
    graph::{TrainProgram, formula},
    ir::{Grad, Linear, Math, Node, Op, Router, Score, SelfAttention},
    ops::train::{Feed, Scope, Value, eval},
};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mistake {
    None,
    /// The gradient that comes from above is taken as 1.
    DroppedUpstream,
    TransposedOuter,
    /// Only the first slot of a token gives back to its input.
    MissingSumOverSlots,
    /// Every second query head is left out of the gradient of the keys.
    HeadsLeftOut,
    /// The logarithm of the denominator is off.
    ShiftedLse,
    /// One pair of token and expert is lost.
    LostPair,
    /// Pairs are summed in another order.
    Unstable,
}

struct Mistaken(Mistake);

impl Mistaken {
    /// The node's operand `i` changed by `f`.
    fn changed<T: moeray::ops::Real>(
        node: &Node,
        values: &[Value<T>],
        i: usize,
        f: impl Fn(usize, f64) -> f64,
    ) -> Vec<Value<T>> {
        let mut values = values.to_vec();
        let Value::Numbers(a) = &mut values[node.inputs[i].0 as usize] else { panic!("no numbers") };
        a.data.iter_mut().enumerate().for_each(|(n, v)| *v = T::of(f(n, v.get())));
        values
    }
}

impl<T: moeray::ops::Real> Nodes<T> for Mistaken {
    fn describe(&self) -> String {
        format!("{:?}", self.0)
    }

    fn eval(
        &mut self,
        node: &Node,
        values: &[Value<T>],
        s: &mut Scope<'_, T>,
    ) -> moeray::Result<Option<Vec<Value<T>>>> {
        // The factor of the loss comes a second time behind it, in the backward pass.
        let loss = s.graph.outputs.iter().find(|(n, _)| n == moeray::graph::LOSS).unwrap().1;
        let backward = node.outputs[0] > loss;
        let is_affine = backward && matches!(node.op, Op::Math(Math::Affine { factor, .. }) if factor == 0.7);
        let made = match (self.0, &node.op) {
            (Mistake::DroppedUpstream, Op::Math(Math::Affine { .. })) if is_affine => {
                values[node.inputs[0].0 as usize].clone()
            }
            (Mistake::TransposedOuter, Op::Grad(Grad::Outer { .. })) => {
                let mut node = node.clone();
                node.inputs.swap(0, 1);
                return Ok(Some(eval(&node, values, s).unwrap()));
            }
            (Mistake::MissingSumOverSlots, Op::Math(Math::SumSlots { slots })) => {
                let Value::Numbers(x) = &values[node.inputs[0].0 as usize] else { panic!("no numbers") };
                Value::Numbers(moeray::ops::math::columns(x, 0, x.cols / slots))
            }
            (Mistake::HeadsLeftOut, Op::Grad(Grad::SelfAttend(a))) => {
                let whole = eval(node, values, s).unwrap();
                let odd = |n: usize| n / a.v_dim % 2 == 1;
                let without = Self::changed(node, values, 6, |n, v| if odd(n) { 0.0 } else { v });
                let part = eval(node, &without, s).unwrap();
                return Ok(Some(vec![whole[0].clone(), part[1].clone(), whole[2].clone()]));
            }
            (Mistake::ShiftedLse, Op::Grad(Grad::SelfAttend(_))) => {
                let shifted = Self::changed(node, values, 5, |_, v| v + 0.01);
                return Ok(Some(eval(node, &shifted, s).unwrap()));
            }
            (Mistake::LostPair, Op::Grad(Grad::ExpertOuter { .. })) => {
                let lost = Self::changed(node, values, 1, |n, v| if n < 3 { 0.0 } else { v });
                return Ok(Some(eval(node, &lost, s).unwrap()));
            }
            (Mistake::Unstable, Op::Grad(Grad::ExpertOuter { .. })) => return Ok(Some(unstable(node, values, s))),
            _ => return Ok(None),
        };
        Ok(Some(vec![made]))
    }
}

/// The gradient of experts' matrices pair by pair, each rounded, the last pair first.
fn unstable<T: moeray::ops::Real>(node: &Node, values: &[Value<T>], s: &mut Scope<'_, T>) -> Vec<Value<T>> {
    let Value::Numbers(d) = &values[node.inputs[1].0 as usize] else { panic!("no numbers") };
    let pairs = d.data.len() / 3;
    for pair in (0..pairs).rev() {
        let one = Mistaken::changed(node, values, 1, |n, v| if n / 3 == pair { v } else { 0.0 });
        eval(node, &one, s).unwrap();
    }
    vec![Value::Nothing]
}

/// A small model with all that can go wrong: attention of grouped heads, experts, a square matrix.
pub fn net() -> (TrainProgram, Feed) {
    let mut n = Net::new(6, 11);
    let (q, k, v) = (n.input(8), n.input(4), n.input(4));
    let starts = n.ids("starts", 1, vec![0, 0, 0, 0, 4, 4]);
    let a = SelfAttention {
        heads: 4,
        kv_heads: 2,
        k_dim: 2,
        v_dim: 2,
        scale: 0.7,
        window: None,
        attention_chunk: None,
        sinks: None,
    };
    let o = n.b.add(Op::Math(Math::SelfAttend(a)), &[q, k, v, starts]).unwrap()[0];
    let square = Linear { weight: n.weight("square", &[8, 8]), bias: None };
    let x = n.b.one(Op::Linear(square), &[o]).unwrap();
    let gate = Linear { weight: n.weight("gate", &[4, 8]), bias: None };
    let logits = n.b.one(Op::Linear(gate), &[x]).unwrap();
    let choice = formula::top_k(&mut n.b, logits, Router::new(4, 2, Score::SoftmaxOfSelected)).unwrap();
    let experts = Linear { weight: n.weight("experts", &[4, 3, 8]), bias: None };
    let y = formula::routed_experts(&mut n.b, formula::ExpertNet::Linear(experts), x, choice).unwrap();
    n.enters(y);
    n.trained(&[])
}

#[test]
fn differences_reject_every_known_mistake() {
    let judge = |mistake| {
        let (program, feed) = net();
        differences(&mut Walk::<f64, _>::new(program, Mistaken(mistake)), &feed)
    };
    assert!(judge(Mistake::None) <= 1e-6);
    for mistake in [
        Mistake::DroppedUpstream,
        Mistake::TransposedOuter,
        Mistake::MissingSumOverSlots,
        Mistake::HeadsLeftOut,
        Mistake::ShiftedLse,
        Mistake::LostPair,
    ] {
        let error = judge(mistake);
        assert!(error > 1e-3, "{mistake:?} passes with an error of {error:.1e}");
    }
}

#[test]
fn an_unstable_order_of_pairs_changes_bits() {
    let bits = |mistake| {
        let (program, feed) = net();
        let mut training = Walk::<f32, _>::new(program, Mistaken(mistake));
        training.micro(&feed).unwrap();
        let n = training.parameters().len();
        (0..n).flat_map(|i| training.gradient(i).unwrap()).map(f64::to_bits).collect::<Vec<u64>>()
    };
    assert_eq!(bits(Mistake::None), bits(Mistake::None));
    assert_ne!(bits(Mistake::None), bits(Mistake::Unstable));
}
