
// Cache storage: four numbers of half precision. Numbers beyond its range become its largest: packing them as they are
// would give an indeterminate value.
alias KvWord = vec2<u32>;

fn kv_load(word: KvWord) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(word.x), unpack2x16float(word.y));
}

fn kv_pack(v: vec4<f32>) -> KvWord {
    let c = clamp(v, vec4<f32>(-65504.0), vec4<f32>(65504.0));
    return vec2<u32>(pack2x16float(c.xy), pack2x16float(c.zw));
}
