//! The terminal dashboard of `train --tui`: live curves, numbers, memory plan, last sample and messages.
//!
//! It draws on a thread of its own, so that keys answer at once even when a step takes seconds.

mod dashboard;
mod view;

pub use dashboard::{Dashboard, Plot};

use super::observer::{Event, Observer};
use super::signals::{Control, EXIT_INTERRUPTED};
use crate::error::{Error, Result};
use ratatui::crossterm::event::{self, Event as TerminalEvent, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often the screen is drawn again.
const FRAME: Duration = Duration::from_millis(100);

struct Shared {
    dashboard: Mutex<Dashboard>,
    control: Arc<Control>,
    done: AtomicBool,
}

impl Shared {
    /// The data of a thread that panicked in mid-update is still good enough to look at.
    fn dashboard(&self) -> MutexGuard<'_, Dashboard> {
        self.dashboard.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// The running dashboard. The terminal is as it was before once this is dropped, or the program panics.
pub struct Tui {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Tui {
    /// Takes over the terminal.
    ///
    /// # Errors
    /// `Error::Config` when standard output is not a terminal.
    pub fn start(control: Arc<Control>) -> Result<Self> {
        if !std::io::stdout().is_terminal() {
            return Err(Error::Config(
                "--tui needs a terminal on standard output; run without it, or without a pipe".into(),
            ));
        }
        // This also makes a panic anywhere restore the terminal before its message is printed.
        let terminal = ratatui::try_init().map_err(|e| Error::Failed(format!("cannot take over the terminal: {e}")))?;
        let shared = Arc::new(Shared { dashboard: Mutex::default(), control, done: AtomicBool::new(false) });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || show(terminal, &shared)
        });
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Observer for Tui {
    fn on(&mut self, event: &Event) -> Result<()> {
        self.shared.dashboard().update(event);
        Ok(())
    }
}

impl Drop for Tui {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        ratatui::restore();
    }
}

fn show(mut terminal: ratatui::DefaultTerminal, shared: &Shared) -> std::io::Result<()> {
    while !shared.done.load(Ordering::SeqCst) {
        {
            let mut dashboard = shared.dashboard();
            dashboard.paused = shared.control.is_paused();
            dashboard.stopping = shared.control.stop_requested().is_some();
            terminal.draw(|frame| view::draw(&dashboard, frame))?;
        }
        if event::poll(FRAME)?
            && let TerminalEvent::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && press(key, &mut shared.dashboard(), &shared.control) == Press::QuitNow
        {
            ratatui::restore();
            std::process::exit(EXIT_INTERRUPTED as i32);
        }
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Press {
    Handled,
    /// The second Ctrl-C: raw mode keeps it from being a signal.
    QuitNow,
}

fn press(key: KeyEvent, dashboard: &mut Dashboard, control: &Control) -> Press {
    let ctrl_c = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    if ctrl_c && control.stop_requested().is_some() {
        return Press::QuitNow;
    }
    match key.code {
        _ if ctrl_c => control.request_stop(EXIT_INTERRUPTED),
        KeyCode::Char('q') => control.request_stop(EXIT_INTERRUPTED),
        KeyCode::Char('p') => control.toggle_pause(),
        KeyCode::Right | KeyCode::Down | KeyCode::Tab => dashboard.plot = dashboard.plot.next(),
        KeyCode::Left | KeyCode::Up | KeyCode::BackTab => dashboard.plot = dashboard.plot.previous(),
        _ => {}
    }
    Press::Handled
}

#[cfg(test)]
mod tests;
