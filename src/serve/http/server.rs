//! Connections: taken in up to a number, read within limits, and let finish when the server ends.

use super::{body::AnswerBody, routes};
use crate::serve::fleet::Fleet;
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
};

/// Most headers of a request, and most bytes of its head.
const HEADERS: usize = 100;
const HEAD_BYTES: usize = 64 << 10;
/// Time between two looks for models that nobody uses.
const LOOK: Duration = Duration::from_millis(500);
/// Time for the head of a request that comes while the server ends.
const LATE: Duration = Duration::from_secs(1);

/// Serves until `end` is done, then lets running answers finish, within the time that the options give.
pub async fn run(listener: TcpListener, fleet: Arc<Fleet>, end: impl Future<Output = ()>) {
    let (drain, draining) = watch::channel(false);
    let places = Arc::new(Semaphore::new(fleet.options.connections));
    let mut connections = JoinSet::new();
    tokio::pin!(end);
    let mut deadline: Option<tokio::time::Instant> = None;
    let mut look = tokio::time::interval(LOOK);
    loop {
        let at = deadline;
        let late = async move {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => match places.clone().try_acquire_owned() {
                    Ok(place) => {
                        let (fleet, draining) = (fleet.clone(), draining.clone());
                        connections.spawn(async move {
                            connection(stream, peer, fleet, draining).await;
                            drop(place);
                        });
                    }
                    Err(_) => { tokio::spawn(turn_away(stream)); }
                },
                // Out of descriptors, as a rule: some will come back.
                Err(e) => {
                    tracing::warn!("a connection could not be taken: {e}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            },
            () = &mut end, if deadline.is_none() => {
                tracing::info!("shutting down: running answers have {} s", fleet.options.grace.as_secs());
                fleet.close();
                deadline = Some(tokio::time::Instant::now() + fleet.options.grace);
                let _ = drain.send(true);
                if connections.is_empty() {
                    return;
                }
            }
            _ = look.tick() => {
                let fleet = fleet.clone();
                tokio::spawn(async move { fleet.unload_idle().await });
            }
            Some(_) = connections.join_next() => if deadline.is_some() && connections.is_empty() {
                return;
            },
            () = late => {
                tracing::warn!("{} connections are cut off", connections.len());
                return;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: SocketAddr, fleet: Arc<Fleet>, mut draining: watch::Receiver<bool>) {
    // Tokens are small and should not wait for each other.
    let _ = stream.set_nodelay(true);
    // Who comes while the server ends gets one answer: no.
    let late = *draining.borrow();
    let timeout = if late { LATE } else { fleet.options.read_timeout };
    let service = service_fn(move |request: Request<Incoming>| {
        let fleet = fleet.clone();
        async move { Ok::<Response<AnswerBody>, Infallible>(routes::answer(fleet, peer.ip(), request).await) }
    });
    let mut builder = http1::Builder::new();
    builder.keep_alive(!late);
    builder.timer(TokioTimer::new()).header_read_timeout(timeout).max_headers(HEADERS).max_buf_size(HEAD_BYTES);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut told = late;
    loop {
        tokio::select! {
            done = connection.as_mut() => {
                if let Err(e) = done {
                    tracing::debug!("a connection ended: {e}");
                }
                return;
            }
            changed = draining.wait_for(|d| *d), if !told => {
                told = true;
                if changed.is_ok() {
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// There are as many connections as may be.
async fn turn_away(mut stream: TcpStream) {
    let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 5\r\nconnection: close\r\n\r\n";
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}
