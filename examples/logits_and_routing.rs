//! What a model thinks of a text: the most probable next tokens, and which experts its tokens took.
//!
//! ```sh
//! cargo run --release --example logits_and_routing -- "To be, or not to"
//! ```

// Printing is what an example is for.
#![allow(clippy::print_stdout)]

use moeray::{
    ModelOptions,
    session::{LoadOptions, Model, Session, SessionOptions},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let text = std::env::args().nth(1).unwrap_or_else(|| "To be, or not to".into());
    // Routing is read back only where it is asked for at load.
    let model = ModelOptions { trace_router: true };
    let model = Model::demo(&LoadOptions { model, ..Default::default() }, &mut |_| {})?;
    let tokenizer = model.require_tokenizer()?;
    let ids = tokenizer.encode(&text, Default::default())?;
    let mut session = Session::new(&model, SessionOptions::default())?;
    session.record_routing()?;

    // One logit for every token of the vocabulary, `[V]`.
    let logits = session.prefill(&ids)?.to_vec();
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f32 = logits.iter().map(|x| (x - most).exp()).sum();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    println!("{text:?} goes on with:");
    for id in &order[..5] {
        let p = (logits[*id as usize] - most).exp() / total;
        println!("  {:5.1} %  {:?}", 100.0 * p, tokenizer.stream().push(*id));
    }

    let trace = session.routing().ok_or("no routing was recorded")?;
    println!("\nexperts of the last token, by layer:");
    for layer in trace.layers() {
        let experts: Vec<String> = layer.token(ids.len() - 1).map(|(e, w)| format!("{e} ({w:.2})")).collect();
        println!("  layer {}: {}", layer.layer, experts.join(", "));
    }
    println!("\nevenness of the load, by layer:");
    for load in trace.loads() {
        println!("  layer {}: {:.0} % of the greatest entropy", load.layer, 100.0 * load.evenness());
    }
    Ok(())
}
