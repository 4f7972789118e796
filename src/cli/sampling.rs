//! The flags of a draw, which every command that generates text has.

use crate::infer::Sampling;
use crate::tokenizer::{Tokenizer, display};
use crate::{Error, Result};

#[derive(clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// 0 takes the most likely token; higher is bolder
    #[arg(short, long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the K most likely tokens only (0: all)
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Draw from the fewest tokens that hold this much probability
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_negative_numbers = true)]
    top_p: f64,
    /// Draw from tokens at least this part as likely as the most likely one (0: all)
    #[arg(long, default_value_t = 0.0, value_name = "P", allow_negative_numbers = true)]
    min_p: f64,
    /// Draw from the tokens about as surprising as expected that hold this much probability (1: all)
    #[arg(long, default_value_t = 1.0, value_name = "P", allow_negative_numbers = true)]
    typical: f64,
    /// Make generated tokens less likely to come again: logits divided by X where positive, else multiplied (1: off)
    #[arg(long, default_value_t = 1.0, value_name = "X", allow_negative_numbers = true)]
    repeat_penalty: f64,
    /// How many of the newest generated tokens the penalties look at (0: all)
    #[arg(long, default_value_t = 64, value_name = "N")]
    repeat_last_n: usize,
    /// Taken from a token's logit for each time that it was generated
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    frequency_penalty: f64,
    /// Taken from the logit of a token that was generated, however often
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true)]
    presence_penalty: f64,
    /// Hold the text's surprise at so many bits a token (mirostat 2; 0: off)
    #[arg(long, default_value_t = 0.0, value_name = "BITS", allow_negative_numbers = true)]
    mirostat_tau: f64,
    /// How fast mirostat follows
    #[arg(long, default_value_t = 0.1, value_name = "X", allow_negative_numbers = true)]
    mirostat_eta: f64,
    /// Add X to the logit of a token, given by id or text ('5' for the text of a number); -inf bans it. May be repeated
    #[arg(long, value_name = "TOKEN=X", allow_hyphen_values = true)]
    logit_bias: Vec<String>,
    /// Decides the draws
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

impl SamplingArgs {
    /// What needs no tokenizer, checked before a model is opened.
    pub fn checked(&self) -> Result<Sampling> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            typical: self.typical,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            mirostat_tau: self.mirostat_tau,
            mirostat_eta: self.mirostat_eta,
            seed: self.seed,
            logit_bias: vec![],
            banned: vec![],
        };
        sampling.validate()?;
        self.logit_bias.iter().try_for_each(|text| split(text).map(|_| ()))?;
        Ok(sampling)
    }

    /// All of it, for a model's tokens.
    pub fn for_tokens(&self, tokenizer: &Tokenizer) -> Result<Sampling> {
        let mut sampling = self.checked()?;
        for text in &self.logit_bias {
            let (name, bias) = split(text)?;
            let token = token(tokenizer, name)?;
            match bias == f64::NEG_INFINITY {
                true => sampling.banned.push(token),
                false => sampling.logit_bias.push((token, bias)),
            }
        }
        sampling.validate()?;
        Ok(sampling)
    }
}

/// Token and value.
fn split(text: &str) -> Result<(&str, f64)> {
    let parts = text.rsplit_once('=').filter(|(name, _)| !name.is_empty());
    let parsed = parts.and_then(|(name, value)| Some((name, value.parse::<f64>().ok()?)));
    parsed.filter(|(_, value)| value.is_finite() || *value == f64::NEG_INFINITY).ok_or_else(|| {
        Error::Config(format!("--logit-bias {text}: a token, =, and a number, such as 13=-5 or hello=2.5 or '7'=-inf"))
    })
}

/// The id that `name` stands for: a number, or the text of one token, in quotes if need be.
fn token(tokenizer: &Tokenizer, name: &str) -> Result<u32> {
    let known = tokenizer.vocab_size();
    if let Ok(id) = name.parse::<u32>() {
        return match (id as usize) < known {
            true => Ok(id),
            false => Err(Error::Config(format!("--logit-bias {name}: the ids are 0 to {}", known.saturating_sub(1)))),
        };
    }
    let quoted = name.strip_prefix('\'').and_then(|n| n.strip_suffix('\'')).filter(|n| !n.is_empty());
    let text = quoted.unwrap_or(name);
    if let Some(id) = tokenizer.special_id(text) {
        return Ok(id);
    }
    for id in 0..known as u32 {
        if tokenizer.token_bytes(id)? == text.as_bytes() {
            return Ok(id);
        }
    }
    match tokenizer.encode(text)?[..] {
        [id] => Ok(id),
        ref ids => {
            let show = |id: &u32| Ok(format!("{id} ({})", display(&tokenizer.token_bytes(*id)?)));
            let parts = ids.iter().map(show).collect::<Result<Vec<_>>>()?;
            Err(Error::Config(format!(
                "--logit-bias {name}: this text is not one token but {}: give one of them by its id",
                parts.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{CharTokenizer, SpecialTokens};

    #[test]
    fn tokens_of_a_bias_are_given_by_id_or_text() {
        let tokenizer = Tokenizer::Char(CharTokenizer::new("57=ab".chars().collect(), SpecialTokens::none()).unwrap());
        let id = |c: &str| tokenizer.encode(c).unwrap()[0];
        let parse = |text: &str| split(text).and_then(|(name, x)| Ok((token(&tokenizer, name)?, x)));
        assert_eq!(parse("a=1.5").unwrap(), (id("a"), 1.5));
        assert_eq!(parse("3=-2").unwrap(), (3, -2.0));
        assert_eq!(parse("'5'=-inf").unwrap(), (id("5"), f64::NEG_INFINITY));
        assert_eq!(parse("==1").unwrap(), (id("="), 1.0));
        for (bad, why) in [
            ("a", "a token, ="),
            ("a=x", "a number"),
            ("a=inf", "a number"),
            ("=1", "a token"),
            ("a=NaN", "a number"),
            ("99=1", "0 to 4"),
            ("ab=1", "not one token"),
        ] {
            let message = parse(bad).unwrap_err().to_string();
            assert!(message.contains(why), "{message}");
        }
    }
}
