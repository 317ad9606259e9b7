//! The formulas as a table, for the README.

use super::ROUTER_LOSSES;

/// What the literature trains, and what asks for it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formula {
    /// In words.
    pub what: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// Keys of a training run's configuration that ask for it, as TOML; empty where only the library has it.
    pub keys: &'static [&'static str],
    /// The library's call, where it is no part of a language model; else empty.
    pub library: &'static str,
    /// The function of [`crate::graph::formula`], or the ops, that build it.
    pub call: &'static str,
}

/// What keys of a configuration ask for.
const fn f(what: &'static str, source: &'static str, keys: &'static [&'static str], call: &'static str) -> Formula {
    Formula { what, source, keys, library: "", call }
}

/// What only the library has.
const fn l(what: &'static str, source: &'static str, library: &'static str, call: &'static str) -> Formula {
    Formula { what, source, keys: &[], library, call }
}

/// A key of models from nothing that have it alone.
const MINI: &str = "architecture.model_type = \"mini_mixtral\"";

/// All formulas.
pub fn formulas() -> Vec<Formula> {
    OTHERS.iter().copied().chain(ROUTER_LOSSES.iter().map(|l| f(l.what, l.source, l.keys, l.call))).collect()
}

/// Those beside the losses of routers.
const OTHERS: &[Formula] = &[
    f(
        "a shared expert beside routed ones, behind a gate",
        "Qwen2-MoE",
        &["architecture.model_type = \"qwen2_moe\"", "architecture.shared_expert_intermediate_size = 32"],
        "`routed_experts`, `Op::Linear`",
    ),
    f(
        "shared experts beside routed ones, summed",
        "DeepSeekMoE (Dai et al. 2024)",
        &[MINI, "architecture.num_shared_experts = 2"],
        "`routed_experts`, `Op::Linear`",
    ),
    l(
        "a layer of routed and shared experts on rows of numbers, mean square error",
        "tutorials",
        "`train::Mixture`",
        "`mean_square`",
    ),
    f(
        "dropout in and behind an expert",
        "Srivastava et al. 2014",
        &["expert_dropout = 0.1", "expert_output_dropout = 0.1"],
        "`with_expert_dropout`, `Math::Dropout`",
    ),
    f(
        "sparse gates: softmax over the k best, 0 elsewhere (weight 1 and no gradient at k = 1, which is said)",
        "Shazeer et al. 2017",
        &["architecture.model_type = \"mixtral\""],
        "`top_k`, `gates_of`",
    ),
    f(
        "noisy top-k, the noise's size learned; in training only",
        "Shazeer et al. 2017",
        &["router.noise = \"learned\""],
        "`noisy_logits`, `with_router_noise`",
    ),
    f(
        "the same in evaluation, too",
        "tutorials",
        &["router.noise = \"learned\"", "router.noise_in_eval = true"],
        "`noisy_logits`, `with_router_noise`",
    ),
    f(
        "block with LayerNorm and experts of two matrices with ReLU and biases",
        "Vaswani et al. 2017",
        &[
            MINI,
            "architecture.norm = \"layer\"",
            "architecture.expert_gated = false",
            "architecture.expert_activation = \"relu\"",
            "architecture.expert_bias = true",
        ],
        "`NormKind::Layer`, `Math::SelfAttend`",
    ),
    f(
        "RMSNorm, RoPE, grouped queries, SwiGLU experts, whole transformers",
        "Mixtral (Jiang et al. 2024)",
        &["architecture.model_type = \"mixtral\"", "architecture.num_key_value_heads = 2"],
        "`for_training`, `language_model`",
    ),
    f(
        "cross entropy with weighted rows: answers alone, or prompts too",
        "–",
        &["datasets.0.train_on_inputs = true"],
        "`cross_entropy`",
    ),
    l(
        "competing experts",
        "Jacobs et al. 1991",
        "`train::Mixture` with `MixtureLoss::Competitive`",
        "`competitive`, `dense_experts`",
    ),
    f(
        "a router over groups and one in each",
        "Shazeer et al. 2017",
        &["router.groups = 4", "router.groups_used = 2", "architecture.num_experts_per_tok = 4"],
        "`with_router_groups`, `hierarchical`",
    ),
    f("all experts on every token", "–", &["top_k_schedule = [[0, 8]]"], "`with_experts_used`, `dense_experts`"),
    f(
        "softmax of the chosen probabilities: a second softmax",
        "tutorials",
        &[MINI, "architecture.router = \"softmax_top_k_softmax\""],
        "`Renormalise::Softmax`",
    ),
    f(
        "chosen probabilities as they are (a gradient at k = 1)",
        "Fedus et al. 2021",
        &[MINI, "architecture.router = \"softmax_top_k\"", "architecture.num_experts_per_tok = 1"],
        "`Score::Softmax`",
    ),
    f(
        "linear router with bias and noise",
        "tutorials",
        &[MINI, "architecture.router_bias = true", "router.noise = \"normal\"", "router.noise_std = 0.1"],
        "`Op::Linear`, `Math::Noise`",
    ),
    f(
        "router with a hidden layer",
        "tutorials",
        &[MINI, "architecture.router_hidden = 24", "architecture.router_activation = \"relu\""],
        "`Op::Linear`, `Op::Act`",
    ),
    f(
        "from dense to sparse by epoch: 8, 7, 6, 5, then 2",
        "–",
        &["top_k_schedule = [[0, 8], [30, 7], [40, 6], [50, 5], [60, 2]]"],
        "`progressive_top_k`, `with_experts_used`",
    ),
    f(
        "top-2 with capacity, dropped tokens, random second expert",
        "GShard (Lepikhin et al. 2020); DeepSpeed",
        &["router.capacity_factor = 1.25", "router.second = \"random\"", "router.aux = \"gshard\""],
        "`with_capacity`, `top_two_capacity`, `gshard_balance`",
    ),
    f(
        "top-k with capacity by position or probability (k = 1: Switch Transformer)",
        "Fedus et al. 2021; Tutel",
        &["router.capacity_factor = 1.0", "router.drop = \"probability\""],
        "`with_capacity`, `top_k_capacity`",
    ),
    f(
        "update of selection biases without a loss",
        "DeepSeek-V3",
        &["router.bias_update = 0.001"],
        "`bias_update`, `Router::selection_bias`",
    ),
    f("jitter of the router's input", "Fedus et al. 2021", &["router.jitter = 0.01"], "`RouterNoise::jitter`"),
    f(
        "jitter of what router and experts read",
        "Hugging Face's Mixtral",
        &["router.jitter = 0.01", "router.jitter_experts = true"],
        "`RouterNoise::jitter_experts`",
    ),
];
