//! The formulas as a table, for the README.

/// What the literature trains, and what builds it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formula {
    /// In words.
    pub what: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// The function of [`crate::graph::formula`], or the ops, that build it.
    pub call: &'static str,
}

const fn f(what: &'static str, source: &'static str, call: &'static str) -> Formula {
    Formula { what, source, call }
}

/// All formulas.
pub const FORMULAS: &[Formula] = &[
    f("shared experts beside routed ones", "DeepSeekMoE (Dai et al. 2024)", "`routed_experts`, `Op::Linear`"),
    f("mean square error", "–", "`mean_square`"),
    f(
        "balance of the two best experts, counted apart (optimum 2)",
        "Switch Transformer's loss as often copied",
        "`switch_balance`",
    ),
    f("mean square of the logits", "as copied with it", "`mean_square_z`"),
    f("dropout in and behind an expert", "Srivastava et al. 2014", "`Math::Dropout`"),
    f(
        "sparse gates: softmax over the k best, 0 elsewhere (weight 1 and no gradient at k = 1)",
        "Shazeer et al. 2017",
        "`top_k`, `gates_of`",
    ),
    f(
        "noisy top-k, the noise's size learned; in training only or always",
        "Shazeer et al. 2017",
        "`noisy_logits`, `with_router_noise`",
    ),
    f("block with LayerNorm", "Vaswani et al. 2017", "`NormKind::Layer`, `Math::SelfAttend`"),
    f(
        "RMSNorm, RoPE, grouped queries, SwiGLU experts, whole transformers",
        "Mixtral (Jiang et al. 2024)",
        "`for_training`, `language_model`",
    ),
    f("cross entropy with weighted rows", "–", "`cross_entropy`"),
    f("competing experts", "Jacobs et al. 1991", "`competitive`"),
    f(
        "importance and load, squared coefficient of variation of a population or a sample",
        "Shazeer et al. 2017",
        "`coefficient_of_variation`, `smooth_load`",
    ),
    f("a router over groups and one in each", "Shazeer et al. 2017", "`hierarchical`"),
    f(
        "usage of experts (constant, without gradient, on a dense softmax)",
        "notes on mixtures of experts",
        "`usage_balance`",
    ),
    f("all experts on every token", "–", "`dense_experts`"),
    f("softmax of the chosen probabilities: a second softmax", "–", "`Renormalise::Softmax`"),
    f("linear router with bias and noise; router with a hidden layer", "–", "`Op::Linear`, `Math::Noise`, `Op::Act`"),
    f("from dense to sparse by epoch: 8, 7, 6, 5, then 2", "–", "`progressive_top_k`, `with_experts_used`"),
    f(
        "top-2 with capacity, dropped tokens, random second expert",
        "GShard (Lepikhin et al. 2020); DeepSpeed",
        "`top_two_capacity`, `gshard_balance`",
    ),
    f(
        "top-k with capacity by position or probability (k = 1: Switch Transformer)",
        "Fedus et al. 2021; Tutel",
        "`top_k_capacity`",
    ),
    f("z-loss: square of the logarithm of the sum", "ST-MoE (Zoph et al. 2022)", "`log_sum_exp_z`"),
    f("balance over all layers, with a mask", "Hugging Face transformers", "`layers_balance`"),
    f("balance of each layer, averaged", "Fedus et al. 2021; MegaBlocks", "`mean_of_layers_balance`"),
    f("update of selection biases without a loss", "DeepSeek-V3", "`bias_update`, `Router::selection_bias`"),
    f("jitter of the router's input", "Fedus et al. 2021", "`RouterNoise::jitter`"),
];
