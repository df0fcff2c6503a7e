//! Sampling: from logits to a token, and from a prompt to a text.

use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::philox::{Philox, Sequence, Stream};
use crate::tokenizer::Tokenizer;

/// How tokens are drawn, in nanoGPT's words.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleOptions {
    /// 0 = greedy.
    pub temperature: f64,
    /// Only the `top_k` likeliest tokens are drawn from; 0 = all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability are drawn from; 1 = all.
    pub top_p: f64,
    pub max_new_tokens: u64,
    pub seed: u64,
    /// Texts that end a sample where they appear; they are not part of it.
    pub stop: Vec<String>,
}

/// How long the tokens of a sample took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pace {
    /// Tokens drawn.
    pub tokens: u64,
    /// Until the first of them was drawn: the prompt's way through the model.
    pub first: Duration,
    /// The others, all together.
    pub rest: Duration,
}

impl Pace {
    fn drawn(&mut self, since: Instant) {
        if self.tokens == 0 {
            self.first = since.elapsed();
        } else {
            self.rest = since.elapsed() - self.first;
        }
        self.tokens += 1;
    }
}

/// Continues `prompt`, handing out the text piece by piece. `index` numbers the samples of a seed.
/// A context longer than the block size is cropped to its end, as nanoGPT does.
///
/// # Errors
/// [`Error::Config`] if the prompt is empty; whatever the engine reports.
pub fn generate(
    engine: &mut dyn Engine,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &SampleOptions,
    index: u32,
    mut emit: impl FnMut(&str) -> Result<()>,
) -> Result<Pace> {
    let begin = Instant::now();
    let mut pace = Pace::default();
    if prompt.is_empty() {
        return Err(Error::config(
            "start: the prompt holds no token; give at least one character",
        ));
    }
    let block_size = engine.model().block_size;
    // A vocabulary padded for speed has ids that no tokenizer can decode.
    let vocab_size = tokenizer.vocab_size().min(engine.model().vocab_size);
    let mut random = Philox::new(options.seed, Stream::Sample).sequence([index, 0, 0]);
    let mut tokens = prompt.to_vec();
    let mut decoder = tokenizer.decode_stream();
    let mut output = StopFilter::new(&options.stop);
    for _ in 0..options.max_new_tokens {
        let window = &tokens[tokens.len().saturating_sub(block_size)..];
        let logits = engine.logits(window)?;
        let token = pick(&logits[..vocab_size], options, &mut random);
        tokens.push(token);
        pace.drawn(begin);
        if output.push(&decoder.push(token), &mut emit)? {
            return Ok(pace);
        }
    }
    if !output.push(&decoder.finish(), &mut emit)? {
        output.finish(&mut emit)?;
    }
    Ok(pace)
}

/// Draws a token from `logits` `(vocab_size)`.
pub fn pick(logits: &[f32], options: &SampleOptions, random: &mut Sequence) -> u32 {
    assert!(!logits.is_empty(), "there is always a token to draw");
    // Likeliest first; equal ones by id, so that the order is total.
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let likelier = |a: &u32, b: &u32| {
        logits[*b as usize]
            .total_cmp(&logits[*a as usize])
            .then_with(|| a.cmp(b))
    };
    let kept = match options.top_k {
        _ if options.temperature == 0.0 => 1,
        0 => order.len(),
        top_k => top_k.min(order.len()),
    };
    if kept < order.len() {
        order.select_nth_unstable_by(kept - 1, likelier);
        order.truncate(kept);
    }
    order.sort_unstable_by(likelier);
    if options.temperature == 0.0 {
        return order[0];
    }
    let largest = f64::from(logits[order[0] as usize]);
    let weight =
        |id: &u32| ((f64::from(logits[*id as usize]) - largest) / options.temperature).exp();
    let weights: Vec<f64> = order.iter().map(weight).collect();
    let total: f64 = weights.iter().sum();
    let mut nucleus = 0.0;
    let mut count = 0;
    while count < weights.len() && (count == 0 || nucleus < options.top_p * total) {
        nucleus += weights[count];
        count += 1;
    }
    let mut left = random.next_f64() * nucleus;
    for (id, weight) in order.iter().zip(&weights[..count]) {
        left -= weight;
        if left < 0.0 {
            return *id;
        }
    }
    order[count - 1]
}

/// Passes text on until one of the stop texts appears, holding back what may become one.
struct StopFilter<'a> {
    stops: &'a [String],
    held: String,
}

impl<'a> StopFilter<'a> {
    fn new(stops: &'a [String]) -> Self {
        Self {
            stops,
            held: String::new(),
        }
    }

    /// Takes the next piece; true if a stop text has appeared and nothing more is wanted.
    fn push(&mut self, piece: &str, emit: &mut impl FnMut(&str) -> Result<()>) -> Result<bool> {
        self.held.push_str(piece);
        let stops = self.stops.iter().filter(|stop| !stop.is_empty());
        if let Some(end) = stops
            .clone()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min()
        {
            emit(&self.held[..end])?;
            return Ok(true);
        }
        // The longest end of the text that is the beginning of a stop text must wait.
        let begins = |start: usize| stops.clone().any(|s| s.starts_with(&self.held[start..]));
        let wait = self
            .held
            .char_indices()
            .map(|(start, _)| start)
            .find(|&start| begins(start));
        let free = wait.unwrap_or(self.held.len());
        emit(&self.held[..free])?;
        self.held.drain(..free);
        Ok(false)
    }

    fn finish(self, emit: &mut impl FnMut(&str) -> Result<()>) -> Result<()> {
        emit(&self.held)
    }
}

#[cfg(test)]
mod tests;
