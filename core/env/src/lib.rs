//! Where the outside world enters: time, randomness, tasks, metrics.
//!
//! Everything else takes these from here (`clippy.toml` refuses the originals elsewhere), so that tests can see every
//! place that depends on them. Absent: any global switch that changes behaviour.
#![forbid(unsafe_code)]

pub mod clock;
pub mod metrics;
pub mod rng;
pub mod tasks;
