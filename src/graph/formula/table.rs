//! The formulas as a table, for the README.

/// What the literature trains, and what builds it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formula {
    /// In words.
    pub what: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// Keys of a training run's configuration that ask for it, as TOML; – where only the library has it.
    pub key: &'static str,
    /// The function of [`crate::graph::formula`], or the ops, that build it.
    pub call: &'static str,
}

const fn f(what: &'static str, source: &'static str, key: &'static str, call: &'static str) -> Formula {
    Formula { what, source, key, call }
}

/// All formulas.
pub const FORMULAS: &[Formula] = &[
    f(
        "shared experts beside routed ones",
        "DeepSeekMoE (Dai et al. 2024)",
        "`architecture.shared_expert_intermediate_size = 32`",
        "`routed_experts`, `Op::Linear`",
    ),
    f("mean square error", "–", "–", "`mean_square`"),
    f(
        "balance of the two best experts, counted apart (optimum 2)",
        "Switch Transformer's loss as often copied",
        "`router.aux = \"switch\"`",
        "`switch_balance`",
    ),
    f("mean square of the logits", "as copied with it", "`router.z = \"mean_square\"`", "`mean_square_z`"),
    f(
        "dropout in and behind an expert",
        "Srivastava et al. 2014",
        "`expert_dropout = 0.1`, `expert_output_dropout = 0.1`",
        "`with_expert_dropout`, `Math::Dropout`",
    ),
    f(
        "sparse gates: softmax over the k best, 0 elsewhere (weight 1 and no gradient at k = 1)",
        "Shazeer et al. 2017",
        "`architecture.model_type = \"mixtral\"`",
        "`top_k`, `gates_of`",
    ),
    f(
        "noisy top-k, the noise's size learned; in training only or always",
        "Shazeer et al. 2017",
        "`router.noise = \"learned\"`, `router.noise_in_eval = true`",
        "`noisy_logits`, `with_router_noise`",
    ),
    f("block with LayerNorm", "Vaswani et al. 2017", "–", "`NormKind::Layer`, `Math::SelfAttend`"),
    f(
        "RMSNorm, RoPE, grouped queries, SwiGLU experts, whole transformers",
        "Mixtral (Jiang et al. 2024)",
        "`architecture.model_type = \"mixtral\"`",
        "`for_training`, `language_model`",
    ),
    f("cross entropy with weighted rows", "–", "–", "`cross_entropy`"),
    f("competing experts", "Jacobs et al. 1991", "–", "`competitive`"),
    f(
        "importance and load, squared coefficient of variation of a population or a sample",
        "Shazeer et al. 2017",
        "`router.noise = \"learned\"`, `router.aux = \"importance_load\"`, `router.cv2 = \"sample\"`",
        "`coefficient_of_variation`, `smooth_load`",
    ),
    f("a router over groups and one in each", "Shazeer et al. 2017", "–", "`hierarchical`"),
    f(
        "usage of experts (constant, without gradient, on a dense softmax)",
        "notes on mixtures of experts",
        "`router.aux = \"usage\"`",
        "`usage_balance`",
    ),
    f("all experts on every token", "–", "–", "`dense_experts`"),
    f("softmax of the chosen probabilities: a second softmax", "–", "–", "`Renormalise::Softmax`"),
    f(
        "linear router with bias and noise; router with a hidden layer",
        "–",
        "`router.noise = \"normal\"`, `router.noise_std = 0.1`",
        "`Op::Linear`, `Math::Noise`, `Op::Act`",
    ),
    f(
        "from dense to sparse by epoch: 8, 7, 6, 5, then 2",
        "–",
        "`top_k_schedule = [[0, 8], [30, 7], [40, 6], [50, 5], [60, 2]]`",
        "`progressive_top_k`, `with_experts_used`",
    ),
    f(
        "top-2 with capacity, dropped tokens, random second expert",
        "GShard (Lepikhin et al. 2020); DeepSpeed",
        "`router.capacity_factor = 1.25`, `router.second = \"random\"`, `router.aux = \"gshard\"`",
        "`with_capacity`, `top_two_capacity`, `gshard_balance`",
    ),
    f(
        "top-k with capacity by position or probability (k = 1: Switch Transformer)",
        "Fedus et al. 2021; Tutel",
        "`router.capacity_factor = 1.0`, `router.drop = \"probability\"`",
        "`with_capacity`, `top_k_capacity`",
    ),
    f(
        "z-loss: square of the logarithm of the sum",
        "ST-MoE (Zoph et al. 2022)",
        "`router.z = \"logsumexp\"`",
        "`log_sum_exp_z`",
    ),
    f("balance over all layers, with a mask", "Hugging Face transformers", "`router.aux = \"hf\"`", "`layers_balance`"),
    f(
        "balance of each layer, averaged",
        "Fedus et al. 2021; MegaBlocks",
        "`router.aux = \"mean_of_layers\"`",
        "`mean_of_layers_balance`",
    ),
    f(
        "update of selection biases without a loss",
        "DeepSeek-V3",
        "`router.bias_update = 0.001`",
        "`bias_update`, `Router::selection_bias`",
    ),
    f("jitter of the router's input", "Fedus et al. 2021", "`router.jitter = 0.01`", "`RouterNoise::jitter`"),
];
