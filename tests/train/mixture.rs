//! Mixtures of experts on rows of numbers, by the library's own call.

use moeray::train::{Mixture, MixtureLoss, MixtureOptions, data::normal};
use safetensors::SafeTensors;

/// Rows of `4 |x|`.
fn rows() -> (Vec<f32>, Vec<f32>) {
    let x: Vec<f32> = (0..64).map(|i| i as f32 / 16.0 - 1.97).collect();
    let y = x.iter().map(|x| 4.0 * x.abs()).collect();
    (x, y)
}

fn trained(options: MixtureOptions, steps: usize) -> (Mixture, f64) {
    let ((x, y), mut mixture) = (rows(), Mixture::new(options).unwrap());
    let mut last = f64::INFINITY;
    for _ in 0..steps {
        last = mixture.step(&x, &y).unwrap();
    }
    (mixture, last)
}

#[test]
fn competing_experts_divide_the_rows_among_them() {
    for seed in [1, 2, 3] {
        let options =
            MixtureOptions { loss: MixtureLoss::Competitive, learning_rate: 0.1, seed, ..MixtureOptions::default() };
        let (mut mixture, _) = trained(options, 500);
        let gates = mixture.gates(&[-1.5, 1.5]).unwrap();
        let one = usize::from(gates[1] > gates[0]);
        assert!(gates[one] > 0.9 && gates[2 + 1 - one] > 0.9, "seed {seed}: {gates:?}");
        let (x, y) = rows();
        let off = mixture.predict(&x).unwrap().iter().zip(&y).map(|(p, y)| (p - y).powi(2)).sum::<f32>() / 64.0;
        assert!(off < 0.2, "seed {seed}: the mean square is {off}");
        // Each expert is the line of its side, whose slope is 4 or −4: the weighted sum alone would not say so.
        let weights = mixture.weights().unwrap();
        let slopes = &weights["experts.weight"];
        assert_eq!(mixture.shape("experts.weight"), Some(&[2, 1, 1][..]));
        assert!((slopes[one] + 4.0).abs() < 0.5 && (slopes[1 - one] - 4.0).abs() < 0.5, "seed {seed}: {slopes:?}");
    }
}

#[test]
fn sparse_experts_and_shared_ones_learn_together() {
    for (used, shared, hidden) in [(1, 0, 8), (2, 1, 0), (3, 2, 4)] {
        let options = MixtureOptions {
            experts: 3,
            used,
            shared,
            hidden,
            balance: 0.01,
            z: 0.001,
            learning_rate: 0.03,
            ..MixtureOptions::default()
        };
        let first = trained(options.clone(), 1).1;
        let (mut mixture, last) = trained(options, 300);
        assert!(last < first / 4.0, "{used} of 3, {shared} shared: {last} after {first}");
        for row in mixture.gates(&rows().0).unwrap().chunks(3) {
            assert_eq!(row.iter().filter(|g| **g > 0.0).count(), used);
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn the_loop_of_shared_experts_follows_pytorch() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/train/f06_loop");
    let bytes = std::fs::read(folder.join("data.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |name: &str| -> Vec<f32> {
        let data = file.tensor(name).unwrap().data().to_vec();
        data.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let curve = |name: &str| -> Vec<f64> {
        let data = file.tensor(&format!("curve.{name}")).unwrap().data().to_vec();
        data.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let (rows, width) = (32 * 16, 32);
    let mut mixture = Mixture::new(MixtureOptions {
        inputs: width,
        outputs: width,
        experts: 4,
        used: 2,
        shared: 2,
        balance: 0.01,
        z: 0.01 * 0.001,
        learning_rate: 1e-3,
        ..MixtureOptions::default()
    })
    .unwrap();
    for part in ["weight", "bias"] {
        mixture.set(&format!("router.{part}"), &numbers(&format!("moe_model.router.gate.{part}"))).unwrap();
        let experts = (0..4).flat_map(|e| numbers(&format!("moe_model.experts.{e}.linear.{part}")));
        mixture.set(&format!("experts.{part}"), &experts.collect::<Vec<f32>>()).unwrap();
        for s in 0..2 {
            let own = numbers(&format!("shared_experts.{s}.linear.{part}"));
            mixture.set(&format!("shared.{s}.{part}"), &own).unwrap();
        }
    }
    let [mse, balance, z] = ["mse", "balance", "z"].map(curve);
    for s in 0..100 {
        let n = rows * width;
        let stream = |t: u32| (0..n).map(|i| normal(0, t, (s * n + i) as u32)).collect::<Vec<f32>>();
        let got = mixture.step(&stream(1), &stream(2)).unwrap();
        let want = mse[s] + 0.01 * (balance[s] + 0.001 * z[s]);
        assert!((got - want).abs() < 1e-4, "step {s}: {got} instead of {want}");
    }
}

#[test]
fn what_makes_no_mixture_is_refused() {
    let new = |o: MixtureOptions| match Mixture::new(o) {
        Ok(_) => panic!("accepted"),
        Err(e) => e.to_string(),
    };
    let plain = MixtureOptions::default;
    assert!(new(MixtureOptions { experts: 0, ..plain() }).contains("experts is 0"));
    assert!(new(MixtureOptions { used: 3, ..plain() }).contains("used is 3"));
    assert!(new(MixtureOptions { inputs: 1 << 20, outputs: 1 << 20, ..plain() }).contains("weights of experts"));
    assert!(new(MixtureOptions { z: -1.0, ..plain() }).contains("z is -1"));
    assert!(new(MixtureOptions { learning_rate: f64::NAN, ..plain() }).contains("learning_rate"));
    let competitive = MixtureOptions { loss: MixtureLoss::Competitive, ..plain() };
    assert!(new(MixtureOptions { used: 1, ..competitive.clone() }).contains("compete"));
    assert!(new(MixtureOptions { shared: 1, ..competitive }).contains("compete"));
    assert!(new(MixtureOptions { experts: 1, used: 1, balance: 0.1, ..plain() }).contains("two best"));
    let mut mixture = Mixture::new(MixtureOptions { inputs: 3, ..plain() }).unwrap();
    let before = mixture.weights().unwrap();
    for (x, y, says) in [(4, 1, "rows of 3 inputs"), (0, 0, "rows of 3 inputs"), (6, 3, "2 rows of 1 outputs")] {
        let e = mixture.step(&vec![0.0; x], &vec![0.0; y]).unwrap_err().to_string();
        assert!(e.contains(says), "{e}");
    }
    assert!(mixture.step(&[f32::NAN; 3], &[0.0]).unwrap_err().to_string().contains("learning_rate"));
    assert!(mixture.set("gate", &[0.0]).unwrap_err().to_string().contains("router.weight"));
    assert!(mixture.set("router.bias", &[0.0]).is_err());
    assert_eq!(before, mixture.weights().unwrap());
}
