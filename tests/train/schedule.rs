//! Learning rates at known steps.

use moeray::train::{Decay, Schedule, Tail};

fn schedule(decay: Decay) -> Schedule {
    Schedule { peak: 2.0, decay, warmup: 4, steps: 20, min_ratio: 0.1, decay_from_start: false }
}

fn close(got: f64, want: f64) {
    assert!((got - want).abs() < 1e-12, "{got} instead of {want}");
}

#[test]
fn rates_of_each_schedule() {
    let wsd = |tail| Decay::Wsd { part: 0.25, tail };
    for decay in [Decay::Constant, Decay::Linear, Decay::Cosine, wsd(Tail::Linear)] {
        let s = schedule(decay);
        [0.5, 1.0, 1.5, 2.0].iter().enumerate().for_each(|(i, want)| close(s.rate(i as u64), *want));
        close(s.rate(4), 2.0);
    }
    close(schedule(Decay::Constant).rate(19), 2.0);
    close(schedule(Decay::Linear).rate(12), 2.0 * (0.1 + 0.9 * 0.5));
    close(schedule(Decay::Linear).rate(20), 0.2);
    close(schedule(Decay::Cosine).rate(8), 2.0 * (0.1 + 0.9 * (1.0 + (std::f64::consts::PI / 4.0).cos()) / 2.0));
    close(schedule(Decay::Cosine).rate(20), 0.2);
    close(schedule(Decay::Cosine).rate(1000), 0.2);
    // The last quarter of 20 steps: 15 to 20.
    close(schedule(wsd(Tail::Linear)).rate(15), 2.0);
    close(schedule(wsd(Tail::Linear)).rate(17), 2.0 * (0.1 + 0.9 * 0.6));
    close(schedule(wsd(Tail::OneMinusSqrt)).rate(17), 2.0 * (0.1 + 0.9 * (1.0 - 0.4f64.sqrt())));
    close(schedule(wsd(Tail::Cosine)).rate(17), 2.0 * (0.1 + 0.9 * (1.0 + (0.4 * std::f64::consts::PI).cos()) / 2.0));
}

#[test]
fn rates_of_the_demo_models_twin() {
    // lr0 * min(1, (s + 1) / 100) * (0.05 + 0.95 * (1 + cos(pi * s / steps)) / 2), of bard_steps.py.
    let s = Schedule {
        peak: 1e-3,
        decay: Decay::Cosine,
        warmup: 100,
        steps: 3500,
        min_ratio: 0.05,
        decay_from_start: true,
    };
    for step in [0u64, 50, 99, 100, 1750, 3499] {
        let fall = (1.0 + (std::f64::consts::PI * step as f64 / 3500.0).cos()) / 2.0;
        let want = 1e-3 * ((step + 1) as f64 / 100.0).min(1.0) * (0.05 + 0.95 * fall);
        assert!((s.rate(step) - want).abs() < 1e-18, "step {step}");
    }
}

#[test]
fn impossible_schedules_are_named() {
    let s = schedule(Decay::Cosine);
    for (s, word) in [
        (Schedule { peak: f64::NAN, ..s }, "learning_rate"),
        (Schedule { min_ratio: 1.5, ..s }, "min_lr_ratio"),
        (Schedule { warmup: 21, ..s }, "warmup_steps"),
        (Schedule { steps: 0, ..s }, "max_steps"),
        (Schedule { decay: Decay::Wsd { part: 2.0, tail: Tail::Linear }, ..s }, "wsd_decay_ratio"),
    ] {
        assert!(s.check().unwrap_err().to_string().contains(word), "{word}");
    }
    s.check().unwrap();
}
