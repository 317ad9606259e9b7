
// short_conv: y[t, c] = act(sum_j w[j, c] * x[t - (TAPS - 1) + j, c] + bias[c]); the inputs before this step are the state,
// which moves on.
//
// One invocation a channel of a sequence, the last inputs in registers, the sequence's rows in order.
// Grid: x = ceil(C / WG), y = sequences. f32.

@group(0) @binding(2) var<storage, read> x: array<f32>;           // [T, C]
@group(0) @binding(3) var<storage, read> w: array<f32>;           // [TAPS, C]
@group(0) @binding(4) var<storage, read> bias: array<f32>;        // [C]
@group(0) @binding(5) var<storage, read_write> state: array<f32>; // [slots, TAPS - 1, C], oldest first
@group(0) @binding(6) var<storage, read_write> y: array<f32>;     // [T, C]

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let c = wg.x * WG + lid;
    let span = span_of(wg.y);
    if (c >= p.channels || span.count == 0u) {
        return;
    }
    let slot = (TAPS - 1u) * p.channels;
    var last: array<f32, TAPS>;
    var taps: array<f32, TAPS>;
    for (var j = 0u; j < TAPS; j += 1u) {
        taps[j] = w[j * p.channels + c];
    }
    // One place ahead: the loop below begins by moving everything back.
    for (var j = 0u; j + 1u < TAPS; j += 1u) {
        last[j + 1u] = 0.0;
        if (span.source != STATE_FRESH) {
            last[j + 1u] = state[span.source * slot + j * p.channels + c];
        }
    }
    var start = 0.0;
    if (p.bias_on == 1u) {
        start = bias[c];
    }
    for (var i = 0u; i < span.count; i += 1u) {
        let t = row_of(span, i);
        for (var j = 0u; j + 1u < TAPS; j += 1u) {
            last[j] = last[j + 1u];
        }
        last[TAPS - 1u] = x[p.x_offset + t * p.x_stride + c];
        var sum = start;
        for (var j = 0u; j < TAPS; j += 1u) {
            sum += taps[j] * last[j];
        }
        if (p.act_on == 1u) {
            sum = activate(sum);
        }
        y[p.y_offset + t * p.y_stride + c] = sum;
    }
    for (var j = 0u; j + 1u < TAPS; j += 1u) {
        state[span.target_slot * slot + j * p.channels + c] = last[j + 1u];
    }
}
