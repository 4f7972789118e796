//! Studies: tables of training runs that differ in a few settings, made one after another and compared with intervals over seeds.

pub mod report;
pub mod runner;
pub mod statistics;
pub mod study;
pub mod table;
pub mod write;

pub use report::Report;
pub use runner::{Ended, RunResult, Watch};
pub use study::{STUDIES, Study};
pub use table::{Job, Table};
