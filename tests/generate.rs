//! Generation over a stand-in for a model that always writes the same tokens: stop rules, streaming, cancelling.

use moeray::{
    Error, Result,
    generate::{CancelToken, Decoder, FinishReason, GenerateOptions, Generation, Piece, Polled, TextStream},
    generate::{Sampler, SamplerOptions, Sampling},
    session::{Budget, Status},
};

/// Writes `script` whatever the prompt; token `i` of the script is forced by its logit.
struct Scripted {
    script: Vec<u32>,
    fed: Vec<u32>,
    /// Tokens that a choice waits for.
    queued: Option<Vec<u32>>,
    prompt: usize,
    capacity: usize,
    sampler: Option<Sampler>,
    chosen: u32,
    logits: Vec<f32>,
    fail_at: Option<usize>,
    /// Polls that a choice takes.
    slices: usize,
    polled: usize,
}

impl Scripted {
    fn new(script: &[u32]) -> Self {
        Scripted {
            script: script.to_vec(),
            fed: vec![],
            queued: None,
            prompt: 0,
            capacity: 100,
            sampler: None,
            chosen: 0,
            logits: vec![],
            fail_at: None,
            slices: 1,
            polled: 0,
        }
    }
}

impl Decoder for Scripted {
    fn set_sampler(&mut self, sampling: &Sampling<'_>) -> Result<()> {
        let mut sampler = Sampler::new(sampling.options)?;
        sampler.forbid(sampling.forbidden);
        sampler.set_bias(sampling.bias);
        self.sampler = Some(sampler);
        Ok(())
    }
    fn begin_choice(&mut self, ids: &[u32], _random: u64) -> Result<()> {
        self.prompt = self.fed.len() + ids.len();
        self.queued = Some(ids.to_vec());
        Ok(())
    }
    fn begin_logits(&mut self, ids: &[u32]) -> Result<()> {
        if self.prompt == 0 {
            self.prompt = self.fed.len() + ids.len();
        }
        self.queued = Some(ids.to_vec());
        Ok(())
    }
    fn last_logits(&self) -> &[f32] {
        &self.logits
    }
    fn begin_next(&mut self, _random: u64) -> Result<()> {
        self.queued = Some(vec![self.chosen]);
        Ok(())
    }
    fn poll(&mut self, _budget: Budget) -> Result<Status> {
        self.polled += 1;
        if self.polled < self.slices {
            return Ok(Status::Pending);
        }
        self.polled = 0;
        let Some(ids) = self.queued.take() else { return Ok(Status::Idle) };
        self.fed.extend(ids);
        let i = self.fed.len() - self.prompt;
        if self.fail_at == Some(i) {
            return Err(Error::Device("lost".into()));
        }
        let mut logits = vec![0.0; 100];
        logits[self.script[i] as usize] = 10.0;
        logits[99] = 5.0;
        // Without a sampler logits were asked for, and who asked chooses.
        if let Some(sampler) = &mut self.sampler {
            self.chosen = sampler.sample(&logits, &[])?;
        }
        self.logits = logits;
        Ok(Status::Done)
    }
    fn chosen(&self) -> Result<u32> {
        Ok(self.chosen)
    }
    fn choices_queued(&self) -> usize {
        usize::from(self.queued.is_some())
    }
    fn cancel(&mut self) {
        self.queued = None;
    }
    fn position(&self) -> usize {
        self.fed.len()
    }
    fn position_queued(&self) -> usize {
        self.fed.len() + self.queued.as_ref().map_or(0, Vec::len)
    }
    fn capacity(&self) -> usize {
        self.capacity
    }
}

/// Token i is `WORDS[i]`; token 50 and 51 are the two bytes of "é"; token 60 is the control token `<|im_start|>`.
struct Words(Vec<u8>);
const WORDS: [&str; 8] = ["", "Hello", " wor", "ld", "\n", "ab", "a", "bc"];

impl TextStream for Words {
    fn push(&mut self, id: u32) -> String {
        match id {
            50 => self.0.push(0xc3),
            51 => self.0.push(0xa9),
            _ => self.0.extend(WORDS.get(id as usize).unwrap_or(&"?").bytes()),
        }
        match String::from_utf8(self.0.clone()) {
            Ok(s) => {
                self.0.clear();
                s
            }
            Err(_) => String::new(),
        }
    }
    fn hidden(&self, id: u32) -> Option<String> {
        (id == 60).then(|| "<|im_start|>".into())
    }
    fn is_pending(&self) -> bool {
        !self.0.is_empty()
    }
    fn flush(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.0)).into_owned()
    }
}

fn options(stop: &[&str]) -> GenerateOptions {
    GenerateOptions {
        max_tokens: 20,
        stop: stop.iter().map(|s| s.to_string()).collect(),
        sampler: SamplerOptions::greedy(),
        ..Default::default()
    }
}

