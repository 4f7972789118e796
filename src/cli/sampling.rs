//! The flags of a draw, which every command that generates text has.

use crate::Result;
use crate::infer::Sampling;

#[derive(clap::Args)]
pub struct SamplingArgs {
    /// 0 takes the most likely token; higher is bolder
    #[arg(short, long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Draw from the K most likely tokens only (0: all)
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Draw from the fewest tokens that hold this much probability
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f64,
    #[arg(long, default_value_t = 42)]
    seed: u64,
}

impl SamplingArgs {
    pub fn checked(&self) -> Result<Sampling> {
        let SamplingArgs { temperature, top_k, top_p, seed } = *self;
        let sampling = Sampling { temperature, top_k, top_p, seed };
        sampling.validate()?;
        Ok(sampling)
    }
}
