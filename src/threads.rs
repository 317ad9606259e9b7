//! Work on several threads: the one place where threads are made for a single task. (The CPU backend has a pool of its own,
//! for work that comes again with every token.)

use crate::error::{Error, Result};
use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

/// Calls `work` for every item, at most `threads` threads taking the next item in turn, each with a scratch value of its own
/// from `scratch`. The caller's thread is one of them; a thread that the system does not give is done without.
///
/// # Errors
/// The first error of `work`, after which no further item is begun; [`Error::Device`] where a thread panicked.
pub(crate) fn for_each<T, S>(
    threads: usize,
    items: impl Iterator<Item = T> + Send,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, T) -> Result<()> + Sync,
) -> Result<()> {
    let (items, failed) = (Mutex::new(items), AtomicBool::new(false));
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        let mut scratch = scratch();
        while !failed.load(Ordering::Relaxed) {
            let Some(item) = next() else { break };
            work(&mut scratch, item).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    };
    std::thread::scope(|s| {
        let spawn = |_| std::thread::Builder::new().spawn_scoped(s, run).ok();
        let others: Vec<_> = (1..threads).map_while(spawn).collect();
        let own = run();
        let panicked = || Err(Error::Device("a worker thread ended early".into()));
        others.into_iter().map(|t| t.join().unwrap_or_else(|_| panicked())).fold(own, Result::and)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_item_is_worked_on_once() {
        for threads in [0, 1, 2, 9] {
            let mut seen = vec![0usize; 100];
            for_each(
                threads,
                seen.iter_mut().enumerate(),
                || (),
                |(), (i, to)| {
                    *to += i + 1;
                    Ok(())
                },
            )
            .unwrap();
            assert!(seen.iter().enumerate().all(|(i, n)| *n == i + 1), "{threads} threads");
        }
    }

    #[test]
    fn an_error_ends_the_work() {
        let begun = AtomicUsize::new(0);
        let e = for_each(
            3,
            0..1000,
            || (),
            |(), i| {
                begun.fetch_add(1, Ordering::Relaxed);
                if i == 5 { Err(Error::Invalid("5".into())) } else { Ok(()) }
            },
        );
        assert!(matches!(e, Err(Error::Invalid(_))));
        assert!(begun.into_inner() <= 1000);
    }
}
