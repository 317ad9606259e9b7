
// Cache storage: four numbers of single precision.
alias KvWord = vec4<f32>;

fn kv_load(word: KvWord) -> vec4<f32> {
    return word;
}

fn kv_pack(v: vec4<f32>) -> KvWord {
    return v;
}
