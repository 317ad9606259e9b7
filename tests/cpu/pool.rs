//! The thread pool by itself: every item runs once, whatever the number of threads, callers, panics and pauses.

use super::Rng;
use moeray::backend::cpu::pool::Pool;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[test]
fn every_item_runs_once() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads).unwrap();
        assert_eq!(pool.threads(), threads);
        for items in [0, 1, 2, 5, 100] {
            let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            pool.run(items, &|worker, item| {
                assert!(worker < threads);
                counts[item].fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {items} items");
        }
    }
}

/// Spans hold every item once, none is longer than was allowed, and they are far fewer than the items.
#[test]
fn spans_cover_the_items() {
    for threads in [1, 2, 8] {
        let pool = Pool::new(threads).unwrap();
        for (items, most) in [(0, 4), (1, 4), (5, 1), (100, 7), (100, 1000), (1000, 1000)] {
            let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            let goes = AtomicUsize::new(0);
            pool.run_spans(items, most, &|worker, span| {
                assert!(worker < threads && !span.is_empty() && span.len() <= most);
                goes.fetch_add(1, Ordering::Relaxed);
                span.for_each(|i| _ = counts[i].fetch_add(1, Ordering::Relaxed));
            })
            .unwrap();
            let case = format!("{threads} threads, {items} items, {most} at a time");
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{case}");
            if items == most {
                // A run is halved ten times at most until single items are left.
                assert!(goes.into_inner() <= 12 * threads, "{case}");
            }
        }
    }
}

/// Many tiny jobs, with pauses in which workers fall asleep.
#[test]
fn many_tiny_jobs() {
    let pool = Pool::new(3).unwrap();
    let total = AtomicUsize::new(0);
    for i in 0..20_000 {
        pool.run(4, &|_, item| {
            total.fetch_add(item + 1, Ordering::Relaxed);
        })
        .unwrap();
        if i % 2000 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
    assert_eq!(total.load(Ordering::Relaxed), 20_000 * 10);
}

/// Several callers on one pool, and jobs inside of jobs: nothing hangs, nothing is lost, worker numbers stay unique.
#[test]
fn callers_are_served_one_after_the_other() {
    let pool = Pool::new(3).unwrap();
    let busy: Vec<AtomicUsize> = (0..3).map(|_| AtomicUsize::new(0)).collect();
    let total = AtomicUsize::new(0);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..500 {
                    pool.run(7, &|worker, _| {
                        assert_eq!(busy[worker].fetch_add(1, Ordering::SeqCst), 0, "worker {worker} twice");
                        pool.run(2, &|_, _| {
                            total.fetch_add(1, Ordering::Relaxed);
                        })
                        .unwrap();
                        busy[worker].fetch_sub(1, Ordering::SeqCst);
                    })
                    .unwrap();
                }
            });
        }
    });
    assert_eq!(total.load(Ordering::Relaxed), 4 * 500 * 7 * 2);
}

/// A panic in an item is an error of the job; the pool goes on working.
#[test]
fn a_panic_is_an_error() {
    let pool = Pool::new(3).unwrap();
    for bad in [0, 10, 63] {
        let done = pool.run(64, &|_, item| assert_ne!(item, bad, "on purpose"));
        assert!(done.is_err());
        pool.run(64, &|_, _| {}).unwrap();
    }
    assert!(Pool::new(1).unwrap().run(2, &|_, _| panic!("on purpose")).is_err());
}

/// Jobs of random sizes from several callers at once, some with panics, some with pauses in which workers fall asleep, on pools
/// that come and go, with more threads than the machine has: every job ends, with an error exactly if one of its items
/// panicked, every item of a job without a panic ran once, and no two calls at a time had the same worker number.
#[test]
fn random_jobs_under_stress() {
    for threads in [2, 3, 8, 32] {
        let pool = Pool::new(threads).unwrap();
        let busy: Vec<AtomicBool> = (0..threads).map(|_| AtomicBool::new(false)).collect();
        std::thread::scope(|s| {
            for caller in 0..3 {
                let (pool, busy) = (&pool, &busy);
                s.spawn(move || {
                    let mut rng = Rng(threads as u64 * 1000 + caller);
                    for _ in 0..300 {
                        random_job(pool, busy, &mut rng);
                    }
                });
            }
        });
    }
}

fn random_job(pool: &Pool, busy: &[AtomicBool], rng: &mut Rng) {
    let (items, max_items) = (rng.next() as usize % 200, 1 + rng.next() as usize % 9);
    let bad = (rng.next() % 32 == 0 && items > 0).then(|| rng.next() as usize % items);
    let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
    // A panic must not leave its worker marked as busy.
    struct Mark<'a>(&'a AtomicBool);
    impl Drop for Mark<'_> {
        fn drop(&mut self) {
            self.0.store(false, Ordering::SeqCst);
        }
    }
    let twice = AtomicBool::new(false);
    // A job of one item runs on the calling thread at once, whoever else computes: it has no worker to itself.
    let done = pool.run_spans(items, max_items, &|worker, span| {
        let _mark = (items > 1).then(|| {
            twice.fetch_or(busy[worker].swap(true, Ordering::SeqCst), Ordering::SeqCst);
            Mark(&busy[worker])
        });
        for item in span {
            assert_ne!(Some(item), bad, "on purpose");
            counts[item].fetch_add(1, Ordering::Relaxed);
        }
    });
    assert!(!twice.into_inner(), "two calls with one worker number");
    assert_eq!(done.is_err(), bad.is_some());
    let most = counts.iter().map(|c| c.load(Ordering::Relaxed)).max().unwrap_or(0);
    let least = counts.iter().map(|c| c.load(Ordering::Relaxed)).min().unwrap_or(1);
    assert!(most <= 1 && (bad.is_some() || least == 1), "{items} items: between {least} and {most} times");
    if rng.next() % 64 == 0 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
