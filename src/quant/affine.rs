//! Choosing scales and minima: [`super::fit`]'s least squares for formats with an offset, `x ≈ s * q - m`.

use super::{
    bits::round_f16,
    fit::{LANES, clamp, nearest, range, reciprocal, totals},
};

/// Sums over a sub-block: of importances `w` times products of weights `x` and quants `q`.
#[derive(Clone, Copy)]
struct Sums {
    w: f32,
    x: f32,
    xx: f32,
    q: f32,
    qq: f32,
    qx: f32,
}

/// Weights of a sub-block with what does not depend on the quants.
struct Block<'a, const L: usize> {
    x: &'a [f32; L],
    w: &'a [f32; L],
    top: f32,
    sums: Sums,
}

impl<'a, const L: usize> Block<'a, L> {
    /// Quants are 0..=`top`.
    #[inline(always)]
    fn new(x: &'a [f32; L], w: &'a [f32; L], top: f32) -> Self {
        let (mut sw, mut sx, mut sxx) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
        for (x, w) in x.as_chunks::<LANES>().0.iter().zip(w.as_chunks::<LANES>().0) {
            for l in 0..LANES {
                sw[l] += w[l];
                sx[l] += w[l] * x[l];
                sxx[l] += w[l] * x[l] * x[l];
            }
        }
        let [sw, sx, xx] = totals(&[sw, sx, sxx]);
        Block { x, w, top, sums: Sums { w: sw, x: sx, xx, q: 0.0, qq: 0.0, qx: 0.0 } }
    }

    /// With the quants nearest to `(x + m) * inverse`.
    #[inline(always)]
    fn sums(&self, inverse: f32, m: f32) -> Sums {
        let (mut sq, mut sqq, mut sqx) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
        for (x, w) in self.x.as_chunks::<LANES>().0.iter().zip(self.w.as_chunks::<LANES>().0) {
            for l in 0..LANES {
                let q = nearest(clamp((x[l] + m) * inverse, 0.0, self.top));
                let wq = w[l] * q;
                sq[l] += wq;
                sqq[l] += wq * q;
                sqx[l] += wq * x[l];
            }
        }
        let [q, qq, qx] = totals(&[sq, sqq, sqx]);
        Sums { q, qq, qx, ..self.sums }
    }
}

impl Sums {
    /// The weighted squared error of `s * q - m`.
    #[inline(always)]
    fn error(&self, s: f32, m: f32) -> f32 {
        self.xx + s * (s * self.qq - 2.0 * self.qx) + m * (m * self.w + 2.0 * self.x - 2.0 * s * self.q)
    }

    /// The best `(s, m)` for these quants; with `m >= 0` where `m_positive`.
    #[inline(always)]
    fn solve(&self, m_positive: bool) -> (f32, f32) {
        let det = self.w * self.qq - self.q * self.q;
        if det > 0.0 {
            let s = (self.w * self.qx - self.x * self.q) / det;
            let m = (self.q * self.qx - self.qq * self.x) / det;
            if m >= 0.0 || !m_positive {
                return (s, m);
            }
        }
        // One unknown: no offset, or all quants the same.
        if m_positive && self.qq > 0.0 && self.x > 0.0 { (self.qx / self.qq, 0.0) } else { (0.0, -self.x / self.w) }
    }
}

/// The `(s, m)` of `x ≈ s * q - m`, q in 0..=`top`. Starts: the range of the weights over the levels, and up to `spread`
/// (in levels) more and fewer, in `steps` steps each.
#[inline(always)]
pub fn scale_and_min<const L: usize>(
    x: &[f32; L],
    w: &[f32; L],
    top: f32,
    m_positive: bool,
    spread: f32,
    steps: i32,
) -> (f32, f32) {
    let (low, high) = range(x);
    let low = if m_positive { low.min(0.0) } else { low };
    if high - low < 1e-20 {
        return (0.0, -low);
    }
    let block = Block::new(x, w, top);
    let (mut best, mut least) = ((0.0, 0.0), f32::INFINITY);
    for k in -steps..=steps {
        let mut at = ((top + spread * k as f32 / steps as f32) / (high - low), -low);
        // From each start, twice.
        for _ in 0..2 {
            let sums = block.sums(at.0, at.1);
            let (s, m) = sums.solve(m_positive);
            let error = sums.error(s, m);
            if error < least {
                (best, least) = ((s, m), error);
            }
            at = (reciprocal(s), m);
        }
    }
    best
}

/// The quants of `x ≈ s * q - m`.
#[inline(always)]
pub fn quants<const L: usize>(x: &[f32; L], s: f32, m: f32, top: f32) -> [u8; L] {
    let inverse = reciprocal(s);
    x.map(|x| nearest(clamp((x + m) * inverse, 0.0, top)) as u8)
}

