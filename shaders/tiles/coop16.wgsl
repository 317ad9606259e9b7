// Cooperative matrices of 16 by 16 halves. Weights of the formats that use it fit halves; each row of x is scaled.
const SIDE: u32 = 16u;
alias Number = f16;
alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;

fn scaled(v: vec4<f32>, c: u32) -> vec4<f32> {
    return v / scales[c];
}

fn unscaled(sum: f32, c: u32) -> f32 {
    return sum * scales[c];
}

