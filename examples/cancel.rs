//! Stops a load and a generation from another thread: both look at their token at every step.
//!
//! ```sh
//! cargo run --release --example cancel
//! ```

// Printing is what an example is for.
#![allow(clippy::print_stdout)]

use moeray::{
    CancelToken, Error,
    generate::{GenerateOptions, generate},
    session::{LoadOptions, Model, Session, SessionOptions},
};
use std::{thread, time::Duration};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A load that somebody no longer wants ends with an error of its own kind, and leaves nothing behind.
    let options = LoadOptions::default();
    options.cancel.cancel();
    match Model::demo(&options, &mut |_| {}) {
        Err(Error::Cancelled) => println!("the load was cancelled"),
        Err(e) => return Err(e.into()),
        Ok(_) => return Err("the load went on".into()),
    }

    let model = Model::demo(&LoadOptions::default(), &mut |_| {})?;
    let tokenizer = model.require_tokenizer()?;
    let ids = tokenizer.encode("JULIET:", Default::default())?;
    let mut session = Session::new(&model, SessionOptions::default())?;
    let cancel = CancelToken::new();
    thread::spawn({
        let cancel = cancel.clone();
        move || {
            thread::sleep(Duration::from_millis(50));
            cancel.cancel();
        }
    });
    let options = GenerateOptions { max_tokens: 1500, ignore_eos: true, ..Default::default() };
    let mut generation = generate(&mut session, Some(tokenizer), &ids, options, cancel)?;
    let text = generation.by_ref().map(|piece| piece.map(|p| p.text)).collect::<Result<String, _>>()?;
    println!("{text}\n\nended: {:?}", generation.finish_reason());
    Ok(())
}
