
// Sum over a workgroup of WG invocations (WG a power of two). Every invocation of the workgroup must call it; all get the sum.
var<workgroup> sum_lane: array<f32, WG>;

fn workgroup_sum(lane: u32, value: f32) -> f32 {
    sum_lane[lane] = value;
    workgroupBarrier();
    for (var reach = WG / 2u; reach > 0u; reach = reach / 2u) {
        if (lane < reach) {
            sum_lane[lane] += sum_lane[lane + reach];
        }
        workgroupBarrier();
    }
    let total = sum_lane[0];
    workgroupBarrier();
    return total;
}
