// Cooperative matrices of 8 by 8 numbers in single precision.
const SIDE: u32 = 8u;
alias Number = f32;
alias Left = coop_mat8x8<f32, A>;
alias Right = coop_mat8x8<f32, B>;
alias Sums = coop_mat8x8<f32, C>;

fn prepare_x(lid: u32) {}

fn scaled(v: vec4<f32>, c: u32) -> vec4<f32> {
    return v;
}

fn unscaled(sum: f32, c: u32) -> f32 {
    return sum;
}

