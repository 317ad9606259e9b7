
// What the two kernels of sampling share: the settings of each sequence, the choices of a step, and keys that order like logits.
@group(0) @binding(2) var<storage, read> settings: array<Settings>;  // [sequences]
@group(0) @binding(7) var<storage, read> choices: array<Choice>;     // [choices]

// u32 words of a sequence's state: tokens so far, the last choice, two words of room, the ring of recent tokens.
const STATE_WORDS: u32 = RING_AT + RING;

// Ids in a sequence's list of forbidden tokens.
fn forbidden_count(sequence: u32) -> u32 {
    return min(settings[sequence].forbidden, FORBIDDEN);
}

// Groups of SAMPLE_GROUP tokens: a group's largest key stands for it until its tokens are looked at. The key BROKEN says that
// the group holds a logit which is no finite number; no finite number has it.

// An integer that orders like a finite number; both zeros are one. 0 is below all of them: a token that cannot be chosen.
fn key_of(v: f32) -> u32 {
    let bits = select(bitcast<u32>(v), 0u, v == 0.0);
    return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn logit_of(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key & 0x80000000u) != 0u));
}
