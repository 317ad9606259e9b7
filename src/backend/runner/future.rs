//! A step as a future, for any executor or none.

use super::{
    Runner,
    step::{Budget, Status},
};
use crate::error::{Error, Result};
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

/// The oldest step of a runner, slice by slice: each poll does at most one. Ready when its results are there
/// ([`Runner::results`]). Dropping it leaves the step queued.
#[derive(Debug)]
pub struct StepFuture<'a> {
    runner: &'a mut Runner,
    budget: Budget,
}

impl<'a> StepFuture<'a> {
    pub(super) fn new(runner: &'a mut Runner, budget: Budget) -> Self {
        StepFuture { runner, budget }
    }
}

impl Future for StepFuture<'_> {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let budget = self.budget;
        match self.runner.poll(budget) {
            Err(e) => Poll::Ready(Err(e)),
            Ok(Status::Done) => Poll::Ready(Ok(())),
            Ok(Status::Idle) => Poll::Ready(Err(Error::Invalid("no step is queued".into()))),
            Ok(Status::Waiting) if self.runner.wake(cx.waker()) => Poll::Pending,
            Ok(Status::Pending | Status::Waiting) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}
