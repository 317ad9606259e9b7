// Functions of training kernels, in f32. Logarithms and error functions are written out, so that they have the same digits on
// every device: within a few units in the last place.

// The natural logarithm (Cephes, logf): WGSL's own may be off by 2^-21 beside 1.
fn ln(x: f32) -> f32 {
    // 0, negative and subnormal numbers, infinity and not-a-number are left to the device.
    if (!(x >= 1.1754944e-38 && x <= 3.4028234e38)) {
        return log(x);
    }
    let bits = bitcast<u32>(x);
    var e = f32(i32(bits >> 23u) - 126);
    var m = bitcast<f32>((bits & 0x007fffffu) | 0x3f000000u);
    if (m < 0.70710678) {
        e -= 1.0;
        m += m;
    }
    let t = m - 1.0;
    let z = t * t;
    var y = 7.0376836292e-2;
    y = y * t - 1.1514610310e-1;
    y = y * t + 1.1676998740e-1;
    y = y * t - 1.2420140846e-1;
    y = y * t + 1.4249322787e-1;
    y = y * t - 1.6668057665e-1;
    y = y * t + 2.0000714765e-1;
    y = y * t - 2.4999993993e-1;
    y = y * t + 3.3333331174e-1;
    y = y * t * z - 2.12194440e-4 * e - 0.5 * z;
    return t + y + 0.693359375 * e;
}

// ln(1 + x) for x from 0 to 1: the rounding of 1 + x is made good.
fn ln_1p(x: f32) -> f32 {
    let u = 1.0 + x;
    if (u == 1.0) {
        return x;
    }
    return ln(u) * (x / (u - 1.0));
}

fn softplus(x: f32) -> f32 {
    return max(x, 0.0) + ln_1p(exp(-abs(x)));
}

fn normal_cdf(x: f32) -> f32 {
    return 0.5 * (1.0 + erf(x * 0.70710678));
}

fn normal_density(x: f32) -> f32 {
    return 0.39894228 * exp(-0.5 * min(x * x, 160.0));
}

// By exponentials: WGSL's own tanh may cancel beside 0.
fn tanh_of(x: f32) -> f32 {
    let s = x * x;
    if (s < 0.09) {
        return x * (1.0 + s * (-0.33333333 + s * (0.13333333 + s * (-0.053968254 + s * 0.021869489))));
    }
    return sign(x) * (1.0 - 2.0 / (exp(min(2.0 * abs(x), 80.0)) + 1.0));
}

fn gelu_inner(x: f32) -> f32 {
    return tanh_of(0.7978845608 * (x + 0.044715 * x * x * x));
}

fn turn(x: u32, by: u32) -> u32 {
    return (x << by) | (x >> (32u - by));
}

fn round4(x: vec2<u32>, by: vec4<u32>) -> vec2<u32> {
    var v = x;
    v.x += v.y; v.y = turn(v.y, by.x) ^ v.x;
    v.x += v.y; v.y = turn(v.y, by.y) ^ v.x;
    v.x += v.y; v.y = turn(v.y, by.z) ^ v.x;
    v.x += v.y; v.y = turn(v.y, by.w) ^ v.x;
    return v;
}

// Threefry-2x32 with 20 rounds.
fn threefry(key: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
    let k = vec3<u32>(key, 0x1bd11bdau ^ key.x ^ key.y);
    let even = vec4<u32>(13u, 15u, 26u, 6u);
    let odd = vec4<u32>(17u, 29u, 16u, 24u);
    var v = counter + k.xy;
    v = round4(v, even) + vec2<u32>(k.y, k.z + 1u);
    v = round4(v, odd) + vec2<u32>(k.z, k.x + 2u);
    v = round4(v, even) + vec2<u32>(k.x, k.y + 3u);
    v = round4(v, odd) + vec2<u32>(k.y, k.z + 4u);
    return round4(v, even) + vec2<u32>(k.z, k.x + 5u);
}

// The uniform number of these bits, (bits + 1/2) / 2^32.
fn unit_number(bits: u32) -> f32 {
    return (f32(bits) + 0.5) * 2.3283064365386963e-10;
}

// -ln of it; beside 1 by its distance from 1, which the bits give exactly.
fn minus_ln(bits: u32) -> f32 {
    let d = (f32(~bits) + 0.5) * 2.3283064365386963e-10;
    let near = d * (1.0 + d * (0.5 + d * (0.33333333 + d * 0.25)));
    return select(-ln(unit_number(bits)), near, d < 0.02);
}
