//! Messages of the metadata service. What each does is documented on the request; errors are `FsError`.
//!
//! Identity: the peer is an authenticated member of the cluster (a mount or a gateway) and speaks for its users;
//! ownership of what a call creates comes from the [`Credentials`] it carries.

use bytes::Bytes;
use janusfs_types::{
    Attr, BlobId, ChainTable, ClientId, Content, Credentials, DataVersion, Epoch, FileKind,
    FsError, InodeId, Layout, SessionId,
};

use crate::{ServiceId, methods, wire_enum, wire_fields};

/// A fact list of string pairs, in order.
pub type Pairs = Vec<(String, String)>;

/// S3 attributes of an object, kept beside its inode and tied to its data version.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ObjectAttrs {
    /// ETag without quotes: MD5 in hex, or `md5-N` for a multipart object.
    pub etag: String,
    /// The version of the bytes that `etag`, `checksums` and `parts` describe; they are void once it differs.
    pub data_version: DataVersion,
    /// Content headers as given: lower-case name and value (`content-type`, `cache-control`, ...).
    pub headers: Pairs,
    /// User metadata: name without the `x-amz-meta-` prefix, and value.
    pub metadata: Pairs,
    /// Checksums: algorithm (`crc32`, `crc32c`, `crc64nvme`, `sha1`, `sha256`) and base64 value.
    pub checksums: Pairs,
    /// `FULL_OBJECT` or `COMPOSITE`; empty without checksums.
    pub checksum_type: String,
    /// Sizes of the parts of a multipart object in bytes, in order; empty otherwise.
    pub parts: Vec<u64>,
}
wire_fields!(ObjectAttrs {
    etag,
    data_version,
    headers,
    metadata,
    checksums,
    checksum_type,
    parts
});

/// A name's answer: the inode behind it.
#[derive(Clone, PartialEq, Debug)]
pub struct Found {
    /// Its attributes.
    pub attr: Attr,
}
wire_fields!(Found { attr });

/// An open file: attributes and where the bytes are, as of one moment.
#[derive(Clone, PartialEq, Debug)]
pub struct Opened {
    /// Attributes.
    pub attr: Attr,
    /// Where the bytes live.
    pub content: Content,
    /// The epoch in which this was read: report the oldest one still in use with each heartbeat.
    pub epoch: Epoch,
}
wire_fields!(Opened {
    attr,
    content,
    epoch
});

/// An object: an open file with its S3 attributes.
#[derive(Clone, PartialEq, Debug)]
pub struct Object {
    /// The file.
    pub file: Opened,
    /// S3 attributes. For a file that POSIX wrote last, the ETag is opaque and contains a `-`, without checksums.
    pub attrs: ObjectAttrs,
}
wire_fields!(Object { file, attrs });

/// One entry of a directory page.
#[derive(Clone, PartialEq, Debug)]
pub struct DirEntry {
    /// The name as POSIX sees it (reserved names already encoded).
    pub name: Bytes,
    /// Attributes of the child.
    pub attr: Attr,
    /// Where to go on after this entry: give it back as `after`.
    pub cursor: Bytes,
}
wire_fields!(DirEntry { name, attr, cursor });

/// A page of a directory.
#[derive(Clone, PartialEq, Debug)]
pub struct DirPage {
    /// Entries in stored order (without `.` and `..`).
    pub entries: Vec<DirEntry>,
    /// Whether the directory ends here.
    pub end: bool,
}
wire_fields!(DirPage { entries, end });

/// What `SetAttr` changes; absent fields stay. A time of `None` inside `Some` means "now" on the server.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct AttrChange {
    /// New permission bits.
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New access time, ns.
    pub accessed_ns: Option<Option<i64>>,
    /// New modification time, ns.
    pub modified_ns: Option<Option<i64>>,
}
wire_fields!(AttrChange {
    mode,
    uid,
    gid,
    accessed_ns,
    modified_ns
});

/// Totals for `statfs` and `status`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct FsStats {
    /// Bytes of all files (sum of sizes).
    pub used_bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}
