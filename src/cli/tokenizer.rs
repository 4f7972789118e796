#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args, _json: bool) -> crate::Result<()> {
    Ok(())
}
