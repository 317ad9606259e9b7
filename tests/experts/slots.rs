//! Caches of experts on recorded texts.

use moeray::routing::{Policy, SlotCounts, Slots, Trace};
use serde_json::json;

/// A trace of one layer with these choices, a list a token.
fn trace(experts: usize, used: usize, ids: &[Vec<u32>]) -> Trace {
    let weights: Vec<Vec<f32>> = ids.iter().map(|r| vec![0.5; r.len()]).collect();
    let layer = json!({"layer": 3, "experts": experts, "used": used, "ids": ids, "weights": weights});
    Trace::from_json(&json!({"tokens": ids.len(), "layers": [layer]})).unwrap()
}

fn counts(experts: usize, ids: &[Vec<u32>], policy: Policy, slots: usize) -> SlotCounts {
    let used = ids[0].len();
    policy.simulate(&[trace(experts, used, ids)], Slots::Count(slots)).unwrap()[0]
}

/// Choices of a text that stays with some experts for a while, from a fixed seed.
fn text(experts: usize, used: usize, tokens: usize) -> Vec<Vec<u32>> {
    let mut state = 12345u64;
    let mut next = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let mut at: Vec<u32> = (0..used as u32).collect();
    let mut out = vec![];
    for _ in 0..tokens {
        let place = next(used);
        let free: Vec<u32> = (0..experts as u32).filter(|e| !at.contains(e)).collect();
        if next(3) > 0 && !free.is_empty() {
            // Low numbers are chosen more often.
            at[place] = free[next(free.len()).min(next(free.len()))];
        }
        out.push(at.clone());
    }
    out
}

#[test]
fn the_least_recently_used_expert_goes() {
    let ids = [[0, 1], [2, 0], [1, 2], [0, 1]].map(|r| r.to_vec());
    // {0 1}; 2 takes 1's slot, for 0 is in use; 1 takes 0's; 0 takes 2's, for 1 is in use.
    let c = counts(4, &ids, Policy::Lru, 2);
    assert_eq!(c, SlotCounts { tokens: 4, lookups: 8, hits: 3, uploads: 5, first: 3 });
    let all = counts(4, &ids, Policy::Lru, 4);
    assert_eq!((all.hits, all.uploads, all.first), (5, 3, 3), "with a slot for each, only first uses miss");
    // Of equals the lowest slot goes: 2 takes that of 0, so that 1 is there.
    let equal = [vec![0], vec![1], vec![2], vec![1], vec![0]];
    assert_eq!(counts(3, &equal, Policy::Lru, 2).hits, 1);
}

#[test]
fn fewer_slots_than_experts_a_token_uses_are_bypassed() {
    let ids = [[0, 1, 2], [0, 1, 2]].map(|r| r.to_vec());
    for policy in Policy::ALL {
        let c = counts(4, &ids, policy, 2);
        assert_eq!((c.lookups, c.hits, c.uploads), (6, 0, 0), "{policy:?}");
        assert_eq!(counts(4, &ids, policy, 3).hits, 3);
    }
}

#[test]
fn frequent_experts_stay_until_their_counts_have_aged() {
    // 0 is used often; 1 and 2 pass by.
    let mut ids = vec![vec![0]; 20];
    ids.extend([vec![1], vec![2], vec![0]]);
    assert_eq!(counts(3, &ids, Policy::LfuAged, 2).hits, 20, "0 outlives 2");
    assert_eq!(counts(3, &ids, Policy::Lru, 2).hits, 19, "and does not where use alone counts");
    // After enough tokens of 1, what 0 had counted is forgotten.
    let mut long = vec![vec![0]; 40];
    long.extend(vec![vec![1]; 8 * Policy::AGING]);
    long.extend([vec![2], vec![1]]);
    let c = counts(3, &long, Policy::LfuAged, 2);
    assert_eq!(c.uploads, 3, "2 takes the slot of 0");
}

#[test]
fn the_most_used_experts_are_pinned_and_the_others_follow_their_last_use() {
    // 0 is used often, then 1 to 4 pass by: they share the slots that are not pinned, and 0 is there again.
    let mut ids = vec![vec![0]; 5];
    ids.extend([1, 2, 3, 4, 0, 4, 3].map(|e| vec![e]));
    // Of four slots two are pinned: 0's, and that of the other that was used last, of equally used ones. So 4 takes the slot of 1.
    let c = counts(5, &ids, Policy::PinnedLru, 4);
    assert_eq!((c.hits, c.uploads), (4 + 3, 5));
    // Of two slots one is pinned, and the others go through the second: of these 4 is found no more.
    let c = counts(5, &ids, Policy::PinnedLru, 2);
    assert_eq!((c.hits, c.uploads), (4 + 2, 6));
    assert_eq!(counts(5, &ids, Policy::Lru, 2).hits, 4 + 1, "only 4");
    // What was counted is not lost with a slot: 1, which 3 had put out, is pinned when it comes again, and 2 takes the slot of 0.
    let ids = [1, 1, 1, 2, 0, 0, 0, 0, 3, 1, 2, 3, 1].map(|e| vec![e]);
    let c = counts(4, &ids, Policy::PinnedLru, 2);
    assert_eq!((c.hits, c.uploads), (2 + 3 + 1, 7));
    // A token's own experts always have room.
    let ids = text(8, 4, 200);
    assert_eq!(counts(8, &ids, Policy::PinnedLru, 4), counts(8, &ids, Policy::Lru, 4), "none can be pinned");
    let c = counts(8, &ids, Policy::PinnedLru, 5);
    assert_eq!(c.hits + c.uploads, c.lookups);
}

