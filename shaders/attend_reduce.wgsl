
// attend_reduce: merges what the pieces of `attend` left: sums, maximum and denominator of each.
//
// One workgroup a head of a token. First each invocation looks at some pieces, all side by side, for the largest maximum and
// what each piece counts relative to it; then each adds up four columns of a share of the pieces, four pieces at a time.
// Grid: x = heads, y = T; none where there is one piece. f32.

@group(0) @binding(2) var<storage, read> partials: array<vec4<f32>>;  // [T, heads, pieces, Dv + 4]: sums; maximum, denominator
@group(0) @binding(3) var<storage, read> sinks: array<f32>;          // [heads]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;  // [T, heads*Dv]

var<workgroup> factors: array<f32, MOST_PIECES + MOST_PIECES / 16u + 1u>;  // of each piece
var<workgroup> lanes: array<f32, WG>;
var<workgroup> shares: array<vec4<f32>, WG>;

// The largest value of all invocations.
fn largest(lid: u32, value: f32) -> f32 {
    lanes[lid] = value;
    workgroupBarrier();
    for (var reach = WG / 2u; reach > 0u; reach = reach / 2u) {
        if (lid < reach) {
            lanes[lid] = max(lanes[lid], lanes[lid + reach]);
        }
        workgroupBarrier();
    }
    let top = lanes[0];
    workgroupBarrier();
    return top;
}

@compute @workgroup_size(WG)
fn main(@builtin(workgroup_id) wg: vec3<u32>, @builtin(local_invocation_index) lid: u32) {
    let head = wg.x;
    let token = wg.y;
    if (token >= frame.tokens) {
        return;
    }
    let v4 = p.v_dim / 4u;
    let cut = pieces();
    let row = v4 + 1u;
    let start = (token * p.heads + head) * cut.count * row;
    // Pieces that the token sees anything of.
    let seen = position_of(token) + 1u - pieces_begin(token);
    let used = min((seen + cut.length - 1u) / cut.length, cut.count);

    var top = -1e30;
    if (p.sinks_on != 0u) {
        top = sinks[head];
    }
    for (var z = lid; z < used; z += WG) {
        top = max(top, partials[start + z * row + v4].x);
    }
    top = largest(lid, top);
    var part = 0.0;
    for (var z = lid; z < used; z += WG) {
        let piece = partials[start + z * row + v4];
        let factor = exp(piece.x - top);
        factors[z] = factor;
        part += piece.y * factor;
    }
    var total = workgroup_sum(lid, part);
    if (p.sinks_on != 0u) {
        total += exp(sinks[head] - top);
    }

    let columns = min(v4, WG);
    let sharing = WG / columns;
    let share = lid / columns;
    for (var first = 0u; first < v4; first += columns) {
        let column = min(first + lid % columns, v4 - 1u);
        var sum = vec4<f32>(0.0);
        if (share < sharing) {
            for (var z = share; z < used; z += 4u * sharing) {
                var values: array<vec4<f32>, 4>;
                for (var u = 0u; u < 4u; u++) { // unroll
                    values[u] = partials[start + min(z + u * sharing, used - 1u) * row + column];
                }
                for (var u = 0u; u < 4u; u++) { // unroll
                    let at = z + u * sharing;
                    let factor = select(0.0, factors[min(at, used - 1u)], at < used);
                    sum = fma(values[u], vec4<f32>(factor), sum);
                }
            }
        }
        shares[lid] = sum;
        workgroupBarrier();
        if (share == 0u && first + lid < v4) {
            for (var s = 1u; s < sharing; s++) {
                sum += shares[s * columns + lid];
            }
            y[(p.y_offset + token * p.y_stride) / 4u + head * v4 + column] = sum / total;
        }
        workgroupBarrier();
    }
}
