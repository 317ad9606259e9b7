
// delta_net: the gated delta rule (Yang et al. 2024). For each value head, with S [Dk, Dv] its state:
//   S = keep * S;  S += k (beta * (v - S^T k))^T;  y = S^T q,
// q and k scaled to length 1 (q also by 1/sqrt(Dk)), keep = exp(decay * softplus(a + dt_bias)), beta = sigmoid(b).
//
// One invocation a column of a state (Dv of them side by side), the tokens in order: a first sweep over the column reads
// what it says of k and of q, a second one writes; y follows as S^T q before the write plus (k . q) times the change.
// Grid: x = ceil(Hv * Dv / WG). f32.

@group(0) @binding(2) var<storage, read> qkv: array<f32>;          // [T, q | k | v]
@group(0) @binding(3) var<storage, read> a: array<f32>;            // [T, Hv]
@group(0) @binding(4) var<storage, read> b: array<f32>;            // [T, Hv]
@group(0) @binding(5) var<storage, read> decay: array<f32>;        // [Hv]
@group(0) @binding(6) var<storage, read> dt_bias: array<f32>;      // [Hv]
@group(0) @binding(7) var<storage, read_write> state: array<f32>;  // [Hv, Dk, Dv]
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
    if (column >= p.v_heads * p.v_dim) {
        return;
    }
    let head = column / p.v_dim;
    let c = column % p.v_dim;
    let key_head = select(head / (p.v_heads / p.k_heads), head % p.k_heads, p.tiled == 1u);
    let s_at = head * p.k_dim * p.v_dim + c;
    let q_at = key_head * p.k_dim;
    let k_at = (p.k_heads + key_head) * p.k_dim;
    let v_at = 2u * p.k_heads * p.k_dim + column;
    for (var t = 0u; t < frame.tokens; t += 1u) {
        let row = p.qkv_offset + t * p.qkv_stride;
        var qq = 0.0;
        var kk = 0.0;
        var qk = 0.0;
        var known = 0.0;
        var read = 0.0;
        for (var i = 0u; i < p.k_dim; i += 1u) {
            let q = qkv[row + q_at + i];
            let k = qkv[row + k_at + i];
            let s = state[s_at + i * p.v_dim];
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
            let at = s_at + i * p.v_dim;
            state[at] = keep * state[at] + qkv[row + k_at + i] * change;
        }
    }
}
