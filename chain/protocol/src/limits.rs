//! Bounds of a replica's memory: value, unit, why.

/// Chunks with work in flight on one replica; a write to one more is refused as busy. A slot takes about 200
/// bytes, and no client set we know keeps as many chunks of one target in flight.
pub const CHUNKS_IN_FLIGHT_MAX: usize = 4096;
/// Writes that wait for their turn on one chunk; one more is refused as busy. Writers of one chunk beyond this
/// only make each other wait.
pub const QUEUE_PER_CHUNK_MAX: usize = 128;
