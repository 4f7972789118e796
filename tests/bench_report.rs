//! What is made of a roofline report: tables, plots, pictures, comparisons, the checked file.

#[path = "bench_report/commands.rs"]
mod commands;
#[path = "bench_report/comparing.rs"]
mod comparing;
#[path = "bench_report/picture.rs"]
mod picture;
#[path = "bench_report/reading.rs"]
mod reading;
#[path = "bench_report/synthetic.rs"]
mod synthetic;
#[path = "bench_report/words.rs"]
mod words;
