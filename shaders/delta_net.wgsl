
// delta_net: the gated delta rule (Yang et al. 2024). For each value head, with S [Dk, Dv] its state:
//   S = keep * S;  S += k (beta * (v - S^T k))^T;  y = S^T q,
// q and k scaled to length 1 (q also by 1/sqrt(Dk)), keep = exp(decay * softplus(a + dt_bias)), beta = sigmoid(b).
//
// One invocation a column of a sequence's state (Dv of them side by side), the sequence's rows in order: a first sweep over the
// column reads what it says of k and of q, a second one writes; y follows as S^T q before the write plus (k . q) times the change.
// Grid: x = ceil(Hv * Dv / WG), y = sequences. f32.

@group(0) @binding(2) var<storage, read> qkv: array<f32>;          // [T, q | k | v]
@group(0) @binding(3) var<storage, read> a: array<f32>;            // [T, Hv]
@group(0) @binding(4) var<storage, read> b: array<f32>;            // [T, Hv]
@group(0) @binding(5) var<storage, read> decay: array<f32>;        // [Hv]
@group(0) @binding(6) var<storage, read> dt_bias: array<f32>;      // [Hv]
@group(0) @binding(7) var<storage, read_write> state: array<f32>;  // [slots, Hv, Dk, Dv]
@group(0) @binding(8) var<storage, read_write> y: array<f32>;      // [T, Hv*Dv]

// ln(1 + e^x). Small e^x by its series: 1 + e^x would lose it.
fn softplus(x: f32) -> f32 {
    let e = exp(-min(abs(x), 80.0));
    let series = e * (1.0 - e * (0.5 - e * (0.33333333 - e * 0.25)));
    return max(x, 0.0) + select(log(1.0 + e), series, e < 0.01);
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let column = wg.x * WG + lid;
    let span = span_of(wg.y);
    if (column >= p.v_heads * p.v_dim || span.count == 0u) {
        return;
    }
    let head = column / p.v_dim;
    let c = column % p.v_dim;
    let key_head = select(head / (p.v_heads / p.k_heads), head % p.k_heads, p.tiled == 1u);
    let slot = p.v_heads * p.k_dim * p.v_dim;
    let s_at = head * p.k_dim * p.v_dim + c;
    // The first row reads the state where it was left, or zeros; every row leaves it in the target slot.
    let target_at = span.target_slot * slot + s_at;
    var fresh = span.source == STATE_FRESH;
    var source_at = select(span.source, span.target_slot, fresh) * slot + s_at;
    let q_at = key_head * p.k_dim;
    let k_at = (p.k_heads + key_head) * p.k_dim;
    let v_at = 2u * p.k_heads * p.k_dim + column;
    for (var n = 0u; n < span.count; n += 1u) {
        let t = row_of(span, n);
        let row = p.qkv_offset + t * p.qkv_stride;
        var qq = 0.0;
        var kk = 0.0;
        var qk = 0.0;
        var known = 0.0;
        var read = 0.0;
        for (var i = 0u; i < p.k_dim; i += 1u) {
            let q = qkv[row + q_at + i];
            let k = qkv[row + k_at + i];
            let s = select(state[source_at + i * p.v_dim], 0.0, fresh);
            qq += q * q;
            kk += k * k;
            qk += q * k;
            known += s * k;
            read += s * q;
        }
        let q_scale = inverseSqrt((qq + 1e-6) * f32(p.k_dim));
        let k_scale = inverseSqrt(kk + 1e-6);
        let speed = softplus(a[p.a_offset + t * p.a_stride + head] + dt_bias[head]);
        let keep = exp(max(decay[head] * speed, -80.0));
        let beta = 1.0 / (1.0 + exp(min(-b[p.b_offset + t * p.b_stride + head], 80.0)));
        let delta = beta * (qkv[row + v_at] - keep * k_scale * known);
        y[p.y_offset + t * p.y_stride + column] = keep * q_scale * read + qk * q_scale * k_scale * delta;
        let change = delta * k_scale;
        for (var i = 0u; i < p.k_dim; i += 1u) {
            let s = select(state[source_at + i * p.v_dim], 0.0, fresh);
            state[target_at + i * p.v_dim] = keep * s + qkv[row + k_at + i] * change;
        }
        source_at = target_at;
        fresh = false;
    }
}
