//! Writes an answer as it comes, with the built-in demo model or a GGUF that is named.
//!
//! ```sh
//! cargo run --release --example stream -- "ROMEO:" [model.gguf]
//! ```

// Printing is what an example is for.
#![allow(clippy::print_stdout)]

use moeray::{
    CancelToken,
    generate::{GenerateOptions, generate},
    session::{LoadOptions, Model, Session, SessionOptions},
};
use std::io::Write;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let prompt = args.next().unwrap_or_else(|| "ROMEO:".into());
    // Without options a model goes to the best GPU, and to the CPU where there is none.
    let model = match args.next() {
        Some(path) => Model::open(path)?,
        None => Model::demo(&LoadOptions::default(), &mut |_| {})?,
    };
    let tokenizer = model.require_tokenizer()?;
    let ids = tokenizer.encode(&prompt, Default::default())?;
    let mut session = Session::new(&model, SessionOptions { ctx: ids.len() + 128, ..Default::default() })?;
    let options = GenerateOptions { max_tokens: 128, ..Default::default() };

    print!("{prompt}");
    let mut generation = generate(&mut session, Some(tokenizer), &ids, options, CancelToken::new())?;
    for piece in generation.by_ref() {
        print!("{}", piece?.text);
        std::io::stdout().flush()?;
    }
    let stats = generation.stats();
    println!("\n\n{} on {}", stats.generated_tokens, model.describe());
    if let Some(speed) = stats.generation_speed() {
        println!("{speed:.1} tokens a second");
    }
    Ok(())
}
