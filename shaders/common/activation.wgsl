
// Activations of a feed-forward network, by ACT. The clamped SwiGLU of GPT-OSS is a gated unit only; ALPHA and LIMIT are the
// bits of its numbers.
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
        case ACT_GELU: {
            return 0.5 * x * (1.0 + erf(x * 0.70710678));
        }
        case ACT_GELU_TANH: {
            let inner = 0.79788456 * (x + 0.044715 * x * x * x);
            return 0.5 * x * (1.0 + tanh(clamp(inner, -15.0, 15.0)));
        }
        case ACT_RELU: {
            return max(x, 0.0);
        }
        case ACT_SIGMOID: {
            return sigmoid(x);
        }
        case ACT_IDENTITY: {
            return x;
        }
        case ACT_TANH: {
            return tanh(clamp(x, -15.0, 15.0));
        }
        default: {
            return x * sigmoid(x);
        }
    }
}

// A gated unit.
fn gated(gate: f32, up: f32) -> f32 {
    if (ACT == ACT_CLAMPED_SWIGLU) { // static
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
