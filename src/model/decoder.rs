//! The decoder that all architectures here are, as plain data: a few sizes that its layers share, and each layer's parts.
//! The graph that follows from it is in [`super::graph`].

use super::rope::RopeSpec;
use crate::ir::{Activation, NormKind, Router, Temperature};

/// Sizes and switches of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoder {
    /// Hidden size, H, in columns.
    pub hidden: usize,
    /// Vocabulary, V, in tokens; 0 where only the embedding table says it.
    pub vocab: usize,
    /// Context length that the model was trained for, in tokens.
    pub context: usize,
    /// Width of dense feed-forward networks as the file says it, in columns, also where no layer has one; 0 where it does not.
    pub ffn: usize,
    /// Kind, epsilon and offset of every norm.
    pub norm: NormSpec,
    /// Name of the last norm.
    pub output_norm: &'static str,
    /// Whether a missing output matrix means that the embedding serves for it.
    pub tied: bool,
    /// Factors between the parts.
    pub multipliers: Multipliers,
    /// Bound of the logits, c: `c · tanh(logits / c)`.
    pub softcap: Option<f32>,
    /// The transformer layers, in order.
    pub layers: Vec<LayerSpec>,
}

/// What the norms of a model share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// What is divided by.
    pub kind: NormKind,
    /// Added under the root.
    pub eps: f32,
    /// Added to the stored weights: 1 where a checkpoint stores differences from 1.
    pub offset: f32,
}

/// Factors that some families put between the parts of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Multipliers {
    /// Factor on the embedding.
    pub embedding: f32,
    /// Factor on what attention and feed-forward network add to the residual.
    pub residual: f32,
    /// Factor on the logits.
    pub logits: f32,
}

impl Default for Multipliers {
    fn default() -> Self {
        Multipliers { embedding: 1.0, residual: 1.0, logits: 1.0 }
    }
}

/// One transformer layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    /// What mixes the tokens.
    pub mixer: Mixer,
    /// What each token goes through by itself.
    pub ffn: Ffn,
    /// Norms before and behind the two.
    pub norms: LayerNorms,
}

/// The norms of a layer; the first, before the mixer, is `attn_norm` in every family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerNorms {
    /// Name of the norm before the feed-forward network.
    pub ffn: &'static str,
    /// Whether norms follow the mixer and the feed-forward network too (`post_attention_norm`, `post_ffw_norm`), and a factor
    /// of the layer's result where the file has one (`layer_output_scale`).
    pub post: bool,
}

impl Default for LayerNorms {
    fn default() -> Self {
        LayerNorms { ffn: "ffn_norm", post: false }
    }
}

/// What mixes the tokens of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Mixer {
    /// Attention over the KV cache.
    Attention(AttentionSpec),
    /// Latent attention, over a cache of latent vectors.
    Latent(LatentSpec),
    /// Gated DeltaNet.
    Delta(DeltaSpec),
    /// A short convolution between two gates.
    Conv(ConvSpec),
}

/// Attention with heads of queries that share heads of keys and values.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Columns of a head, D.
    pub head_dim: usize,
    /// Factor on the dot products.
    pub scale: f32,
    /// Which earlier positions a query sees.
    pub span: Span,
    /// How queries and keys depend on their position.
    pub position: Position,
    /// Normalisation of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Whether each head of the values is normalised, without weights.
    pub v_norm: bool,
    /// Whether there is no projection of values: they are the keys before their norm and rotation.
    pub k_eq_v: bool,
    /// Whether a sigmoid gate scales the output; its rows lie behind each head's in the query matrix.
    pub gated: bool,
    /// Whether each head has a sink.
    pub sinks: bool,
    /// Biases of the projections of queries, keys and values.
    pub bias: Bias,
}

/// Which earlier positions a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// All of them: global attention.
    Context,
    /// So many positions up to its own.
    Window(usize),
    /// Those of its own chunk of so many positions.
    AttentionChunk(usize),
}

/// How queries and keys depend on their position.
#[derive(Clone, Debug, PartialEq)]
pub enum Position {
    /// A rotation.
    Rope(RopeSpec),
    /// Nothing, but for a factor on queries that grows with their position, where there is one.
    Unrotated(Option<Temperature>),
}

/// Normalisation of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkNorm {
    /// What is normalised together.
    pub over: NormOver,
    /// Whether queries and keys are normalised after the rotation instead of before.
    pub after_rope: bool,
}

/// What a norm of queries and keys takes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOver {
    /// Each head by itself, one weight of `head_dim` for all.
    PerHead,
    /// The whole projection.
    WholeRow,
    /// Each head by itself, without weights.
    Unweighted,
}

/// Whether projections have biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// Always.
    Yes,
    /// Where the file has them.
    IfPresent,
}

/// Sizes of latent attention.
#[derive(Clone, Debug, PartialEq)]
pub struct LatentSpec {
    /// Query heads.
    pub heads: usize,
    /// Columns of the latent vector of keys and values.
    pub kv_rank: usize,
    /// Columns of the latent vector of queries, where they have one.
    pub q_rank: Option<usize>,
    /// Columns of a head that do not rotate.
    pub nope: usize,
    /// Columns of a head that rotate.
    pub rope: usize,
    /// Columns of a head's value.
    pub value: usize,
    /// Factor on the dot products.
    pub scale: f32,
    /// The rotation of `rope` columns.
    pub rotation: RopeSpec,
}