fn start<'a>(d: &'a mut Scripted, o: GenerateOptions, cancel: &CancelToken) -> Generation<&'a mut Scripted> {
    Generation::new(d, Some(Box::new(Words(vec![]))), &[0, 98], &[7, 7], o, cancel.clone()).unwrap()
}

/// Text, ids and reason of a whole generation that ends without an error.
fn whole(script: &[u32], o: GenerateOptions) -> (String, Vec<u32>, FinishReason) {
    let mut d = Scripted::new(script);
    let mut g = start(&mut d, o, &CancelToken::new());
    let pieces: Vec<Piece> = g.by_ref().map(|p| p.unwrap()).collect();
    let text = pieces.iter().map(|p| p.text.as_str()).collect();
    (text, pieces.iter().map(|p| p.id).collect(), g.finish_reason().unwrap())
}

#[test]
fn ends_exactly_at_each_rule() {
    let s = [1, 2, 3, 4, 0, 1, 1];
    assert_eq!(whole(&s, options(&[])), ("Hello world\n".into(), vec![1, 2, 3, 4], FinishReason::EndOfText(0)));
    let three = GenerateOptions { max_tokens: 3, ..options(&[]) };
    assert_eq!(whole(&s, three), ("Hello world".into(), vec![1, 2, 3], FinishReason::MaxTokens));
    let none = GenerateOptions { max_tokens: 0, ..options(&[]) };
    assert_eq!(whole(&s, none), (String::new(), vec![], FinishReason::MaxTokens));
    // The second end-of-generation token ends as well.
    assert_eq!(whole(&[1, 98], options(&[])).2, FinishReason::EndOfText(98));
}

#[test]
fn ignore_eos_takes_the_next_best() {
    let o = GenerateOptions { ignore_eos: true, max_tokens: 3, ..options(&[]) };
    assert_eq!(whole(&[1, 0, 2], o).1, [1, 99, 2]);
}

#[test]
fn stop_strings_are_never_shown() {
    let s = [1, 2, 3, 4, 5, 0];
    // Inside a token, at its end, over two tokens, the whole answer.
    assert_eq!(whole(&s, options(&["llo"])), ("He".into(), vec![1], FinishReason::StopString(0)));
    assert_eq!(whole(&s, options(&["\n"])), ("Hello world".into(), vec![1, 2, 3], FinishReason::StopString(0)));
    assert_eq!(whole(&s, options(&["x", "world"])), ("Hello ".into(), vec![1, 2], FinishReason::StopString(1)));
    assert_eq!(whole(&s, options(&["Hello world\nab"])), (String::new(), vec![], FinishReason::StopString(0)));
    // The earliest wins, not the first of the list.
    assert_eq!(whole(&s, options(&["ld", "wor"])).0, "Hello ");
    // A beginning that comes to nothing is shown in full.
    assert_eq!(whole(&s, options(&["worldly"])).0, "Hello world\nab");
    assert_eq!(whole(&s, options(&["abc"])).0, "Hello world\nab");
    // "aab" + "bc": the match begins inside what looked like another beginning.
    assert_eq!(whole(&[6, 6, 6, 7, 0], options(&["aabc"])), ("a".into(), vec![6], FinishReason::StopString(0)));
}

#[test]
fn stop_strings_name_control_tokens() {
    let s = [1, 50, 60, 2, 3, 0];
    let mark = "<|im_start|>";
    let stopped = |o: &[&str]| {
        let (text, _, reason) = whole(&s, options(o));
        (text, reason)
    };
    let at_mark = ("Hello\u{fffd}".to_string(), FinishReason::StopString(0));
    assert_eq!(stopped(&[mark]), at_mark, "before the token, with all that came before it");
    assert_eq!(stopped(&["<|im_start|> wo"]), at_mark, "a text that begins with it");
    assert_eq!(stopped(&["Hello\u{fffd}<|im_start|>"]), (String::new(), FinishReason::StopString(0)));
    // Nobody sees a part of a control token.
    for part in ["<", "im_start", "|> wor", "start|>"] {
        assert_eq!(stopped(&[part]), ("Hello\u{fffd} world".into(), FinishReason::EndOfText(0)), "{part}");
    }
}

#[test]
fn text_flows_while_it_cannot_be_a_stop_string() {
    let mut d = Scripted::new(&[1, 2, 3, 4, 0]);
    let mut g = start(&mut d, options(&["world!"]), &CancelToken::new());
    assert_eq!(g.next().unwrap().unwrap().text, "Hello");
    assert_eq!(g.stats().generated_tokens, 1, "the first piece came before the second token was asked for");
    // " wor" is held until "\n" decides.
    assert_eq!(g.next().unwrap().unwrap().text, " wor");
    assert_eq!(g.stats().generated_tokens, 4);
    assert_eq!(g.finish_reason(), None);
    assert_eq!(g.by_ref().map(|p| p.unwrap().text).collect::<String>(), "ld\n");
    assert!(g.next().is_none() && g.finish_reason().is_some());
}

