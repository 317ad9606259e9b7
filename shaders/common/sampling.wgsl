
// What the two kernels of sampling share: the settings of a generation, and keys that order like logits.
struct Settings {
    inverse_temperature: f32,  // 0: the best token is taken
    log_min_p: f32,            // tokens this far below the best logit, or less far, stay
    penalty: f32,              // 1: none
    top_k: u32,                // 0: all
    top_p: u32,                // part of the probability that stays, times 2^32; 0: all
    window: u32,               // tokens that the penalty looks at, at most; the length of the ring
    by_id: u32,                // 1: the draw goes through the tokens by id, 0: from the best down
    forbidden: u32,            // length of the list
    forbidden_ids: array<u32>,
}
@group(0) @binding(2) var<storage, read> settings: Settings;

// Tokens of a group: a group's largest key stands for it until its tokens are looked at.
const GROUP: u32 = 64u;
// The key of a group that holds a logit which is no finite number; no finite number has it.
const BROKEN: u32 = 0xffffffffu;

// An integer that orders like a finite number; both zeros are one. 0 is below all of them: a token that cannot be chosen.
fn key_of(v: f32) -> u32 {
    let bits = select(bitcast<u32>(v), 0u, v == 0.0);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn logit_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key & 0x80000000u) != 0u));
}
