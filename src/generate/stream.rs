//! Generations as asynchronous streams.

use super::{Decoder, Generation, Piece, Polled};
use crate::error::Result;
use futures_core::Stream;
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// The pieces of a generation as a stream, for any executor. On a GPU it sleeps while the device computes; on the CPU every poll
/// computes for some 20 milliseconds, which a program with other things to do gives a thread or task of its own.
pub struct PieceStream<D: Decoder>(Generation<D>);

impl<D: Decoder> PieceStream<D> {
    pub(super) fn new(generation: Generation<D>) -> Self {
        PieceStream(generation)
    }

    /// The generation, which can be asked for its figures.
    pub fn generation(&self) -> &Generation<D> {
        &self.0
    }

    /// Ends the generation; gives the session back.
    pub fn into_inner(self) -> D {
        self.0.into_inner()
    }
}

impl<D: Decoder + Unpin> Stream for PieceStream<D> {
    type Item = Result<Piece>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Piece>>> {
        let generation = &mut self.get_mut().0;
        match generation.poll(generation.blocking_slice()) {
            Ok(Polled::Piece(piece)) => Poll::Ready(Some(Ok(piece))),
            Ok(Polled::Finished) => Poll::Ready(None),
            Err(e) => Poll::Ready(Some(Err(e))),
            Ok(Polled::Waiting) if generation.decoder.wake(cx.waker()) => Poll::Pending,
            Ok(Polled::Pending | Polled::Waiting) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}
