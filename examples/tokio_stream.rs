//! A generation as a stream in an asynchronous program, beside other tasks.
//!
//! ```sh
//! cargo run --release --example tokio_stream --features stream
//! ```

// Printing is what an example is for.
#![allow(clippy::print_stdout)]

use futures_util::StreamExt;
use moeray::{
    CancelToken,
    generate::{GenerateOptions, generate},
    session::{LoadOptions, Model, Session, SessionOptions},
};
use std::{io::Write, time::Duration};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Loading computes for a while, so it goes to a thread that may block.
    let model = tokio::task::spawn_blocking(|| Model::demo(&LoadOptions::default(), &mut |_| {})).await??;
    let ids = model.require_tokenizer()?.encode("ROMEO:", Default::default())?;
    let session = Session::new(&model, SessionOptions::default())?;
    let options = GenerateOptions { max_tokens: 120, ..Default::default() };

    // The generation owns its session, so that it can go to any task. Each poll does a slice of the work: on a GPU the task
    // sleeps while the device computes; on the CPU a slice computes for some milliseconds.
    let mut pieces = generate(session, model.tokenizer(), &ids, options, CancelToken::new())?.into_stream();
    let writer = tokio::spawn(async move {
        while let Some(piece) = pieces.next().await {
            print!("{}", piece?.text);
            std::io::stdout().flush().ok();
        }
        // The session comes back with its context, to go on with.
        Ok::<_, moeray::Error>(pieces.into_inner())
    });
    let others = tokio::time::sleep(Duration::from_millis(1));
    let (session, ()) = tokio::join!(writer, others);
    println!("\n\n{} tokens in the context", session??.position());
    Ok(())
}