#[test]
fn utf8_is_never_split() {
    assert_eq!(whole(&[50, 51, 1, 0], options(&[])), ("éHello".into(), vec![50, 51, 1], FinishReason::EndOfText(0)));
    // Half of a character is not text, and is not lost.
    assert_eq!(whole(&[1, 50, 0], options(&[])), ("Hello\u{fffd}".into(), vec![1, 50], FinishReason::EndOfText(0)));
    assert_eq!(whole(&[1, 50, 51, 0], options(&["é"])).0, "Hello");
}

#[test]
fn context_end_is_an_end_not_an_error() {
    let mut d = Scripted { capacity: 4, ..Scripted::new(&[1; 50]) };
    let mut g = start(&mut d, options(&[]), &CancelToken::new());
    // Two prompt tokens, two fed back; the third comes from the last position.
    assert_eq!(g.by_ref().filter(|p| p.is_ok()).count(), 3);
    assert_eq!(g.finish_reason(), Some(FinishReason::ContextFull));
    let mut d = Scripted { capacity: 1, ..Scripted::new(&[1]) };
    let e = Generation::new(&mut d, None, &[], &[7, 7], options(&[]), CancelToken::new()).err().unwrap();
    assert!(matches!(e, Error::ContextFull { needed: 2, capacity: 1 }), "{e}");
}

#[test]
fn cancelling_stops_and_shows_what_was_held() {
    let cancel = CancelToken::new();
    let mut d = Scripted::new(&[1, 6, 6, 6, 6, 6]);
    let mut g = start(&mut d, options(&["aab"]), &cancel);
    assert_eq!(g.next().unwrap().unwrap().text, "Hello");
    assert_eq!(g.next().unwrap().unwrap().text, "a");
    cancel.cancel();
    assert_eq!(g.by_ref().map(|p| p.unwrap().text).collect::<String>(), "aa");
    assert_eq!(g.finish_reason(), Some(FinishReason::Cancelled));
    drop(g);
    let mut g = start(&mut d, options(&[]), &cancel);
    assert!(g.next().is_none());
    assert_eq!(g.finish_reason(), Some(FinishReason::Cancelled));
}

/// A host that polls gets what one that waits gets, a slice at a time.
#[test]
fn polling_gives_the_same_pieces() {
    let script = [1, 2, 3, 4, 5, 0];
    let want = whole(&script, options(&["worldly"]));
    let mut d = Scripted { slices: 3, ..Scripted::new(&script) };
    let mut g = start(&mut d, options(&["worldly"]), &CancelToken::new());
    let (mut text, mut ids, mut pending) = (String::new(), vec![], 0);
    loop {
        match g.poll(Budget::dispatches(1)).unwrap() {
            Polled::Piece(p) => {
                text.push_str(&p.text);
                ids.push(p.id);
            }
            Polled::Pending => pending += 1,
            Polled::Waiting => {}
            Polled::Finished => break,
        }
    }
    assert_eq!((text, ids, g.finish_reason().unwrap()), want);
    assert_eq!(pending, 2 * 6, "two slices before each of six choices");
    // Cancelling takes effect at the next slice, in the middle of a choice.
    let cancel = CancelToken::new();
    let mut d = Scripted { slices: 3, ..Scripted::new(&script) };
    let mut g = start(&mut d, options(&[]), &cancel);
    assert_eq!(g.poll(Budget::dispatches(1)).unwrap(), Polled::Pending);
    cancel.cancel();
    assert_eq!(g.poll(Budget::dispatches(1)).unwrap(), Polled::Finished);
    assert_eq!(g.finish_reason(), Some(FinishReason::Cancelled));
    drop(g);
    assert_eq!(d.choices_queued(), 0);
}

#[test]
fn an_error_ends_the_iterator() {
    let mut d = Scripted { fail_at: Some(2), ..Scripted::new(&[1; 9]) };
    let mut g = start(&mut d, options(&[]), &CancelToken::new());
    assert!(g.next().unwrap().is_ok() && g.next().unwrap().is_ok());
    assert!(matches!(g.next(), Some(Err(Error::Device(_)))));
    assert!(g.next().is_none());
    assert_eq!(g.finish_reason(), Some(FinishReason::Failed));
}

