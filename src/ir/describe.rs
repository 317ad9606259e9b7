//! What is true of an op whatever its operands: its name, its weights, its state, and what printing shows of it.

use super::{Linear, Norm, Op, Router, ShortConv, StateId, WeightId};

/// What [`Op::describe`] tells of an op.
trait Description {
    /// Weights that the op reads, in order.
    fn weights(&mut self, _: &[WeightId]) {}
    /// The recurrent state that the op reads and overwrites.
    fn state(&mut self, _: StateId) {}
    /// What printing shows behind the op's name and its weights.
    fn note(&mut self, _: std::fmt::Arguments<'_>) {}
}

/// Collects the weights.
struct Weights(Vec<WeightId>);
impl Description for Weights {
    fn weights(&mut self, list: &[WeightId]) {
        self.0.extend(list);
    }
}

/// Keeps the state.
struct State(Option<StateId>);
impl Description for State {
    fn state(&mut self, s: StateId) {
        self.0 = Some(s);
    }
}

/// Keeps the note.
struct Note(String);
impl Description for Note {
    fn note(&mut self, text: std::fmt::Arguments<'_>) {
        self.0 = text.to_string();
    }
}

fn norm(d: &mut impl Description, n: &Norm) {
    n.weights().for_each(|w| d.weights(&[w]));
}

fn linear(d: &mut impl Description, l: &Linear) {
    d.weights(&[l.weight]);
    l.bias.iter().for_each(|b| d.weights(&[*b]));
}

fn router(d: &mut impl Description, r: &Router) {
    r.selection_bias.iter().chain(&r.expert_scale).for_each(|w| d.weights(&[*w]));
    d.note(format_args!("{r}"));
}

fn short_conv(d: &mut impl Description, c: &ShortConv) {
    d.weights(&[c.weight]);
    c.bias.iter().for_each(|b| d.weights(&[*b]));
    d.state(c.state);
    d.note(format_args!("{} taps, state{}", c.taps, c.state.0));
}

impl Op {
    /// Tells `d` what an op holds: its weights, its state, and what printing shows of it.
    fn describe(&self, d: &mut impl Description) {
        match self {
            Op::Tokens
            | Op::Input { .. }
            | Op::Rope(_)
            | Op::HeadIds { .. }
            | Op::JoinHeads { .. }
            | Op::KvStore { .. }
            | Op::Add
            | Op::Scale(_)
            | Op::SigmoidGate
            | Op::ScaleExpertInputs
            | Op::ExpertCombine
            | Op::TakeOutputs => {}
            Op::HostExperts { region, .. } => d.note(format_args!("region {region}")),
            Op::LocalIds { first, count } => d.note(format_args!("{count} from {first} on")),
            Op::Math(m) => m.weight().iter().for_each(|w| d.weights(&[*w])),
            Op::Grad(g) => d.weights(&g.weights()),
            Op::Embed { table, .. } => d.weights(&[*table]),
            Op::RmsNorm(n) => norm(d, n),
            Op::RopeStore { q_norm, k_norm, .. } => q_norm.iter().chain(k_norm).for_each(|n| norm(d, n)),
            Op::Linear(l)
            | Op::ExpertLinear(l)
            | Op::LinearAdd { linear: l, .. }
            | Op::ExpertDownAdd { linear: l, .. } => linear(d, l),
            Op::NormLinears { norm: n, parts } => {
                n.iter().for_each(|n| norm(d, n));
                parts.iter().for_each(|l| linear(d, l));
            }
            Op::Attend(a) => {
                a.sinks.iter().for_each(|s| d.weights(&[*s]));
                d.note(format_args!("{} heads, window {:?}", a.heads, a.window));
            }
            Op::ShortConv(c) => short_conv(d, c),
            Op::DeltaNet(n) => {
                d.weights(&[n.decay, n.dt_bias]);
                d.state(n.state);
                d.note(format_args!("{} heads on {}, state{}", n.v_heads, n.k_heads, n.state.0));
            }
            Op::Glu(act) | Op::Act(act) => d.note(format_args!("{act:?}")),
            Op::LinearGlu { gate, up, act } => {
                d.weights(&[*gate, *up]);
                d.note(format_args!("{act:?}"));
            }
            Op::LinearAct { linear: l, act } | Op::ExpertAct { linear: l, act } => {
                linear(d, l);
                d.note(format_args!("{act:?}"));
            }
            Op::ExpertGlu { gate, up, act } => {
                linear(d, gate);
                linear(d, up);
                d.note(format_args!("{act:?}"));
            }
            Op::Router(r) => router(d, r),
            Op::NormRouter { norm: n, linear: l, router: r } => {
                norm(d, n);
                linear(d, l);
                router(d, r);
            }
        }
    }

    /// The op's name: the stem of its page, its shader and its test cases.
    pub fn name(&self) -> &'static str {
        match self {
            Op::Tokens => "tokens",
            Op::Input { .. } => "input",
            Op::Embed { .. } => "embed",
            Op::RmsNorm(_) => "rms_norm",
            Op::Linear(_) => "linear",
            Op::Rope(_) => "rope",
            Op::HeadIds { .. } => "head_ids",
            Op::JoinHeads { .. } => "join_heads",
            Op::KvStore { .. } => "kv_store",
            Op::Attend(_) => "attend",
            Op::ShortConv(_) => "short_conv",
            Op::DeltaNet(_) => "delta_net",
            Op::Add => "add",
            Op::Scale(_) => "scale",
            Op::Glu(_) => "glu",
            Op::Act(_) => "act",
            Op::SigmoidGate => "sigmoid_gate",
            Op::Router(_) => "router",
            Op::ScaleExpertInputs => "scale_expert_inputs",
            Op::ExpertLinear(_) => "expert_linear",
            Op::ExpertCombine => "expert_combine",
            Op::TakeOutputs => "take_outputs",
            Op::HostExperts { .. } => "host_experts",
            Op::LocalIds { .. } => "local_ids",
            Op::Math(m) => m.name(),
            Op::Grad(g) => g.name(),
            Op::NormLinears { .. } => "norm_linears",
            Op::RopeStore { .. } => "rope_store",
            Op::LinearAdd { .. } => "linear_add",
            Op::LinearGlu { .. } => "linear_glu",
            Op::LinearAct { .. } => "linear_act",
            Op::NormRouter { .. } => "norm_router",
            Op::ExpertGlu { .. } => "expert_glu",
            Op::ExpertAct { .. } => "expert_act",
            Op::ExpertDownAdd { .. } => "expert_down_add",
        }
    }

    /// The weights that the op reads.
    pub fn weights(&self) -> Vec<WeightId> {
        let mut w = Weights(vec![]);
        self.describe(&mut w);
        w.0
    }

    /// The recurrent state that the op reads and overwrites.
    pub fn state(&self) -> Option<StateId> {
        let mut s = State(None);
        self.describe(&mut s);
        s.0
    }

    /// What the text of a graph shows behind the op's weights; empty for most ops.
    pub fn note(&self) -> String {
        let mut n = Note(String::new());
        self.describe(&mut n);
        n.0
    }

    /// Whether the op multiplies with the matrices of chosen experts.
    pub fn is_routed(&self) -> bool {
        use Op::{ExpertAct, ExpertDownAdd, ExpertGlu, ExpertLinear};
        matches!(self, ExpertLinear(_) | ExpertAct { .. } | ExpertGlu { .. } | ExpertDownAdd { .. })
    }
}
