
// Activations of a feed-forward network, by ACT. The clamped SwiGLU of GPT-OSS is a gated unit only; ALPHA and LIMIT are the
// bits of its numbers.
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
