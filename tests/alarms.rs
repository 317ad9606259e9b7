//! Comparators against data that they must reject.

use crate::support::{compare::*, rng::Rng};

#[test]
fn numbers() {
    let want = Rng(1).normals(1000, 1.0);
    assert!(check(&want, &want, 1e-12).is_ok());
    let spoil = |f: &dyn Fn(&mut Vec<f32>)| {
        let mut got = want.clone();
        f(&mut got);
        check(&got, &want, 1e-6)
    };
    assert!(spoil(&|g| g[500] = f32::NAN).is_err(), "one NaN");
    assert!(spoil(&|g| g[500] = f32::INFINITY).is_err(), "one infinity");
    assert!(spoil(&|g| g[7] = -g[7]).is_err(), "one flipped sign");
    assert!(spoil(&|g| g.rotate_left(1)).is_err(), "a shift by one");
    assert!(spoil(&|g| g.iter_mut().for_each(|x| *x *= 1.01)).is_err(), "1 % too large");
    assert!(spoil(&|g| g[990..].fill(0.0)).is_err(), "a tail not written");
    assert!(check(&vec![0.0; 1000], &want, 1e-6).is_err(), "all zeros");
    // One error that the mean does not show: caught by the largest error.
    let wide = vec![1.0f32; 1_000_000];
    let mut got = wide.clone();
    got[3] = 1.5;
    assert!(diff(&got, &wide).nmse < 1e-6 && check(&got, &wide, 1e-6).is_err());
}

#[test]
fn routing_is_compared_as_pairs() {
    let want: (&[u32], &[f32]) = (&[3, 1, 0, 2], &[0.6, 0.4, 0.7, 0.3]);
    let same_pairs: (&[u32], &[f32]) = (&[1, 3, 0, 2], &[0.4, 0.6, 0.7, 0.3]);
    assert!(check_routing(same_pairs, want, 2, 1e-5).is_ok());
    assert!(check_routing((&[1, 3, 0, 2], want.1), want, 2, 1e-5).is_err(), "ids swapped, weights not");
    assert!(check_routing((&[3, 1, 0, 1], want.1), want, 2, 1e-5).is_err(), "another expert");
    assert!(check_routing((&[0, 2, 3, 1], &[0.7, 0.3, 0.6, 0.4]), want, 2, 1e-5).is_err(), "tokens swapped");
    assert!(check_routing((want.0, &[0.6, 0.4, f32::NAN, 0.3]), want, 2, 1e-5).is_err(), "a NaN weight");
    assert!(check_routing((&[3, 1], &[0.6, 0.4]), want, 2, 1e-5).is_err(), "a token missing");
}
