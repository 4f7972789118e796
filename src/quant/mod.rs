//! Making models smaller. The algorithms ([`symmetric`], [`rows`], [`gptq`], [`awq`]) are functions over slices; [`scheme`] says which
//! format each weight of a model gets, [`fold`] what activation-aware scaling divides, [`calibration`] reads the text that is learned
//! from, and [`model`] does it for a whole model.

pub mod awq;
pub mod calibration;
pub mod chart;
mod cholesky;
pub mod fold;
pub mod gptq;
pub mod imatrix;
pub mod model;
pub mod report;
pub mod rows;
pub mod scheme;
pub mod sweep;
pub mod symmetric;