wire_fields!(FsStats { used_bytes, inodes });

/// A bucket.
#[derive(Clone, PartialEq, Debug)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Its directory.
    pub root: InodeId,
    /// Path of the directory from the root, as given at creation, for people.
    pub path: String,
    /// Name of the S3 user that made it.
    pub owner: String,
    /// Creation, ns since the epoch.
    pub created_ns: i64,
    /// Mode bits removed from what a PUT creates; files get `0o666 & !umask`, directories `0o777 & !umask`.
    pub umask: u32,
    /// Bytes below it.
    pub used_bytes: u64,
    /// Files and directories below it.
    pub entries: u64,
}
wire_fields!(Bucket {
    name,
    root,
    path,
    owner,
    created_ns,
    umask,
    used_bytes,
    entries
});

/// An S3 user.
#[derive(Clone, PartialEq, Debug)]
pub struct User {
    /// Unique name.
    pub name: String,
    /// POSIX identity of what the user creates.
    pub uid: u32,
    /// See `uid`.
    pub gid: u32,
    /// Whether the user may do everything (the root user) or only use buckets.
    pub admin: bool,
    /// JSON policy document as given; empty for none.
    pub policy: String,
    /// Access keys, without their secrets.
    pub access_keys: Vec<String>,
    /// Creation, ns since the epoch.
    pub created_ns: i64,
}
wire_fields!(User {
    name,
    uid,
    gid,
    admin,
    policy,
    access_keys,
    created_ns
});

/// An access key with what SigV4 needs. Never logged.
#[derive(Clone, PartialEq)]
pub struct AccessKey {
    /// The key id.
    pub access_key: String,
    /// The secret, recoverable because SigV4 needs it.
    pub secret_key: String,
    /// Whose it is.
    pub user: User,
}
wire_fields!(AccessKey {
    access_key,
    secret_key,
    user
});

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey")
            .field("access_key", &self.access_key)
            .finish_non_exhaustive()
    }
}

/// Conditions that are decided inside the publishing transaction.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Conditions {
    /// `If-Match`: the current ETag must be one of these (`*`: any object must exist). Empty: no condition.
    /// On a missing key: `NotFound`; on another ETag: `PreconditionFailed`.
    pub if_match: Vec<String>,
    /// `If-None-Match`: the current ETag must be none of these (`*`: no object may exist). Else `PreconditionFailed`.
    pub if_none_match: Vec<String>,
}
wire_fields!(Conditions {
    if_match,
    if_none_match
});

/// The bytes of a new object or part: already written (blob) or carried along (inline).
#[derive(Clone, PartialEq, Debug)]
pub struct NewContent {
    /// Where they are. `Blob` names a blob allocated by this client and durable on its chains; it becomes owned.
    pub content: Content,
    /// Length in bytes.
    pub size: u64,
}
wire_fields!(NewContent { content, size });

/// The result of publishing an object.
#[derive(Clone, PartialEq, Debug)]
pub struct Published {
    /// The object's inode.
    pub inode: InodeId,
    /// Its ETag.
    pub etag: String,
    /// Modification time, ns.
    pub modified_ns: i64,
}
wire_fields!(Published {
    inode,
    etag,
    modified_ns
});

/// A listed object.
#[derive(Clone, PartialEq, Debug)]
pub struct ListedObject {
    /// Key below the bucket: UTF-8 (parts that are not are percent-encoded under the reserved prefix).
    pub key: String,
    /// Length in bytes.
    pub size: u64,
    /// Modification time, ns.
    pub modified_ns: i64,
    /// ETag without quotes.
    pub etag: String,
    /// Checksum algorithms present.
    pub checksum_algorithms: Vec<String>,
    /// See [`ObjectAttrs::checksum_type`].
    pub checksum_type: String,
}
wire_fields!(ListedObject {
    key,
    size,
    modified_ns,
    etag,
    checksum_algorithms,
    checksum_type
});

