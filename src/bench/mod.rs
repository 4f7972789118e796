//! The roofline: what a device can do at most, measured, and how far under that each kernel stands. `report` is what a
//! measurement gives; everything that is printed, drawn or compared is made from it.

pub mod report;

pub use report::Report;