/// The clairvoyant policy equals the best of all policies, found by trying every victim.
#[test]
fn belady_is_the_best_that_can_be_had() {
    fn best(ids: &[Vec<u32>], held: &mut Vec<u32>, slots: usize) -> u64 {
        let Some((now, rest)) = ids.split_first() else { return 0 };
        let hit = u64::from(held.contains(&now[0]));
        if hit == 1 {
            return 1 + best(rest, held, slots);
        }
        if held.len() < slots {
            held.push(now[0]);
            let found = best(rest, held, slots);
            held.pop();
            return found;
        }
        let all = (0..slots).map(|i| {
            let mut other = held.clone();
            other[i] = now[0];
            best(rest, &mut other, slots)
        });
        all.max().unwrap_or(0)
    }
    for tokens in [9, 14] {
        let ids = text(5, 1, tokens);
        assert_eq!(counts(5, &ids, Policy::Belady, 3).hits, best(&ids, &mut vec![], 3), "{ids:?}");
    }
    let ids = text(32, 4, 3000);
    for slots in [4, 8, 16, 24] {
        let of = |p| counts(32, &ids, p, slots);
        let all = Policy::ALL.map(of);
        let belady = of(Policy::Belady);
        assert!(all.iter().all(|c| belady.hits >= c.hits), "{slots} slots: {belady:?}, {all:?}");
        for c in all {
            assert_eq!((c.lookups, c.hits + c.uploads), (12_000, 12_000));
            assert!(c.uploads >= c.first);
        }
    }
    let hits = [4, 8, 16, 32].map(|slots| counts(32, &ids, Policy::Lru, slots).hits);
    assert!(hits.is_sorted(), "more slots, no fewer hits: {hits:?}");
}

#[test]
fn texts_follow_each_other_and_records_are_read_back() {
    let ids = text(16, 2, 60);
    let whole = trace(16, 2, &ids);
    assert_eq!(Trace::from_json(&whole.to_json()).unwrap().to_json(), whole.to_json());
    let (a, b) = (trace(16, 2, &ids[..25]), trace(16, 2, &ids[25..]));
    for policy in Policy::ALL {
        let slots = Slots::Percent(40.0);
        let one = policy.simulate(std::slice::from_ref(&whole), slots).unwrap();
        assert_eq!(policy.simulate(&[a.clone(), b.clone()], slots).unwrap(), one);
    }
    let e = Policy::Lru.simulate(&[a, trace(8, 2, &text(8, 2, 5))], Slots::Count(2)).unwrap_err();
    assert!(e.to_string().contains("different models"), "{e}");
}

#[test]
fn impossible_slots_and_damaged_records_are_refused() {
    assert_eq!(Slots::Percent(25.0).of(32).unwrap(), 8);
    assert_eq!(Slots::Percent(1.0).of(32).unwrap(), 1);
    for slots in
        [Slots::Count(0), Slots::Count(33), Slots::Percent(0.0), Slots::Percent(101.0), Slots::Percent(f64::NAN)]
    {
        assert!(slots.of(32).is_err(), "{slots:?}");
    }
    assert_eq!("25%".parse::<Slots>().unwrap(), Slots::Percent(25.0));
    for text in ["", "x", "-1", "%", "3.5"] {
        assert!(text.parse::<Slots>().is_err(), "{text:?}");
    }
    let good = trace(4, 2, &[vec![0, 1]]).to_json();
    let spoiled = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = good.clone();
        change(&mut json);
        Trace::from_json(&json).unwrap_err().to_string()
    };
    assert!(spoiled(&|j| j["tokens"] = 2.into()).contains("2 lists"));
    assert!(spoiled(&|j| j["layers"][0]["ids"][0][1] = 4.into()).contains("no expert 4"));
    assert!(spoiled(&|j| j["layers"][0]["ids"][0] = json!([1])).contains("ids"));
    assert!(spoiled(&|j| j["layers"] = json!([])).contains("no layers"));
    assert!(spoiled(&|j| j["layers"][0]["used"] = json!("two")).contains("used"));
    assert!(Policy::Lru.simulate(&[], Slots::Count(1)).is_err());
}
