//! What the literature trains, as pieces of graphs: functions that add nodes to a [`Builder`] and give the values that matter.
//!
//! | file | what |
//! |---|---|
//! | `arithmetic` | sums, products, means of values, as methods of the builder |
//! | `losses` | squares, cross entropy, the competitive loss of 1991 |
//! | `balance` | balancing losses and z-losses, importance and load, bias updates without a loss |
//! | `routers` | top-k, noisy, biased and jittered routers, sparse gates, the schedule from dense to sparse |
//! | `capacity` | routing with room for so many tokens an expert |
//! | `router_losses` | the losses of routers by name |
//! | `objective` | the loss of a language model with routers |
//! | `experts` | expert networks, shared experts, experts in groups |
//!
//! Sources: seeds and papers as each function says. Where a source is odd (a loss whose optimum is 2, a usage loss without
//! gradient), it is built as its source has it, and the function says so.

mod arithmetic;
mod balance;
mod capacity;
mod experts;
mod losses;
mod objective;
mod router_losses;
mod routers;
mod table;

use balance::sum_of_rows;
pub use balance::{
    Counted, Variance, bias_update, coefficient_of_variation, gshard_balance, layers_balance, log_sum_exp_z,
    mean_of_layers_balance, mean_square_z, smooth_load, switch_balance, usage_balance,
};
pub use capacity::{Form, Placed, top_k_capacity, top_two_capacity};
pub(super) use capacity::{over_sum, random_second};
pub use experts::{ExpertNet, Hierarchy, dense_experts, hierarchical, routed_experts};
pub use losses::{Competitive, competitive, cross_entropy, mean_square};
pub use objective::{DROPPED, Objective, TOKENS_PER_EXPERT, language_model};
pub use router_losses::{Needs, ROUTER_LOSSES, Routed, RouterLoss, Term};
pub use routers::{Choice, Noisy, gates_of, noisy_logits, progressive_top_k, top_k};
pub use table::{Formula, formulas};

use super::Builder;