/// Sizes of gated DeltaNet layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaSpec {
    /// Heads of queries and keys.
    pub k_heads: usize,
    /// Heads of values.
    pub v_heads: usize,
    /// Columns of a query and of a key.
    pub k_dim: usize,
    /// Columns of a value.
    pub v_dim: usize,
    /// Taps of the convolution before it.
    pub taps: usize,
    /// Value heads lie key head after key head within each group (`h % k_heads`), as llama.cpp stores Qwen3.5.
    pub tiled: bool,
}

/// Sizes of a short convolution over the hidden columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// Its taps.
    pub taps: usize,
}

/// The feed-forward part of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Ffn {
    /// One unit for every token.
    Dense(Glu),
    /// Experts.
    Moe(Moe),
    /// One unit and experts side by side, each with norms of its own; the norm before the layer's feed-forward part is that of
    /// the dense unit.
    DenseBesideMoe(Glu, Moe),
}

/// A feed-forward unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Glu {
    /// Width, I, in columns.
    pub width: usize,
    /// Activation.
    pub act: Activation,
    /// Whether there is a gate: `down(act(gate x) · up x)`, else `down(act(gate x))`.
    pub gated: bool,
}

/// Experts and the router that chooses among them.
#[derive(Clone, Debug, PartialEq)]
pub struct Moe {
    /// The selection; the weights of its selection bias and factors are found while the graph is built.
    pub router: Router,
    /// Whether there is a selection bias.
    pub selection_bias: bool,
    /// Width and activation of a hidden layer in the router.
    pub router_hidden: Option<(usize, Activation)>,
    /// Whether the router reads the residual through a norm of its own, whose stored weights this factor multiplies.
    pub router_norm: Option<f32>,
    /// Whether the router's weights scale what goes into the experts instead of what comes out.
    pub scale_expert_inputs: bool,
    /// The unit that each routed expert is.
    pub experts: Glu,
    /// Shared experts.
    pub shared: Option<Shared>,
}

impl Moe {
    /// Experts as most families have them.
    pub(super) fn new(router: Router, experts: Glu) -> Moe {
        Moe {
            router,
            selection_bias: false,
            router_hidden: None,
            router_norm: None,
            scale_expert_inputs: false,
            experts,
            shared: None,
        }
    }
}

/// Shared experts: dense units beside the routed ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shared {
    /// The unit that each is.
    pub unit: Glu,
    /// How many there are, summed.
    pub count: usize,
    /// Whether a sigmoid gate scales them.
    pub gated: bool,
}

impl Shared {
    /// One unit of a width, with the routed experts' activation; `None` where the width is 0.
    pub(super) fn one(width: usize, experts: Glu) -> Option<Shared> {
        (width > 0).then_some(Shared { unit: Glu { width, ..experts }, count: 1, gated: false })
    }
}

impl Decoder {
    /// The experts of the first layer that has any; `None` for a dense model. Layers with experts are alike in every family.
    pub fn moe(&self) -> Option<&Moe> {
        self.layers.iter().find_map(LayerSpec::moe)
    }

    /// The dense unit of the first layer that has one.
    pub fn dense(&self) -> Option<&Glu> {
        self.layers.iter().find_map(LayerSpec::dense)
    }

    /// The usual attention of the first layer that has it.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        self.layers.iter().find_map(LayerSpec::attention)
    }

    /// The latent attention of the first layer that has it.
    pub fn latent(&self) -> Option<&LatentSpec> {
        self.layers.iter().find_map(|l| if let Mixer::Latent(m) = &l.mixer { Some(m) } else { None })
    }

    /// Query heads, heads of keys and values, and columns of a head that positions rotate, of the first layer with attention;
    /// latent attention has one head of keys.
    pub fn heads(&self) -> Option<[usize; 3]> {
        let usual = self.attention().map(|a| [a.heads, a.kv_heads, a.head_dim]);
        usual.or(self.latent().map(|m| [m.heads, 1, m.rope]))
    }

    /// The rotation of the first layer that has one.
    pub fn rope(&self) -> Option<&RopeSpec> {
        self.layers.iter().find_map(LayerSpec::rope)
    }

    /// Layers without experts in a model that has experts.
    pub fn dense_layers(&self) -> Vec<usize> {
        let dense = |i: &usize| self.layers[*i].moe().is_none();
        if self.moe().is_none() { vec![] } else { (0..self.layers.len()).filter(dense).collect() }
    }
}

impl LayerSpec {
    /// Its experts.
    pub fn moe(&self) -> Option<&Moe> {
        match &self.ffn {
            Ffn::Moe(m) | Ffn::DenseBesideMoe(_, m) => Some(m),
            Ffn::Dense(_) => None,
        }
    }

    /// Its dense unit, without shared experts.
    pub fn dense(&self) -> Option<&Glu> {
        match &self.ffn {
            Ffn::Dense(g) | Ffn::DenseBesideMoe(g, _) => Some(g),
            Ffn::Moe(_) => None,
        }
    }

    /// Its attention, where it has the usual one.
    pub fn attention(&self) -> Option<&AttentionSpec> {
        if let Mixer::Attention(a) = &self.mixer { Some(a) } else { None }
    }

    /// Its rotation, where it has one.
    pub fn rope(&self) -> Option<&RopeSpec> {
        match &self.mixer {
            Mixer::Attention(AttentionSpec { position: Position::Rope(r), .. }) => Some(r),
            Mixer::Latent(m) => Some(&m.rotation),
            Mixer::Attention(_) | Mixer::Delta(_) | Mixer::Conv(_) => None,
        }
    }
}