/// What [`blocks_of_affine`] chose: `x ≈ d * s[j] * q - dmin * m[j]`.
pub struct Scaled<const N: usize> {
    /// The scale of scales, a half.
    pub d: f32,
    /// The scale of minima, a half.
    pub dmin: f32,
    /// The integer scale of each sub-block.
    pub s: [u8; N],
    /// The integer minimum of each sub-block.
    pub m: [u8; N],
    /// The quants.
    pub q: [u8; 256],
}

/// Integers and quants for given outer scales, with the sums that the outer scales' least squares need.
struct Choice<const N: usize> {
    s: [f32; N],
    m: [f32; N],
    error: f32,
    next: (f32, f32),
}

/// Fits 256 weights in `N` sub-blocks of `L` with quants 0..=`top`, scales and minima 0..=`most`.
#[inline(always)]
pub fn blocks_of_affine<const N: usize, const L: usize>(
    x: &[f32; 256],
    w: &[f32; 256],
    top: f32,
    most: f32,
    spread: f32,
    steps: i32,
) -> Scaled<N> {
    let (xs, ws) = (x.as_chunks::<L>().0, w.as_chunks::<L>().0);
    let mut free = [(0f32, 0f32); N];
    for (f, (x, w)) in free.iter_mut().zip(xs.iter().zip(ws)) {
        *f = scale_and_min(x, w, top, true, spread, steps);
    }
    let largest = free.iter().fold((0f32, 0f32), |a, f| (a.0.max(f.0), a.1.max(f.1)));
    let (mut d, mut dmin) = (round_f16(largest.0 / most), round_f16(largest.1 / most));
    let mut best = (d, dmin, [0f32; N], [0f32; N], f32::INFINITY);
    for _ in 0..3 {
        let c = choose::<N, L>(xs, ws, &free, d, dmin, top, most);
        if c.error < best.4 {
            best = (d, dmin, c.s, c.m, c.error);
        }
        let next = (round_f16(c.next.0), round_f16(c.next.1));
        if next == (d, dmin) {
            break;
        }
        (d, dmin) = next;
    }
    let (d, dmin, s, m, _) = best;
    let mut q = [0; 256];
    for (j, (q, x)) in q.as_chunks_mut::<L>().0.iter_mut().zip(xs).enumerate() {
        *q = quants(x, d * s[j], dmin * m[j], top);
    }
    Scaled { d, dmin, s: s.map(|s| s as u8), m: m.map(|m| m as u8), q }
}

/// The integer scale or minimum nearest to `v`.
#[inline(always)]
fn whole(v: f32, most: f32) -> f32 {
    nearest(clamp(v, 0.0, most))
}

/// The best integers near `free`, given the outer scales.
#[inline(always)]
fn choose<const N: usize, const L: usize>(
    xs: &[[f32; L]],
    ws: &[[f32; L]],
    free: &[(f32, f32); N],
    d: f32,
    dmin: f32,
    top: f32,
    most: f32,
) -> Choice<N> {
    let (per_d, per_dmin) = (reciprocal(d), reciprocal(dmin));
    let mut c = Choice { s: [0.0; N], m: [0.0; N], error: 0.0, next: (d, dmin) };
    // Normal equations of d and dmin.
    let (mut dd, mut dm, mut mm, mut dx, mut mx) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for j in 0..N {
        let block = Block::new(&xs[j], &ws[j], top);
        let (s0, m0) = (whole(free[j].0 * per_d, most), whole(free[j].1 * per_dmin, most));
        // All quants zero: the offset alone.
        let zero = block.sums(0.0, 0.0);
        let alone = whole(-block.sums.x / block.sums.w * per_dmin, most);
        let mut least = (0.0, alone, zero, zero.error(0.0, dmin * alone));
        for s in [s0 - 1.0, s0, s0 + 1.0] {
            let s = clamp(s, 0.0, most);
            // The best minimum for the quants of (s, m0), then the quants for that minimum.
            let sums = block.sums(reciprocal(d * s), dmin * m0);
            let m1 = whole((d * s * sums.q - sums.x) / sums.w * per_dmin, most);
            let again = if m1 == m0 { sums } else { block.sums(reciprocal(d * s), dmin * m1) };
            for (m, sums) in [(m0, sums), (m1, again)] {
                let error = sums.error(d * s, dmin * m);
                if error < least.3 {
                    least = (s, m, sums, error);
                }
            }
        }
        let (s, m, sums, error) = least;
        (c.s[j], c.m[j]) = (s, m);
        c.error += error;
        dd += s * s * sums.qq;
        dm -= s * m * sums.q;
        mm += m * m * sums.w;
        dx += s * sums.qx;
        mx -= m * sums.x;
    }
    let det = dd * mm - dm * dm;
    if det > 1e-6 * dd * mm {
        c.next = ((dx * mm - mx * dm) / det, (mx * dd - dx * dm) / det);
    } else if dd > 0.0 && mm == 0.0 {
        c.next = (dx / dd, dmin);
    }
    if c.next.1 < 0.0 || c.next.0 < 0.0 {
        c.next = (d, dmin);
    }
    c
}
