//! Every bound of the system: value, unit, why. A bound that is not here is a bug.

/// Longest entry name in bytes: S3's key limit, since a key may be one part. POSIX callers are held to
/// [`POSIX_NAME_MAX_BYTES`].
pub const NAME_MAX_BYTES: usize = 1024;
/// Longest name that a POSIX call may create, in bytes (`NAME_MAX`).
pub const POSIX_NAME_MAX_BYTES: usize = 255;
/// Longest S3 key in bytes (S3 User Guide, "Object key names").
pub const KEY_MAX_BYTES: usize = 1024;
/// Longest symlink target in bytes (`PATH_MAX` less the zero byte).
pub const SYMLINK_MAX_BYTES: usize = 4095;
/// Most symlinks that the S3 door follows one after the other (`MAXSYMLINKS` of the Linux kernel).
pub const SYMLINK_HOPS_MAX: u32 = 40;
/// Most parts of targets that the S3 door passes to follow a symlink: a listing does that for each symlink it meets.
pub const SYMLINK_PARTS_MAX: u32 = 128;
/// Most symlinks to directories within a key: directories that link to each other spell keys in numbers that grow by this
/// power, and a workspace of packages does just that.
pub const KEY_LINKED_DIRECTORIES_MAX: usize = 2;
/// Largest content kept inside the inode record, in bytes: one read instead of two for the small files that a
/// dataset has most of, while an inode row stays well below the KV's value limit.
pub const INLINE_MAX_BYTES: usize = 4096;
/// Smallest and largest chunk size, as logarithms: 64 KiB and 64 MiB (3FS's 11 size classes).
pub const CHUNK_SIZE_LOG2_MIN: u8 = 16;
/// See [`CHUNK_SIZE_LOG2_MIN`].
pub const CHUNK_SIZE_LOG2_MAX: u8 = 26;
/// Chunk size of new blobs unless their directory says otherwise: 4 MiB, as logarithm.
pub const CHUNK_SIZE_LOG2_DEFAULT: u8 = 22;
/// Largest file in bytes: 2^31 chunks of the smallest size, so that a chunk index fits a u32 whatever the layout.
pub const FILE_SIZE_MAX_BYTES: u64 = 1 << 47;
/// Hard links of one inode: what `ext4` grants; the counter is a u32.
pub const LINK_MAX: u32 = 65_000;
/// Most parts of a multipart upload, and so most extents that a fresh object has (S3 User Guide).
pub const PART_COUNT_MAX: u32 = 10_000;
/// Smallest part but the last, in bytes (S3 User Guide).
pub const PART_SIZE_MIN_BYTES: u64 = 5 << 20;
/// Largest body of one PUT or part in bytes (S3 User Guide).
pub const PUT_SIZE_MAX_BYTES: u64 = 5 << 30;
/// Most keys of one DeleteObjects and entries of one listing page (S3 API reference).
pub const LIST_PAGE_MAX: u32 = 1000;
/// Most entries of one directory page between client and metadata service; bounds the reply to about 1 MiB.
pub const READDIR_PAGE_MAX: u32 = 1024;
/// Largest xattr value and the sum of names of one inode, in bytes (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
pub const XATTR_MAX_BYTES: usize = 65_536;
/// Longest xattr name in bytes (`XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX_BYTES: usize = 255;
/// Most user metadata of an object in bytes (S3 User Guide).
pub const USER_METADATA_MAX_BYTES: usize = 2048;
/// Buckets in one namespace; bounds `ListBuckets`.
pub const BUCKET_COUNT_MAX: u32 = 10_000;

/// Limits of a KV transaction, FoundationDB's: key, value, all writes (bytes), life (seconds).
pub const KV_KEY_MAX_BYTES: usize = 10_000;
/// See [`KV_KEY_MAX_BYTES`].
pub const KV_VALUE_MAX_BYTES: usize = 100_000;
/// See [`KV_KEY_MAX_BYTES`].
pub const KV_TRANSACTION_MAX_BYTES: usize = 10_000_000;
/// See [`KV_KEY_MAX_BYTES`].
pub const KV_TRANSACTION_MAX_SECONDS: u64 = 5;

/// What is acknowledged without `fsync` reaches stable storage within this time (promise P2), in milliseconds.
pub const SYNC_INTERVAL_MS: u64 = 500;
/// Largest message head between processes in bytes: a listing page or 10,000 extents fit.
pub const RPC_HEAD_MAX_BYTES: usize = 4 << 20;
/// Largest bulk payload beside a message in bytes: one chunk of the largest size.
pub const RPC_BODY_MAX_BYTES: usize = 64 << 20;
/// Requests in flight on one connection; the next one waits.
pub const RPC_INFLIGHT_MAX: usize = 256;
/// Deadline of a metadata call in milliseconds.
pub const META_DEADLINE_MS: u64 = 10_000;
/// Deadline of a chunk read or write in milliseconds.
pub const CHUNK_DEADLINE_MS: u64 = 30_000;
/// Bytes one client keeps in write-back buffers, over all files; a writer that would pass it waits.
pub const CLIENT_DIRTY_MAX_BYTES: u64 = 64 << 20;
/// Bytes of chunk payload one storage role holds in memory for writes in progress; more wait.
pub const STORAGE_INFLIGHT_MAX_BYTES: u64 = 96 << 20;
/// A client that has not been heard of for this time loses its lease (milliseconds); it renews every fifth of it.
pub const CLIENT_LEASE_MS: u64 = 5_000;
/// For how long a client may believe an answer that it was not told to forget, in milliseconds: what a change of it waits
/// at most for a client that does not answer.
pub const CACHE_LEASE_MS: u32 = 2_000;
/// Most answers that one client may believe at a time; further ones come without a lease. 8 bytes each, twice.
pub const CACHE_LEASES_MAX: usize = 1 << 18;
/// Free space below which a target refuses new chunks, in bytes: room for RocksDB to compact and for deletes, and for
/// names and small files beyond [`META_FREE_MIN_BYTES`].
pub const TARGET_FREE_MIN_BYTES: u64 = 256 << 20;
/// Free space below which the metadata takes in nothing new, in bytes: RocksDB can still flush both of its memtables of
/// 32 MiB before it gives their logs back, and compact, so that deleting goes on and makes room again. Deleting a file
/// that lies in its inode writes the inode once more, so a burst of deletes takes room before it gives any.
pub const META_FREE_MIN_BYTES: u64 = 192 << 20;