/// One row of a listing, in the byte order of keys.
#[derive(Clone, PartialEq, Debug)]
pub enum Listed {
    /// An object.
    Object {
        /// It.
        object: ListedObject,
    },
    /// A common prefix, up to and with the delimiter.
    Prefix {
        /// It.
        prefix: String,
    },
}
wire_enum!(Listed { 1 => Object { object }, 2 => Prefix { prefix } });

/// A page of a listing.
#[derive(Clone, PartialEq, Debug)]
pub struct ListPage {
    /// Rows in order.
    pub rows: Vec<Listed>,
    /// Whether more follow the last row.
    pub truncated: bool,
}
wire_fields!(ListPage { rows, truncated });

/// A multipart upload in progress.
#[derive(Clone, PartialEq, Debug)]
pub struct Upload {
    /// The key.
    pub key: String,
    /// The id.
    pub upload_id: String,
    /// Start, ns.
    pub created_ns: i64,
    /// User who started it.
    pub initiator: String,
    /// Attributes the object will get (headers, metadata; `checksums` names the algorithm with an empty value).
    pub attrs: ObjectAttrs,
}
wire_fields!(Upload {
    key,
    upload_id,
    created_ns,
    initiator,
    attrs
});

/// A stored part.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// 1 to 10,000.
    pub number: u32,
    /// Length in bytes.
    pub size: u64,
    /// MD5 in hex.
    pub etag: String,
    /// Algorithm and base64 value.
    pub checksums: Pairs,
    /// Upload time, ns.
    pub modified_ns: i64,
}
wire_fields!(Part {
    number,
    size,
    etag,
    checksums,
    modified_ns
});

/// Outcome of one key of `DeleteObjects`.
#[derive(Clone, PartialEq, Debug)]
pub struct Deleted {
    /// The key.
    pub key: String,
    /// Why it was not deleted; an absent key counts as deleted.
    pub error: Option<FsError>,
}
wire_fields!(Deleted { key, error });

/// What a fresh client needs to know.
#[derive(Clone, PartialEq, Debug)]
pub struct Welcome {
    /// Chains and targets.
    pub table: ChainTable,
    /// Layout for new blobs (its `seed` is varied by the client).
    pub layout: Layout,
    /// The current epoch.
    pub epoch: Epoch,
}
wire_fields!(Welcome {
    table,
    layout,
    epoch
});

/// Answer to a heartbeat.
#[derive(Clone, PartialEq, Debug)]
pub struct Pulse {
    /// False when the lease had lapsed: opens from before are stale.
    pub alive: bool,
    /// The current epoch.
    pub epoch: Epoch,
}
wire_fields!(Pulse { alive, epoch });

/// What `Rename` does when the destination exists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RenameMode {
    /// Replaces it as POSIX says.
    Replace,
    /// `RENAME_NOREPLACE`: fails with `Exists`.
    NoReplace,
    /// `RENAME_EXCHANGE`: swaps; both must exist.
    Exchange,
}
wire_enum!(RenameMode { 1 => Replace, 2 => NoReplace, 3 => Exchange });

/// One finding of a metadata check.
#[derive(Clone, PartialEq, Debug)]
pub struct Finding {
    /// What is wrong, for a person.
    pub text: String,
}
wire_fields!(Finding { text });

/// How far a check has come, and in the end its result.
#[derive(Clone, PartialEq, Debug)]
pub struct FsckReport {
    /// Whether this is the end; else call again.
    pub done: bool,
    /// Rows looked at so far.
    pub rows: u64,
    /// Rows that there are, roughly.
    pub rows_expected: u64,
    /// Inodes looked at.
    pub inodes: u64,
    /// Entries looked at.
    pub entries: u64,
    /// Blobs that metadata refers to.
    pub blobs: u64,
    /// Rows that changed faster than they could be read. Not 0: the check ended without a verdict.
    pub changing: u64,
    /// What is wrong; empty is clean. At most 1,000.
    pub findings: Vec<Finding>,
}
wire_fields!(FsckReport {
    done,
    rows,
    rows_expected,
    inodes,
    entries,
    blobs,
    changing,
    findings
});

