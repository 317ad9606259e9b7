//! Two texts from one model at once: sessions share the weights, and each has a context of its own.
//!
//! ```sh
//! cargo run --release --example two_sessions
//! ```

// Printing is what an example is for.
#![allow(clippy::print_stdout)]

use moeray::{
    CancelToken,
    generate::{GenerateOptions, generate},
    session::{LoadOptions, Model, Session, SessionOptions},
};
use std::thread;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::demo(&LoadOptions::default(), &mut |_| {})?;
    let write = |prompt: &str| -> moeray::Result<String> {
        let tokenizer = model.require_tokenizer()?;
        let ids = tokenizer.encode(prompt, Default::default())?;
        let mut session = Session::new(&model, SessionOptions::default())?;
        let options = GenerateOptions { max_tokens: 60, ..Default::default() };
        let pieces = generate(&mut session, Some(tokenizer), &ids, options, CancelToken::new())?;
        pieces.map(|piece| piece.map(|p| p.text)).collect()
    };
    // A Model is Send and Sync; a Session belongs to one thread at a time. For many texts at once, `moeray::batch` reads every
    // weight only once for all of them.
    let (romeo, juliet) = thread::scope(|s| {
        let other = s.spawn(|| write("JULIET:"));
        (write("ROMEO:"), other.join())
    });
    println!("ROMEO:{}\n\nJULIET:{}", romeo?, juliet.map_err(|_| "a thread panicked")??);
    Ok(())
}
