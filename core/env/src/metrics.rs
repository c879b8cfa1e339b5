//! Counters and gauges: one table of names, printed in Prometheus' text format.
//!
//! Invariant: every metric is declared in the one table below, with its unit in its name and a help text.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

/// A number that goes up (counter) or is set (gauge).
pub struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: AtomicU64,
}

impl Metric {
    /// Adds to the metric.
    pub fn add(&self, amount: u64) {
        self.value.fetch_add(amount, Ordering::Relaxed);
    }

    /// Sets a gauge.
    pub fn set(&self, value: u64) {
        self.value.store(value, Ordering::Relaxed);
    }

    /// Returns the value.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

macro_rules! table {
    ($($const:ident $name:literal $kind:literal $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $const: Metric =
                Metric { name: $name, kind: $kind, help: $help, value: AtomicU64::new(0) };
        )*
        static ALL: &[&Metric] = &[$(&$const),*];
    };
}

table! {
    KV_COMMITS "janusfs_kv_commits_total" "counter" "Committed metadata transactions.";
    KV_CONFLICTS "janusfs_kv_conflicts_total" "counter" "Metadata transactions refused for a conflict and run again.";
    KV_SYNCS "janusfs_kv_syncs_total" "counter" "Syncs of the metadata write-ahead log.";
    META_OPS "janusfs_meta_ops_total" "counter" "Metadata operations answered.";
    META_LEASES_ENDED "janusfs_meta_cache_leases_ended_total" "counter" "Cached answers that clients were told to forget.";
    META_LEASES_WAITED_OUT "janusfs_meta_cache_leases_waited_out_total" "counter" "Changes that waited for the end of a silent client's cache leases.";
    META_RECLAIMED "janusfs_meta_reclaimed_inodes_total" "counter" "Orphaned inodes and blobs reclaimed.";
    CHUNK_READS "janusfs_chunk_reads_total" "counter" "Chunk reads answered.";
    CHUNK_READ_BYTES "janusfs_chunk_read_bytes_total" "counter" "Bytes of chunk reads answered.";
    CHUNK_WRITES "janusfs_chunk_writes_total" "counter" "Chunk writes committed.";
    CHUNK_WRITE_BYTES "janusfs_chunk_write_bytes_total" "counter" "Bytes of chunk writes committed, once per chain.";
    CHUNK_SYNCS "janusfs_chunk_syncs_total" "counter" "Sync barriers of chunk engines.";
    CHUNK_CORRUPTIONS "janusfs_chunk_corruptions_total" "counter" "Chunks whose bytes did not match their checksum.";
    CHUNK_REPAIRS "janusfs_chunk_repairs_total" "counter" "Damaged chunks rewritten from another replica.";
    S3_REQUESTS "janusfs_s3_requests_total" "counter" "S3 requests answered.";
    S3_ERRORS "janusfs_s3_errors_total" "counter" "S3 requests answered with an error.";
    FUSE_OPS "janusfs_fuse_ops_total" "counter" "FUSE requests answered.";
    RPC_CONNECTIONS "janusfs_rpc_connections_total" "counter" "Cluster connections accepted.";
    RPC_REJECTED "janusfs_rpc_rejected_total" "counter" "Cluster connections refused in the handshake.";
}

/// Prints every metric in Prometheus' text exposition format.
#[must_use]
pub fn render() -> String {
    let mut text = String::new();
    for metric in ALL {
        let Metric {
            name, kind, help, ..
        } = metric;
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {}",
            metric.value()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn render_prints_help_type_and_value() {
        KV_SYNCS.add(2);
        let text = render();
        assert!(text.contains("# TYPE janusfs_kv_syncs_total counter\njanusfs_kv_syncs_total 2\n"));
    }
}