/// A name in a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameIn {
    /// The directory.
    pub parent: InodeId,
    /// The name as POSIX sees it.
    pub name: Bytes,
}
wire_fields!(NameIn { parent, name });

/// What a client must forget: leases of it end here.
#[derive(Clone, PartialEq, Debug)]
pub struct Forget {
    /// Number of the batch: give it back as `acked` once everything is forgotten.
    pub batch: u64,
    /// Inodes whose attributes changed.
    pub inodes: Vec<InodeId>,
    /// Names that lead elsewhere, or nowhere, or somewhere now.
    pub names: Vec<NameIn>,
}
wire_fields!(Forget {
    batch,
    inodes,
    names
});

methods! { ServiceId::Meta;
    /// Introduces a client and starts its lease.
    1 Hello { client: ClientId } -> Welcome;
    /// Renews the lease. `oldest_epoch`: of the oldest open read; `oldest_blob`: lowest blob number allocated but not
    /// yet published or dropped (both may be "none").
    2 Heartbeat { client: ClientId, oldest_epoch: Option<Epoch>, oldest_blob: Option<BlobId> } -> Pulse;
    /// Reserves `count` fresh numbers for inodes and blobs; returns the first. Never handed out twice, also after a crash.
    3 AllocIds { client: ClientId, count: u32 } -> u64;
    /// Totals.
    4 StatFs {} -> FsStats;
    /// Returns when every metadata change acknowledged before is on stable storage.
    5 SyncMeta {} -> ();
    /// Does one step, well below the deadline, of the check of every metadata invariant as of one moment. `run` is a number of the
    /// caller's choice: the first call with it begins, and the caller repeats it until the report is `done`. One check at a time
    /// (`Busy`); one whose caller stays away is forgotten.
    6 Fsck { run: u64 } -> FsckReport;
    /// Waits for something to forget, for at most about a second. `acked` is the last batch that the client has forgotten.
    /// Only a client that keeps calling this gets leases.
    7 Watch { client: ClientId, acked: u64 } -> Forget;

    /// Finds `name` (a POSIX name, reserved names decoded) in a directory; none: it is not there, which may be believed like
    /// any answer. `.` and `..` are the kernel's business.
    10 Lookup { parent: InodeId, name: Bytes } -> Option<Found>;
    /// Returns attributes; works for unlinked inodes that are not reclaimed yet.
    11 GetAttr { inode: InodeId } -> Found;
    /// Changes attributes other than the size. Bumps ctime.
    12 SetAttr { inode: InodeId, change: AttrChange } -> Found;
    /// Returns a page of a directory, after the cursor (empty: from the start).
    13 ReadDir { inode: InodeId, after: Bytes, limit: u32 } -> DirPage;
    /// Creates a file, directory or special file (`Symlink` has its own call). Directories made here are explicit.
    /// For a regular file with `exclusive` false and an existing regular file: returns that one. Setgid directories
    /// pass their group on (and the bit, to directories). Mode arrives with the umask applied.
    14 Create { parent: InodeId, name: Bytes, kind: FileKind, mode: u32, rdev: u32, who: Credentials, exclusive: bool } -> Opened;
    /// Creates a symlink.
    15 Symlink { parent: InodeId, name: Bytes, target: Bytes, who: Credentials } -> Found;
    /// Reads a symlink's target.
    16 ReadLink { inode: InodeId } -> Bytes;
    /// Adds a hard link to anything but a directory.
    17 Link { inode: InodeId, parent: InodeId, name: Bytes } -> Found;
    /// Removes a name that is not a directory; the inode becomes an orphan with its last link.
    18 Unlink { parent: InodeId, name: Bytes } -> ();
    /// Removes an empty directory.
    19 Rmdir { parent: InodeId, name: Bytes } -> ();
    /// Renames atomically, with POSIX's rules for replacing. Refuses to move a directory below itself (`Invalid`) and
    /// directories between accounting roots (`CrossDevice`).
    20 Rename { parent: InodeId, name: Bytes, new_parent: InodeId, new_name: Bytes, mode: RenameMode } -> ();
    /// Opens for reading or writing; a `session` (write-open) is recorded until `Close` or the client's lease lapses.
    21 Open { inode: InodeId, client: ClientId, session: Option<SessionId> } -> Opened;
    /// Ends a write-open.
    22 Close { inode: InodeId, client: ClientId, session: SessionId } -> ();
    /// Replaces the whole content by inline bytes, if the data version still is `expected` (else `PreconditionFailed`)
    /// and the content is inline. `size` is the file's new length (may exceed the bytes: a hole follows).
    23 WriteInline { inode: InodeId, expected: DataVersion, bytes: Bytes, size: u64, durable: bool } -> Found;
    /// Moves an inline file to a blob (`blob` allocated by the caller, which already wrote the inline bytes there), if the
    /// data version still is `expected`. Does not change size or bytes, and so not the data version.
    24 Spill { inode: InodeId, expected: DataVersion, blob: BlobId, layout: Layout } -> Opened;
    /// Publishes in-place writes of a blob file: size becomes the larger of its size and `end`, mtime and ctime become
    /// now, the data version grows. With `durable`, returns after stable storage.
    25 CommitWrite { inode: InodeId, end: u64, durable: bool } -> Found;
    /// Sets the size. Growing leaves a hole. Shrinking an inline file cuts it; shrinking to 0 gives fresh inline content and
    /// orphans the blob; shrinking a blob file marks `[size, ...)` to be trimmed, and the reply's `trim` tells the caller to trim the
    /// chunks from there and then call `Trimmed`.
    26 Truncate { inode: InodeId, size: u64 } -> Truncated;
    /// Says that the chunks past `size` are trimmed, if the data version still is `version`.
    27 Trimmed { inode: InodeId, version: DataVersion } -> ();
    /// Replaces extents by one owned blob of the same bytes (the caller copied them), if the data version is `expected`.
    28 Unshare { inode: InodeId, expected: DataVersion, blob: BlobId, layout: Layout } -> Opened;

    /// Sets an xattr. `create`/`replace` as `XATTR_CREATE`/`XATTR_REPLACE`.
    30 SetXattr { inode: InodeId, name: Bytes, value: Bytes, create: bool, replace: bool } -> ();
    /// Reads an xattr (`NoXattr`).
    31 GetXattr { inode: InodeId, name: Bytes } -> Bytes;
    /// Lists xattr names.
    32 ListXattr { inode: InodeId } -> Vec<Bytes>;
    /// Removes an xattr (`NoXattr`).
    33 RemoveXattr { inode: InodeId, name: Bytes } -> ();

    /// Makes a bucket over directory `path` (empty: `/NAME`, created if missing). `Exists` when the name is taken.
    40 CreateBucket { name: String, path: String, owner: String, who: Credentials } -> Bucket;
    /// Finds a bucket.
    41 GetBucket { name: String } -> Bucket;
    /// Removes an empty bucket (`NotEmpty` while a key or an upload is in it); its directory goes when it is `/NAME`.
    42 DeleteBucket { name: String } -> ();
    /// Lists buckets by name.
    43 ListBuckets {} -> Vec<Bucket>;

    /// Publishes an object: checks conditions, makes implicit parent directories, swaps the entry, files the old inode
    /// as orphan, adjusts usage; durable before the reply. `inode` was allocated by the caller.
    /// `attrs.data_version` is ignored.
    50 PutObject { bucket: String, key: String, inode: InodeId, content: NewContent, attrs: ObjectAttrs, conditions: Conditions, who: Credentials } -> Published;
    /// Resolves a key.
    51 GetObject { bucket: String, key: String } -> Object;
    /// Deletes keys, each its own transaction, durable before the reply; absent keys count as deleted. `conditions` apply to
    /// each (used with one key): a failing one is this call's error when there is one key.
    /// Implicit parents left empty vanish with it.
    52 DeleteObjects { bucket: String, keys: Vec<String>, conditions: Conditions } -> Vec<Deleted>;
    /// Copies by reference: source blob becomes shared. `attrs` replaces the source's attributes when given; `source_etag`, when
    /// not empty, must still hold. Durable before the reply.
    53 CopyObject { source_bucket: String, source_key: String, source_etag: String, bucket: String, key: String, inode: InodeId, attrs: Option<ObjectAttrs>, conditions: Conditions, who: Credentials } -> Published;
    /// Lists keys that start with `prefix` and sort after `after` (exclusive; a common prefix given as `after` skips what is below
    /// it). `delimiter` may be any text; empty: none. At most `limit` rows.
    54 ListObjects { bucket: String, prefix: String, after: String, delimiter: String, limit: u32 } -> ListPage;

    /// Starts a multipart upload.
    60 CreateUpload { bucket: String, key: String, attrs: ObjectAttrs, initiator: String } -> String;
    /// Stores a part (replacing one of the same number); durable before the reply.
    61 PutPart { bucket: String, key: String, upload_id: String, number: u32, content: NewContent, etag: String, checksums: Pairs } -> Part;
    /// Stores a part by reference to a range of an object.
    62 CopyPart { bucket: String, key: String, upload_id: String, number: u32, source_bucket: String, source_key: String, source_etag: String, offset: u64, len_bytes: u64 } -> Part;
    /// Lists parts after a number.
    63 ListParts { bucket: String, key: String, upload_id: String, after: u32, limit: u32 } -> PartPage;
    /// Lists uploads after (key, upload id), keys starting with `prefix`.
    64 ListUploads { bucket: String, prefix: String, after_key: String, after_upload: String, limit: u32 } -> Vec<Upload>;
    /// Publishes the object over the parts' blobs in one transaction; no byte moves. `parts` are (number, etag) in order; a
    /// part that is missing or whose ETag differs: `Invalid("InvalidPart")`; order: `Invalid("InvalidPartOrder")`; too small:
    /// `Invalid("EntityTooSmall")`. A repeated call after success returns the same result while the upload is remembered.
    65 CompleteUpload { bucket: String, key: String, upload_id: String, inode: InodeId, parts: Vec<(u32, String)>, etag: String, checksums: Pairs, checksum_type: String, conditions: Conditions, who: Credentials } -> Published;
    /// Drops an upload and its parts.
    66 AbortUpload { bucket: String, key: String, upload_id: String } -> ();
    /// Finds an upload.
    67 GetUpload { bucket: String, key: String, upload_id: String } -> Upload;

    /// Makes a user (`Exists`); with both key texts non-empty also its first access key.
    70 CreateUser { name: String, uid: u32, gid: u32, admin: bool, policy: String, access_key: String, secret_key: String } -> User;
    /// Lists users.
    71 ListUsers {} -> Vec<User>;
    /// Removes a user and its keys.
    72 DeleteUser { name: String } -> ();
    /// Adds an access key to a user.
    73 CreateKey { user: String, access_key: String, secret_key: String } -> ();
    /// Removes an access key.
    74 DeleteKey { access_key: String } -> ();
    /// Finds a key with its secret, for SigV4.
    75 GetKey { access_key: String } -> AccessKey;
}

/// Answer to `Truncate`.
#[derive(Clone, PartialEq, Debug)]
pub struct Truncated {
    /// The file now.
    pub file: Opened,
    /// Where the bytes were before: trim the chunks past the size, then call `Trimmed`.
    pub trim: bool,
}
wire_fields!(Truncated { file, trim });

/// A page of parts.
#[derive(Clone, PartialEq, Debug)]
pub struct PartPage {
    /// The upload.
    pub upload: Upload,
    /// Parts in order of number.
    pub parts: Vec<Part>,
    /// Whether more follow.
    pub truncated: bool,
}
wire_fields!(PartPage {
    upload,
    parts,
    truncated
});
