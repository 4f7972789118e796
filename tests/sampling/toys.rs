//! A small model whose next token depends on all it has read, and what draws are compared with.

use lynx_gpu::infer::NextToken;
use lynx_gpu::tokenizer::{CharTokenizer, SpecialTokens, Tokenizer};
use lynx_gpu::{Error, Result};

/// What a toy can do besides reading on.
#[derive(Clone, Copy, PartialEq)]
pub enum Skill {
    None,
    Rewinds,
    /// Reads so many texts side by side and copies between them; goes back too.
    Beside(usize),
}

/// Logits are a function of (seed, all tokens read): a text that was not read, or read twice, changes them.
#[derive(Clone)]
pub struct Toy {
    pub tokenizer: Tokenizer,
    pub seed: u64,
    /// Logits are from 0 to this.
    pub scale: f32,
    pub skill: Skill,
    pub texts: Vec<Vec<u32>>,
    pub capacity: usize,
    /// Calls that read something.
    pub passes: usize,
    /// Only the last token matters, as in a Markov chain.
    pub forgetful: bool,
}

/// Tokens 'a', 'b', ..; with `ends`, token 0 is the end of a text.
pub fn letters(tokens: usize, ends: bool) -> Tokenizer {
    let names = if ends { vec!["<|endoftext|>".to_owned()] } else { vec![] };
    let characters = (0..tokens - usize::from(ends)).map(|i| char::from(b'a' + i as u8)).collect();
    Tokenizer::Char(CharTokenizer::new(characters, SpecialTokens::new(names).unwrap()).unwrap())
}

impl Toy {
    pub fn new(tokenizer: &Tokenizer, seed: u64, scale: f32, skill: Skill) -> Self {
        Toy {
            tokenizer: tokenizer.clone(),
            seed,
            scale,
            skill,
            texts: vec![vec![]],
            capacity: 10_000,
            passes: 0,
            forgetful: false,
        }
    }

    pub fn logits(&self, read: &[u32]) -> Vec<f32> {
        let read = if self.forgetful { &read[read.len().saturating_sub(1)..] } else { read };
        let mix = |h: u64, t: u64| (h ^ t).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        let text = read.iter().fold(self.seed, |h, t| mix(h, u64::from(*t) + 1));
        let logit = |t: u64| (mix(mix(text, t + 77), 5) >> 40) as f32 / (1u64 << 24) as f32 * self.scale;
        let mut logits: Vec<f32> = (0..self.tokenizer.vocab_size() as u64).map(logit).collect();
        // Rows beyond the tokenizer's ids, which nobody may choose.
        logits.extend([90.0; 3]);
        logits
    }

    /// Only the logits of the tokenizer's ids.
    pub fn known(&self, read: &[u32]) -> Vec<f32> {
        let mut logits = self.logits(read);
        logits.truncate(self.tokenizer.vocab_size());
        logits
    }

    fn take(&mut self, place: usize, tokens: &[u32]) -> Result<()> {
        self.texts[place].extend(tokens);
        match self.texts[place].len() <= self.capacity {
            true => Ok(()),
            false => Err(Error::Graph("read beyond the capacity".into())),
        }
    }
}

impl NextToken for Toy {
    fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
    fn context(&self) -> usize {
        self.capacity
    }
    fn next_logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        Ok(self.logits(tokens))
    }
    fn restart(&mut self) -> Result<()> {
        self.texts = vec![vec![]];
        Ok(())
    }
    fn position(&self) -> u64 {
        self.texts.iter().map(Vec::len).max().unwrap() as u64
    }
    fn room(&self) -> u64 {
        self.capacity as u64 - self.position()
    }
    fn advance(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        assert_eq!(self.texts.len(), 1);
        self.passes += usize::from(!tokens.is_empty());
        self.take(0, tokens)?;
        Ok(self.logits(&self.texts[0]))
    }
    fn advance_each(&mut self, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        self.passes += 1;
        let before = self.texts[0].len();
        self.take(0, tokens)?;
        Ok((0..tokens.len()).map(|i| self.logits(&self.texts[0][..=before + i])).collect())
    }
    fn rewind(&mut self, length: u64) -> Result<()> {
        if self.skill == Skill::None || length > self.position() {
            return Err(Error::Config(format!("cannot go back to {length}")));
        }
        self.texts[0].truncate(length as usize);
        Ok(())
    }
    fn begin(&mut self, texts: usize) -> Result<()> {
        match self.skill {
            Skill::Beside(most) if texts <= most => self.texts = vec![vec![]; texts],
            _ if texts == 1 => self.texts = vec![vec![]],
            _ => return Err(Error::Config(format!("{texts} texts are too many"))),
        }
        Ok(())
    }
    fn advance_texts(&mut self, tokens: &[Vec<u32>]) -> Result<Vec<Vec<f32>>> {
        assert_eq!(tokens.len(), self.texts.len());
        self.passes += 1;
        let mut logits = vec![];
        for (i, new) in tokens.iter().enumerate() {
            self.take(i, new)?;
            logits.push(if new.is_empty() { vec![] } else { self.logits(&self.texts[i]) });
        }
        Ok(logits)
    }
    fn arrange(&mut self, from: &[usize]) -> Result<()> {
        assert_eq!(from.len(), self.texts.len());
        if self.texts.len() > 1 || self.skill != Skill::None {
            self.texts = from.iter().map(|f| self.texts[*f].clone()).collect();
        }
        Ok(())
    }
}

/// Chi-square of `counts` against `probabilities`, its degrees of freedom and its 99.9 % quantile (Wilson and Hilferty 1931). What is expected
/// fewer than five times is put together; what cannot happen must not have happened.
pub fn check_fit(name: &str, counts: &[u64], probabilities: &[f64]) {
    assert_eq!(counts.len(), probabilities.len(), "{name}");
    let n: u64 = counts.iter().sum();
    let (mut chi, mut bins, mut rare) = (0.0, 0, (0.0, 0.0));
    for (i, (count, p)) in counts.iter().zip(probabilities).enumerate() {
        let (count, expected) = (*count as f64, *p * n as f64);
        if *p == 0.0 {
            assert_eq!(count, 0.0, "{name}: outcome {i} has no probability");
        } else if expected < 5.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            chi += (count - expected).powi(2) / expected;
            bins += 1;
        }
    }
    if rare.1 > 0.0 {
        chi += (rare.0 - rare.1).powi(2) / rare.1.max(1.0);
        bins += 1;
    }
    if bins < 2 {
        return;
    }
    let spread = 2.0 / (9.0 * (bins - 1) as f64);
    let quantile = (bins - 1) as f64 * (1.0 - spread + 3.0902 * spread.sqrt()).powi(3);
    assert!(chi < quantile, "{name}: chi-square {chi:.1} of {} degrees, 99.9 % below {quantile:.1}", bins - 1);
}
