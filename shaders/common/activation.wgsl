
// Activations of a feed-forward network; ACT: 0 SiLU, 1 GELU (erf), 2 GELU (tanh), 3 ReLU, 5 sigmoid, 6 identity, 7 tanh; 4 GPT-OSS's
// clamped SwiGLU, which is a gated unit only, with the bits of ALPHA and LIMIT.
fn sigmoid(x: f32) -> f32 {
    // exp of at most 80: no infinity on the way.
    return 1.0 / (1.0 + exp(min(-x, 80.0)));
}

// erf(x), absolute error at most 1.5e-7; small arguments by their series, so that the relative error stays small too.
fn erf(x: f32) -> f32 {
    let a = abs(x);
    if (a < 0.5) {
        // Maclaurin series up to x^11; the next term is below 3e-8 of the first.
        let s = x * x;
        let poly = 1.0 + s * (-0.33333333 + s * (0.1 + s * (-0.023809524 + s * (0.0046296296 + s * -0.00075757576))));
        return 1.1283791671 * x * poly;
    }
    // Abramowitz and Stegun 7.1.26: absolute error 1.5e-7.
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let poly = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - poly * exp(-min(a * a, 80.0)));
}

fn activate(x: f32) -> f32 {
    switch ACT {
        case 1u: {
            return 0.5 * x * (1.0 + erf(x * 0.70710678));
        }
        case 2u: {
            let inner = 0.79788456 * (x + 0.044715 * x * x * x);
            return 0.5 * x * (1.0 + tanh(clamp(inner, -15.0, 15.0)));
        }
        case 3u: {
            return max(x, 0.0);
        }
        case 5u: {
            return sigmoid(x);
        }
        case 6u: {
            return x;
        }
        case 7u: {
            return tanh(clamp(x, -15.0, 15.0));
        }
        default: {
            return x * sigmoid(x);
        }
    }
}

// A gated unit.
fn gated(gate: f32, up: f32) -> f32 {
    if (ACT == 4u) { // static
        // Variables, because a conversion of constants is not everywhere evaluated.
        var alpha_bits = ALPHA;
        var limit_bits = LIMIT;
        let limit = bitcast<f32>(limit_bits);
        let g = min(gate, limit);
        return g * sigmoid(bitcast<f32>(alpha_bits) * g) * (clamp(up, -limit, limit) + 1.0);
    } else {
        return activate(gate) * up;
    }
}
