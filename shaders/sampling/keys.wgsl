
// What the two kernels of sampling share: the settings of a generation, and keys that order like logits.
@group(0) @binding(2) var<storage, read> settings: Settings;

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