#[test]
fn stats_and_tokens_count_what_happened() {
    let mut d = Scripted::new(&[1, 2, 3, 0]);
    let o = GenerateOptions { history: vec![5], ..options(&[]) };
    let mut g = start(&mut d, o, &CancelToken::new());
    g.by_ref().for_each(drop);
    let s = g.stats();
    assert_eq!((s.prompt_tokens, s.generated_tokens, s.decode_steps), (2, 3, 3));
    assert!(s.prompt_speed().is_some() && s.generation_speed().is_some());
    assert_eq!(g.tokens(), [5, 7, 7, 1, 2, 3]);
    drop(g);
    assert_eq!(d.fed, [7, 7, 1, 2, 3]);
}

#[test]
fn bad_requests_are_refused_before_anything_runs() {
    let mut d = Scripted::new(&[1]);
    let mut refuse = |prompt: &[u32], o: GenerateOptions, text: bool| {
        let t: Option<Box<dyn TextStream>> = if text { Some(Box::new(Words(vec![]))) } else { None };
        Generation::new(&mut d, t, &[], prompt, o, CancelToken::new()).err().unwrap().to_string()
    };
    assert!(refuse(&[], options(&[]), true).contains("prompt is empty"));
    assert!(refuse(&[1], options(&[""]), true).contains("stop string is empty"));
    assert!(refuse(&[1], options(&["x"]), false).contains("tokenizer"));
    let bad = SamplerOptions { top_p: 2.0, ..Default::default() };
    assert!(refuse(&[1], GenerateOptions { sampler: bad, ..options(&[]) }, true).contains("top-p"));
}

/// Bias and stop tokens count wherever the choice is made; log-probabilities are those of the model.
#[test]
fn bias_stop_tokens_and_log_probabilities() {
    let s = [1, 2, 3, 4, 0];
    let biased = GenerateOptions { logit_bias: vec![(99, 6.0)], max_tokens: 2, ..options(&[]) };
    assert_eq!(whole(&s, biased.clone()).1, [99, 99], "5 + 6 is more than 10");
    let stopped = GenerateOptions { stop_tokens: vec![3], ..options(&[]) };
    assert_eq!(whole(&s, stopped), ("Hello wor".into(), vec![1, 2], FinishReason::StopToken(3)));

    let mut d = Scripted::new(&s);
    let asked = GenerateOptions { logprobs: Some(2), ..biased };
    let g =
        Generation::new(&mut d, Some(Box::new(Words(vec![]))), &[0, 98], &[7, 7], asked, CancelToken::new()).unwrap();
    let pieces: Vec<Piece> = g.map(Result::unwrap).collect();
    assert_eq!(pieces.iter().map(|p| p.id).collect::<Vec<_>>(), [99, 99]);
    let logprobs = pieces[0].logprobs.as_ref().unwrap();
    let total = (10f64.exp() + 5f64.exp() + 98.0).ln();
    assert_eq!(logprobs.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 99]);
    assert!((f64::from(logprobs.logprob) - (5.0 - total)).abs() < 1e-5, "{logprobs:?}");
    assert!((f64::from(logprobs.top[0].1) - (10.0 - total)).abs() < 1e-5, "{logprobs:?}");
}

/// A hook sees every token so far and rules out what it likes; an owned generation can be sent away and gives its session back.
#[test]
fn a_hook_rules_out_tokens() {
    let g = Generation::new(Scripted::new(&[1, 2, 3, 4, 0]), None, &[0, 98], &[7, 7], options(&[]), CancelToken::new());
    let g = g.unwrap().with_logits_hook(|tokens, logits| {
        assert_eq!(tokens[..2], [7, 7], "the prompt comes first");
        logits[2] = f32::NEG_INFINITY;
    });
    let (ids, d) = std::thread::spawn(move || {
        let mut g = g;
        let ids: Vec<u32> = g.by_ref().take(3).map(|p| p.unwrap().id).collect();
        (ids, g.into_inner())
    })
    .join()
    .unwrap();
    assert_eq!(ids, [1, 99, 3]);
    assert_eq!(d.fed, [7, 7, 1, 99], "the last token was not fed");
}

/// The stream gives what the iterator gives, on any executor.
#[cfg(feature = "stream")]
#[test]
fn a_stream_of_pieces() {
    use futures_util::StreamExt;
    let s = [1, 2, 3, 4, 0];
    let g = Generation::new(
        Scripted { slices: 3, ..Scripted::new(&s) },
        Some(Box::new(Words(vec![]))),
        &[0, 98],
        &[7],
        options(&[]),
        CancelToken::new(),
    );
    let mut stream = g.unwrap().into_stream();
    let text = pollster::block_on(async {
        let mut text = String::new();
        while let Some(piece) = stream.next().await {
            text.push_str(&piece.unwrap().text);
        }
        text
    });
    assert_eq!(text, "Hello world\n");
    assert_eq!(stream.generation().finish_reason(), Some(FinishReason::EndOfText(0)));
    assert_eq!(stream.into_inner().fed.len(), 5);
}
