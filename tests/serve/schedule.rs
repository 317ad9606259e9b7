//! The scheduler by itself: properties of all states, and fairness over many steps.

use moeray::serve::schedule::{Fairness, Limits, Need, Share, Waiting};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn waiting() -> impl Strategy<Value = Vec<Waiting>> {
    let need = prop_oneof![Just(Need::Next), (1usize..3000).prop_map(Need::Prompt)];
    prop::collection::btree_map(0usize..64, (0u64..4, need), 0..40)
        .prop_map(|all| all.into_iter().map(|(sequence, (client, need))| Waiting { sequence, client, need }).collect())
}

fn need(waiting: &[Waiting], sequence: usize) -> Option<Need> {
    waiting.iter().find(|w| w.sequence == sequence).map(|w| w.need)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Of any state and any history: no more rows than allowed, nobody twice, nobody who does not wait, no more of a prompt
    /// than there is, generating sequences before prompts, and no row left where somebody could use it.
    #[test]
    fn every_plan_is_right(states in prop::collection::vec(waiting(), 1..6), rows in 1usize..600, prompt_rows in 0usize..600) {
        let mut fairness = Fairness::default();
        for state in &states {
            let plan = fairness.schedule(state, Limits { rows, prompt_rows });
            let sequences: BTreeSet<usize> = plan.iter().map(|s| s.sequence).collect();
            prop_assert_eq!(sequences.len(), plan.len());
            let (mut next, mut prompts) = (0, 0);
            for Share { sequence, rows } in &plan {
                match need(state, *sequence) {
                    Some(Need::Next) => {
                        prop_assert!(*rows == 1 && prompts == 0);
                        next += 1;
                    }
                    Some(Need::Prompt(left)) => {
                        prop_assert!(*rows >= 1 && *rows <= left);
                        prompts += rows;
                    }
                    None => prop_assert!(false, "{sequence} does not wait"),
                }
            }
            let generating = state.iter().filter(|w| w.need == Need::Next).count();
            let asked: usize = state.iter().map(|w| if let Need::Prompt(n) = w.need { n } else { 0 }).sum();
            prop_assert_eq!(next, generating.min(rows));
            prop_assert_eq!(prompts, asked.min(rows - next).min(prompt_rows.max(1)));
        }
    }

    /// More generating sequences than rows: each gets its row in turn.
    #[test]
    fn nobody_is_passed_over(sequences in 1usize..40, rows in 1usize..8) {
        let state: Vec<Waiting> =
            (0..sequences).map(|sequence| Waiting { sequence, client: 0, need: Need::Next }).collect();
        let mut fairness = Fairness::default();
        let mut count = vec![0usize; sequences];
        for _ in 0..4 * sequences {
            for s in fairness.schedule(&state, Limits { rows, prompt_rows: 1 }) {
                count[s.sequence] += 1;
            }
        }
        let (least, most) = (*count.iter().min().unwrap(), *count.iter().max().unwrap());
        prop_assert!(most - least <= 1, "{count:?}");
    }
}

/// Steps until each prompt is read; one that is read is replaced by nothing.
fn finish(mut prompts: Vec<(u64, usize)>, prompt_rows: usize) -> Vec<usize> {
    let mut fairness = Fairness::default();
    let mut done = vec![0; prompts.len()];
    for step in 1.. {
        let state: Vec<Waiting> = prompts
            .iter()
            .enumerate()
            .filter(|(_, p)| p.1 > 0)
            .map(|(sequence, p)| Waiting { sequence, client: p.0, need: Need::Prompt(p.1) })
            .collect();
        if state.is_empty() {
            return done;
        }
        for s in fairness.schedule(&state, Limits { rows: 512, prompt_rows }) {
            prompts[s.sequence].1 -= s.rows;
            if prompts[s.sequence].1 == 0 {
                done[s.sequence] = step;
            }
        }
    }
    done
}

/// A short prompt behind a long one is read long before it, whoever sent it, also where a step takes few rows.
#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    for (client, rows) in [(0, 64), (1, 64), (0, 3), (1, 1)] {
        let done = finish(vec![(0, 4096), (client, 32)], rows);
        assert!(done[1] <= 2 * 32usize.div_ceil(rows) + 16, "{done:?} with {rows} rows");
    }
}

/// A client with twenty prompts gets as many rows as one with a single prompt, while both have some.
#[test]
fn clients_share_evenly() {
    let mut state: Vec<Waiting> =
        (0..20).map(|sequence| Waiting { sequence, client: 1, need: Need::Prompt(9999) }).collect();
    state.push(Waiting { sequence: 20, client: 2, need: Need::Prompt(9999) });
    state.push(Waiting { sequence: 21, client: 3, need: Need::Prompt(9999) });
    for prompt_rows in [1, 7, 64, 500] {
        let mut fairness = Fairness::default();
        let mut rows: BTreeMap<u64, usize> = BTreeMap::new();
        for _ in 0..2000 {
            for s in fairness.schedule(&state, Limits { rows: 512, prompt_rows }) {
                let client = state.iter().find(|w| w.sequence == s.sequence).unwrap().client;
                *rows.entry(client).or_default() += s.rows;
            }
        }
        let total: usize = rows.values().sum();
        assert_eq!(total, 2000 * prompt_rows);
        for (client, n) in &rows {
            let part = *n as f64 / total as f64;
            assert!((part - 1.0 / 3.0).abs() < 0.02, "client {client} got {part:.3} of {prompt_rows} rows a step");
        }
    }
}

/// Two prompts of one length that come together end together.
#[test]
fn equal_prompts_end_together() {
    let done = finish(vec![(0, 2000), (0, 2000)], 48);
    assert!(done[0].abs_diff(done[1]) <= 1, "{done:?}");
}
