//! Submissions and passes that do nothing, to time what they cost.

use super::context::Context;
use crate::Result;

impl Context {
    /// Submits `passes` compute passes without a dispatch and waits for them.
    pub fn submit_empty_passes(&self, passes: usize) -> Result<()> {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for _ in 0..passes {
            drop(encoder.begin_compute_pass(&Default::default()));
        }
        self.queue.submit([encoder.finish()]);
        self.wait()
    }
}
