//! Bodies of answers: at once, or as a stream of server-sent events that is written as the engine's events come.

use crate::serve::engine::Event;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{sync::mpsc::UnboundedReceiver, time::Interval};

/// Turns events into the text of a stream.
pub trait Writer: Send {
    /// Appends what an event comes to.
    fn write(&mut self, index: usize, event: Event, out: &mut String);

    /// Appends what keeps a connection open while nothing happens.
    fn ping(&self, out: &mut String) {
        out.push_str(": ping\n\n");
    }

    /// Appends the end, once all events have come.
    fn end(&mut self, out: &mut String);
}

/// A body.
pub enum AnswerBody {
    /// At once; `None` once it was given.
    Full(Option<Bytes>),
    /// Events. Dropping it tells the engine that nobody waits any more.
    Events(Box<EventBody>),
}

/// See [`AnswerBody::Events`].
pub struct EventBody {
    events: UnboundedReceiver<(usize, Event)>,
    writer: Box<dyn Writer>,
    ping: Interval,
    ended: bool,
}

impl EventBody {
    /// A stream of what `events` come to, with a ping after `quiet` without any.
    pub fn new(events: UnboundedReceiver<(usize, Event)>, writer: Box<dyn Writer>, quiet: Duration) -> Self {
        let mut ping = tokio::time::interval(quiet);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ping.reset();
        EventBody { events, writer, ping, ended: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let mut out = String::new();
        loop {
            if self.ended {
                return Poll::Ready((!out.is_empty()).then(|| Bytes::from(out)));
            }
            match self.events.poll_recv(cx) {
                Poll::Ready(Some((index, event))) => {
                    self.writer.write(index, event, &mut out);
                    self.ping.reset();
                    // What is there goes out at once; more of it would only wait.
                    if !out.is_empty() {
                        return Poll::Ready(Some(Bytes::from(out)));
                    }
                }
                Poll::Ready(None) => {
                    self.writer.end(&mut out);
                    self.ended = true;
                }
                Poll::Pending => {
                    if self.ping.poll_tick(cx).is_pending() {
                        return Poll::Pending;
                    }
                    self.writer.ping(&mut out);
                    return Poll::Ready(Some(Bytes::from(out)));
                }
            }
        }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            AnswerBody::Full(bytes) => Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            AnswerBody::Events(events) => events.poll(cx).map(|bytes| bytes.map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            AnswerBody::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            AnswerBody::Events(events) => events.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            AnswerBody::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            AnswerBody::Events(_) => SizeHint::default(),
        }
    }
}
