
// attend_reduce: merges what the splits of `attend` left: sums, maximum and denominator of each.
//
// One workgroup a head of a token, one invocation four columns. Grid: x = heads, y = T. f32.

@group(0) @binding(2) var<storage, read> partials: array<vec4<f32>>;  // [T, heads, splits, Dv + 4]: sums; maximum, denominator
@group(0) @binding(3) var<storage, read> sinks: array<f32>;          // [heads]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;  // [T, heads*Dv]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let head = wg.x;
    let token = wg.y;
    if (token >= frame.tokens) {
        return;
    }
    let v4 = p.v_dim / 4u;
    let start = (token * p.heads + head) * p.splits * (v4 + 1u);
    // The first split that the first token's window touches, as in `attend`.
    var before = 0u;
    if (p.window != 0u) {
        before = (frame.past + 1u - min(frame.past + 1u, p.window)) / p.split_len;
    }
    let used = min((frame.past + frame.tokens + p.split_len - 1u) / p.split_len - before, p.splits);

    var top = -1e30;
    var total = 0.0;
    if (p.sinks_on != 0u) {
        top = sinks[head];
        total = 1.0;
    }
    for (var z = 0u; z < used; z++) {
        let split = partials[start + z * (v4 + 1u) + v4];
        let m = max(top, split.x);
        total = total * exp(top - m) + split.y * exp(split.x - m);
        top = m;
    }
    for (var i = lid; i < v4; i += WG) {
        var sum = vec4<f32>(0.0);
        for (var z = 0u; z < used; z++) {
            let split = start + z * (v4 + 1u);
            sum += partials[split + i] * exp(partials[split + v4].x - top);
        }
        y[(p.y_offset + token * p.y_stride) / 4u + head * v4 + i] = sum / total;
    }
}
