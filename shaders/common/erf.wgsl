// Functions that inference and training share. Their numbers are the same on every device, within a few units in the last place.
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
