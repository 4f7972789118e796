//! `lynx-gpu bench forms`: the chunked form of every recurrence beside the recurrent one.

use super::Spinner;
use crate::bench::forms;
use crate::{Error, Result};

#[derive(clap::Args)]
pub struct Args {
    /// all, cpu, gpu:N or part of a device's name
    #[arg(long, default_value = "all", value_name = "DEVICE")]
    device: String,
    /// Lengths of the sequence, in steps
    #[arg(long, value_delimiter = ',', default_value = "256,1024,4096,16384", value_name = "T,T,..")]
    times: Vec<usize>,
    /// Seconds for each pair of forms
    #[arg(long, default_value = "2", value_name = "SECONDS")]
    seconds: f64,
}

pub fn run(args: Args, json: bool) -> Result<()> {
    if !(args.seconds >= 0.0 && args.seconds.is_finite()) {
        return Err(Error::Config(format!("--seconds {}: a number of at least 0 is needed", args.seconds)));
    }
    let options = forms::Options { device: args.device, times: args.times, seconds: args.seconds };
    let pairs = forms::measure(&options, &mut Spinner::new())?;
    if json {
        return crate::cli::report::emit(&pairs);
    }
    print!("{}", forms::text(&pairs));
    Ok(())
}
