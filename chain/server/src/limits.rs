//! Bounds of the storage role: value, unit, why.

use std::time::Duration;

/// Chunks one `Remove`, `List` or `Scrub` call handles at most; bounds the reply and the time on one thread.
pub(crate) const PAGE_MAX: u32 = 1024;
/// Time after which a `Scrub` call answers with what it has: a sixth of its deadline, for large chunks on slow or busy disks.
pub(crate) const SCRUB_TIME_MAX: Duration = Duration::from_secs(5);
/// Writes and repairs in progress in one process; one more is refused as busy. Payload is bounded apart, in bytes.
pub(crate) const JOBS_MAX: u32 = 65_536;
/// Unit in which payload bytes are admitted: what a write costs at least.
pub(crate) const ADMISSION_UNIT_BYTES: u64 = 1024;
/// Outputs that may wait for one write: a stage, a forward, and an answer.
pub(crate) const MAILBOX_MAX: usize = 4;
/// Damaged chunks of one target that wait for their repair; the scrubber finds what is refused here.
pub(crate) const MENDS_MAX: usize = 256;
/// Damaged chunks of one target that are remembered, so that each counts once: 4 MiB of memory at most.
pub(crate) const DAMAGED_MAX: usize = 65_536;
/// How often a repair starts again because its source moved on meanwhile.
pub(crate) const REPAIR_ATTEMPTS_MAX: u32 = 8;
/// Deadline of one call of a repair: as a chunk read.
pub(crate) const REPAIR_DEADLINE: Duration =
    Duration::from_millis(janusfs_types::limits::CHUNK_DEADLINE_MS);
/// Least time a forward gets, however late its turn came: the caller has left by then, and a forward that is given up
/// leaves its chunk unresolved.
pub(crate) const FORWARD_DEADLINE_MIN: Duration = Duration::from_secs(5);
