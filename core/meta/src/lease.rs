//! The leases of clients, in memory: who is alive, which epochs each has left behind, which blobs it may still write.
//!
//! Judged by this process's monotonic clock alone. After a restart nothing is known, so for a grace period every client
//! counts as alive and nothing is reclaimed (DESIGN.md, section 6). Absent: any row in the store.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use janusfs_types::{BlobId, ClientId, Epoch, limits};

/// Time after which a silent client has lost its lease.
const LEASE: Duration = Duration::from_millis(limits::CLIENT_LEASE_MS);
/// Time after a start in which unknown clients are believed.
const GRACE: Duration = Duration::from_millis(2 * limits::CLIENT_LEASE_MS);
/// Batches of numbers that a client may be using at once: the current one and the one before it.
const BATCHES_IN_USE: usize = 2;

#[derive(Debug)]
struct Lease {
    heard: Instant,
    /// Every read of this client began in this epoch or later.
    passed: Epoch,
    oldest_blob: Option<BlobId>,
    /// First numbers of the batches it may take blobs from, oldest first.
    batches: VecDeque<u64>,
    /// Whether it may hold batches that are not in `batches`: it was a client before this service started.
    older_batches: bool,
}

/// All leases.
#[derive(Debug)]
pub(crate) struct Leases {
    started: Instant,
    clients: HashMap<ClientId, Lease>,
}

impl Leases {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            started: now,
            clients: HashMap::new(),
        }
    }

    /// Tells whether too little time has passed since the start to know who is alive.
    pub(crate) fn in_grace(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.started) < GRACE
    }

    /// Takes note of a client; returns whether it had its lease until now.
    ///
    /// A reply that is still on its way to the client may have begun a read that `oldest` does not tell of. Epochs
    /// last longer than a reply travels, so such a read began in the current epoch or the one before.
    pub(crate) fn heard(
        &mut self,
        client: ClientId,
        oldest: Option<Epoch>,
        oldest_blob: Option<BlobId>,
        current: Epoch,
        now: Instant,
    ) -> bool {
        let recent = Epoch(current.0.saturating_sub(1));
        let passed = oldest.map_or(recent, |oldest| oldest.min(recent));
        let grace = self.in_grace(now);
        let alive = match self.clients.get(&client) {
            Some(lease) => now.saturating_duration_since(lease.heard) <= LEASE,
            None => grace,
        };
        let lease = self.clients.entry(client).or_insert_with(|| Lease {
            heard: now,
            passed,
            oldest_blob,
            batches: VecDeque::new(),
            older_batches: true,
        });
        lease.heard = now;
        lease.passed = passed;
        lease.oldest_blob = oldest_blob;
        while lease.batches.len() > BATCHES_IN_USE {
            lease.batches.pop_front();
        }
        alive
    }

    /// Takes note of a client that introduces itself: it has no read, no blob and no number.
    pub(crate) fn hello(&mut self, client: ClientId, current: Epoch, now: Instant) {
        let fresh = !self.clients.contains_key(&client);
        self.heard(client, None, None, current, now);
        if let Some(lease) = self.clients.get_mut(&client).filter(|_| fresh) {
            lease.older_batches = false;
        }
    }

    /// Takes note of numbers given to a client. One without a lease gets none: it is told with its next heartbeat.
    pub(crate) fn allocated(&mut self, client: ClientId, first: u64) {
        if let Some(lease) = self.clients.get_mut(&client) {
            lease.batches.push_back(first);
            lease.older_batches &= lease.batches.len() < BATCHES_IN_USE;
        }
    }

    /// Forgets the clients whose lease has lapsed.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.clients
            .retain(|_, lease| now.saturating_duration_since(lease.heard) <= LEASE);
    }

    /// Tells whether a client is known and was not forgotten.
    pub(crate) fn knows(&self, client: ClientId) -> bool {
        self.clients.contains_key(&client)
    }

    /// Returns the epoch before which no live client reads.
    pub(crate) fn passed_by_all(&self) -> Option<Epoch> {
        self.clients.values().map(|lease| lease.passed).min()
    }

    /// Returns the lowest number that a live client may still write a blob under.
    pub(crate) fn lowest_blob(&self) -> Option<u64> {
        let of = |lease: &Lease| {
            let reported = lease.oldest_blob.map(|blob| blob.0);
            let older = lease.older_batches.then_some(0);
            reported
                .into_iter()
                .chain(lease.batches.front().copied())
                .chain(older)
                .min()
        };
        self.clients.values().filter_map(of).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use janusfs_env::clock;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    #[test]
    fn a_silent_client_loses_its_lease_and_is_told() {
        let start = clock::now();
        let mut leases = Leases::new(start);
        let later = start + GRACE;
        assert!(
            !leases.heard(A, None, None, Epoch(9), later),
            "a stranger after the grace period"
        );
        assert!(leases.heard(A, Some(Epoch(3)), None, Epoch(9), later + LEASE));
        assert_eq!(leases.passed_by_all(), Some(Epoch(3)));
        let late = later + LEASE * 3;
        leases.expire(late);
        assert_eq!(leases.passed_by_all(), None);
        assert!(!leases.heard(A, None, None, Epoch(9), late));
    }

    #[test]
    fn a_report_without_reads_holds_the_epoch_before_the_current_one() {
        let start = clock::now();
        let mut leases = Leases::new(start);
        assert!(
            leases.heard(A, None, None, Epoch(9), start),
            "in the grace period"
        );
        leases.heard(B, Some(Epoch(20)), None, Epoch(10), start);
        assert_eq!(leases.passed_by_all(), Some(Epoch(8)));
    }

    #[test]
    fn numbers_of_two_batches_and_reported_blobs_hold_the_sweeper() {
        let start = clock::now();
        let mut leases = Leases::new(start);
        leases.hello(A, Epoch(1), start);
        for first in [100, 200, 300] {
            leases.allocated(A, first);
        }
        assert_eq!(leases.lowest_blob(), Some(100));
        leases.heard(A, None, None, Epoch(1), start);
        assert_eq!(leases.lowest_blob(), Some(200));
        leases.heard(A, None, Some(BlobId(120)), Epoch(1), start);
        assert_eq!(leases.lowest_blob(), Some(120));
        leases.heard(B, None, None, Epoch(1), start);
        assert_eq!(
            leases.lowest_blob(),
            Some(0),
            "its batches are from before a restart"
        );
    }
}
