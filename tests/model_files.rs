//! Models of other programs: tiny ones that `transformers` made (`model_files/make.py`), read, run, converted and read again.

#[path = "model_files/commands.rs"]
mod commands;
#[path = "model_files/common.rs"]
mod common;
#[path = "model_files/hostile.rs"]
mod hostile;
#[path = "model_files/own.rs"]
mod own;
#[path = "model_files/reading.rs"]
mod reading;
#[path = "model_files/writing.rs"]
mod writing;
