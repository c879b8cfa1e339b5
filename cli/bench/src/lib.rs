//! `janusfs bench`: speed as ratios. Each cell measures JanusFS and what the machine could do at best (its *floor*) in
//! turns in one run, so that whatever else the machine does hits both sides.
//!
//! Owns: the loads, the floors, the table of cells with their aims. JanusFS is measured from outside (`janusfs up` as a
//! child process) through its doors, and below them (`chunk`, `meta`) in this process. Absent: the command line; judging a
//! build by its speed (a missed aim is printed, it is no failure).
//!
//! Reading order: `run`, `measure`, `report`, `s3`, `fs`, `chunk`, `meta`, then the floors.
#![forbid(unsafe_code)]

mod measure;
mod report;
mod run;

mod child;
mod scratch;

mod disk;
mod noise;

mod floor_s3;
mod s3;
mod s3_client;
mod sign;

mod floor_fs;
mod fs;

mod chunk;
mod meta;

pub use floor_fs::serve as floor_fs;
pub use floor_s3::serve as floor_s3;
pub use report::{Aim, Report, Row, Unit};
pub use run::{Noun, Options, run};
