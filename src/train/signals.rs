//! Asking a running training loop to stop or pause: signals, and keys of the dashboard.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Shared between the loop, the signal handlers and the dashboard.
#[derive(Debug, Default)]
pub struct Control {
    /// 0 while nothing is asked for; else the exit code of the process once the state is saved.
    stop: Arc<AtomicUsize>,
    paused: AtomicBool,
}

/// Exit code after Ctrl-C: 128 + SIGINT.
pub const EXIT_INTERRUPTED: usize = 130;
/// Exit code after SIGTERM: 128 + SIGTERM.
pub const EXIT_TERMINATED: usize = 143;

impl Control {
    /// Asks the loop to finish its step, save and end.
    pub fn request_stop(&self, exit_code: usize) {
        self.stop.store(exit_code, Ordering::SeqCst);
    }

    /// The exit code somebody asked to stop with.
    pub fn stop_requested(&self) -> Option<usize> {
        Some(self.stop.load(Ordering::SeqCst)).filter(|&code| code != 0)
    }

    pub fn toggle_pause(&self) {
        self.paused.fetch_xor(true, Ordering::SeqCst);
    }

    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Ctrl-C, SIGTERM and the closing of the terminal ask the loop to stop. A second signal of the same kind ends the process at once.
    pub fn listen_to_signals(self: &Arc<Self>) -> Result<()> {
        install(self).map_err(|e| Error::Failed(format!("cannot listen to signals: {e}")))
    }
}

#[cfg(unix)]
fn install(control: &Arc<Control>) -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::flag;
    for (signal, code) in [(SIGINT, EXIT_INTERRUPTED), (SIGTERM, EXIT_TERMINATED), (SIGHUP, 129)] {
        let armed = Arc::new(AtomicBool::new(false));
        // Actions run in the order of registration: the shutdown looks at the flag before this signal arms it.
        flag::register_conditional_shutdown(signal, code as i32, Arc::clone(&armed))?;
        flag::register(signal, armed)?;
        flag::register_usize(signal, Arc::clone(&control.stop), code)?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn install(control: &Arc<Control>) -> Result<(), ctrlc::Error> {
    let control = Arc::clone(control);
    ctrlc::set_handler(move || {
        if control.stop_requested().is_some() {
            std::process::exit(EXIT_INTERRUPTED as i32);
        }
        control.request_stop(EXIT_INTERRUPTED);
    })
}
