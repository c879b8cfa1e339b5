//! The S3 door under load, against a server with nothing behind it, the disk and MD5.
//!
//! Floors of a PUT: what discards the body, the disk's sequential write with one sync, and MD5 (the ETag) on as many cores
//! as there are connections; the lowest counts. Bodies do not compress and differ from each other.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use janusfs_env::tasks;
use tokio::runtime::Handle;

use crate::{
    child::{Floor, Up},
    disk::{self, DiskWrite},
    floor_s3::OBJECT_MAX_BYTES,
    measure::{Bench, Done, Running, Slice, Stop, side},
    noise::Noise,
    report::{Aim, Spec, Unit},
    run::cores,
    s3_client::{Account, Connection},
    scratch::Scratch,
};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const BUCKET: &str = "/bench";
/// Connections of the parallel cells.
const MANY: usize = 8;
/// Keys of the listing cells, in this many directories.
const KEYS: u64 = 10_000;
const FOLDERS: u64 = 100;
/// Keys of one multi-object delete and of one listing page.
const PAGE: u64 = 1000;
/// Most bytes that one slice of PUTs writes.
const PUT_SLICE_MAX_BYTES: u64 = 2 * GIB;

const fn spec(name: &'static str, unit: Unit, aim: Option<Aim>, space_bytes: u64) -> Spec {
    Spec {
        name,
        unit,
        aim,
        space_bytes,
    }
}

/// Every cell of the S3 door.
pub(crate) const CELLS: &[Spec] = {
    use Unit::{MibPerSecond, Milliseconds, OpsPerSecond};
    &[
        spec("put-64k-x1", OpsPerSecond, None, GIB / 4),
        spec("put-64k-x8", OpsPerSecond, Some(Aim::Ratio(0.06)), GIB / 2),
        spec("put-1m-x1", MibPerSecond, None, GIB),
        spec("put-1m-x8", MibPerSecond, None, GIB),
        spec("put-64m-x1", MibPerSecond, Some(Aim::Ratio(0.6)), 3 * GIB),
        spec("put-64m-x8", MibPerSecond, Some(Aim::Ratio(0.6)), 3 * GIB),
        spec("get-64k-x1", OpsPerSecond, None, 16 * MIB),
        spec("get-64k-x8", OpsPerSecond, Some(Aim::Ratio(0.2)), 16 * MIB),
        spec("get-1m-x1", MibPerSecond, None, 64 * MIB),
        spec("get-1m-x8", MibPerSecond, None, 64 * MIB),
        spec("get-64m-x1", MibPerSecond, None, 512 * MIB),
        spec("get-64m-x8", MibPerSecond, Some(Aim::Ratio(0.5)), 512 * MIB),
        spec("head-x1", OpsPerSecond, None, 0),
        spec("head-x8", OpsPerSecond, None, 0),
        spec(
            "fill-1k-x8",
            OpsPerSecond,
            Some(Aim::AtLeast(4000.0)),
            256 * MIB,
        ),
        spec(
            "list-10000",
            Milliseconds,
            Some(Aim::AtMost(50.0)),
            64 * MIB,
        ),
        spec("list-delimiter", Milliseconds, None, 64 * MIB),
        spec("delete-x1", OpsPerSecond, None, 64 * MIB),
        spec("delete-x8", OpsPerSecond, None, 64 * MIB),
        spec("multi-delete-1000", Milliseconds, None, 64 * MIB),
    ]
};

fn cell(name: &str) -> &'static Spec {
    CELLS
        .iter()
        .find(|spec| spec.name == name)
        .expect("the cell is in the table")
}

/// What the workers of a load do, each with a number of its own.
#[derive(Clone)]
enum Op {
    /// Stores object `number`.
    Put { prefix: String, size: u64 },
    /// Reads one of `count` objects.
    Get {
        prefix: String,
        size: u64,
        count: u64,
    },
    /// Asks for one of `count` objects.
    Head { prefix: String, count: u64 },
    /// Deletes object `number`.
    Delete { prefix: String },
    /// Deletes the thousand objects from `number * 1000` on.
    DeleteMany { prefix: String },
    /// Lists all keys below a prefix, of which there are `rows`, page by page; with a delimiter, the common prefixes.
    List {
        prefix: String,
        delimiter: bool,
        rows: u64,
    },
}

/// When a load ends, besides the clock.
#[derive(Clone, Copy)]
enum Until {
    Time,
    /// So many operations, however long they take.
    Count(u64),
    /// So many operations, or the clock.
    CountOrTime(u64),
}

/// A server with the connections to it.
struct Target {
    account: Account,
    handle: Handle,
    noise: Noise,
    idle: Vec<Connection>,
    stop: Stop,
}

/// What the workers of one load share.
struct Load {
    op: Op,
    until: Until,
    first: u64,
    next: AtomicU64,
    running: Running,
    noise: Noise,
    stop: Stop,
}

impl Target {
    /// Runs a load on some connections; numbers begin at `first`. Connecting is outside the clock.
    fn load(
        &mut self,
        slice: &Slice,
        connections: usize,
        op: Op,
        until: Until,
        first: u64,
    ) -> Result<Done> {
        let handle = self.handle.clone();
        tasks::block_on(&handle, async {
            while self.idle.len() < connections {
                self.idle.push(Connection::open(&self.account).await?);
            }
            let workers: Vec<_> = self.idle.drain(..connections).collect();
            let load = Arc::new(Load {
                op,
                until,
                first,
                next: AtomicU64::new(0),
                running: slice.start(),
                noise: self.noise.clone(),
                stop: self.stop.clone(),
            });
            let workers: Vec<_> = workers
                .into_iter()
                .map(|connection| tasks::spawn(work(connection, load.clone())))
                .collect();
            let (mut ops, mut bytes) = (0, 0);
            let mut failure = None;
            for worker in workers {
                match worker.await.context("a worker panicked")? {
                    Ok((connection, done)) => {
                        self.idle.push(connection);
                        ops += done.ops;
                        bytes += done.bytes;
                    }
                    Err(error) => failure = Some(error),
                }
            }
            self.stop.check()?;
            failure.map_or_else(|| load.running.done(ops, bytes), Err)
        })
    }

    /// Does something `count` times outside any clock.
    fn prepare(&mut self, op: Op, first: u64, count: u64) -> Result<()> {
        let untimed = Slice::untimed(&self.stop);
        let connections = MANY.min(usize::try_from(count)?);
        self.load(&untimed, connections, op, Until::Count(count), first)
            .map(|_| ())
    }
}

async fn work(mut connection: Connection, load: Arc<Load>) -> Result<(Connection, Done)> {
    let mut done = Done::default();
    loop {
        let (count, by_time) = match load.until {
            Until::Time => (u64::MAX, true),
            Until::Count(count) => (count, false),
            Until::CountOrTime(count) => (count, true),
        };
        if load.stop.is_set() || (by_time && done.ops > 0 && !load.running.goes_on()) {
            break;
        }
        let at = load.next.fetch_add(1, Ordering::Relaxed);
        if at >= count {
            break;
        }
        done.bytes += perform(&mut connection, &load, load.first + at).await?;
        done.ops += 1;
    }
    Ok((connection, done))
}

async fn perform(connection: &mut Connection, load: &Load, number: u64) -> Result<u64> {
    match &load.op {
        Op::Put { prefix, size } => {
            let body = load.noise.cut(number, usize::try_from(*size)?);
            connection.put(&key(prefix, number), body).await
        }
        Op::Get {
            prefix,
            size,
            count,
        } => {
            let len = connection.get(&key(prefix, number % count)).await?;
            ensure!(len == *size, "a GET gave {len} bytes instead of {size}");
            Ok(len)
        }
        Op::Head { prefix, count } => {
            connection.head(&key(prefix, number % count)).await?;
            Ok(0)
        }
        Op::Delete { prefix } => {
            connection.delete(&key(prefix, number)).await?;
            Ok(0)
        }
        Op::DeleteMany { prefix } => {
            delete_many(connection, prefix, number * PAGE..(number + 1) * PAGE).await?;
            Ok(0)
        }
        Op::List {
            prefix,
            delimiter,
            rows,
        } => {
            let listed = list(connection, prefix, *delimiter).await?;
            ensure!(
                listed == *rows,
                "a listing gave {listed} rows instead of {rows}"
            );
            Ok(0)
        }
    }
}

/// Path of an object; the hundred folders are for the delimiter listing.
fn key(prefix: &str, number: u64) -> String {
    format!("{BUCKET}/{prefix}d{:02}/{number:07}", number % FOLDERS)
}

async fn delete_many(
    connection: &mut Connection,
    prefix: &str,
    numbers: std::ops::Range<u64>,
) -> Result<()> {
    let mut text = String::from(
        "<Delete xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Quiet>true</Quiet>",
    );
    for number in numbers {
        let path = key(prefix, number);
        let key = path
            .strip_prefix(BUCKET)
            .map_or("", |key| key.trim_start_matches('/'));
        text.push_str("<Object><Key>");
        text.push_str(key);
        text.push_str("</Key></Object>");
    }
    text.push_str("</Delete>");
    let reply = connection.post(BUCKET, "delete=", text.into()).await?;
    ensure!(
        occurrences(&reply, b"<Error>") == 0,
        "a key could not be deleted"
    );
    Ok(())
}

async fn list(connection: &mut Connection, prefix: &str, delimiter: bool) -> Result<u64> {
    let delimiter = if delimiter { "delimiter=%2F&" } else { "" };
    let prefix = prefix.replace('/', "%2F");
    let mut token = String::new();
    let mut rows = 0;
    loop {
        let from = if token.is_empty() {
            String::new()
        } else {
            format!("continuation-token={}&", encode(&token))
        };
        let query = format!("{from}{delimiter}list-type=2&max-keys={PAGE}&prefix={prefix}");
        let reply = connection.query(BUCKET, &query).await?;
        rows += occurrences(&reply, b"<Key>") + occurrences(&reply, b"<CommonPrefixes>");
        match next_token(&reply) {
            Some(next) => token = next,
            None => return Ok(rows),
        }
    }
}

fn occurrences(text: &[u8], tag: &[u8]) -> u64 {
    let mut count = 0;
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| *byte == b'<') {
        rest = &rest[at..];
        count += u64::from(rest.starts_with(tag));
        rest = &rest[1..];
    }
    count
}

fn next_token(reply: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(reply).ok()?;
    let (_, rest) = text.split_once("<NextContinuationToken>")?;
    let (token, _) = rest.split_once("</NextContinuationToken>")?;
    Some(token.replace("&amp;", "&"))
}

/// Percent-encodes what a query value may not hold as it is.
fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// Measures the cells that were asked for.
pub(crate) fn measure(bench: &mut Bench, scratch: &Scratch, handle: &Handle) -> Result<()> {
    bench.say("starting the servers");
    let up = Up::start(scratch.join("s3"), None, &bench.stop)?;
    let floor = Floor::start(&["s3".as_ref()], "the floor server", None)?;
    let noise = Noise::new(OBJECT_MAX_BYTES);
    let target = |account| Target {
        account,
        handle: handle.clone(),
        noise: noise.clone(),
        idle: Vec::new(),
        stop: bench.stop.clone(),
    };
    let mut ours = target(up.account());
    let mut null = target(Account {
        address: floor.ready.clone(),
        ..up.account()
    });
    let make_bucket = async {
        let mut connection = Connection::open(&ours.account).await?;
        connection.put(BUCKET, Bytes::new()).await
    };
    tasks::block_on(handle, make_bucket).context("cannot make a bucket")?;
    let disk = DiskWrite::new(scratch.join("disk-floor"));
    let mut doors = Doors {
        bench,
        up: &up,
        ours: &mut ours,
        null: &mut null,
        disk: &disk,
    };
    for (label, size) in [("64k", 64 * KIB), ("1m", MIB), ("64m", 64 * MIB)] {
        for connections in [1, MANY] {
            doors.put(label, size, connections)?;
        }
    }
    for (label, size, count) in [
        ("64k", 64 * KIB, 256),
        ("1m", MIB, 64),
        ("64m", 64 * MIB, 4),
    ] {
        doors.get(label, size, count)?;
    }
    doors.small()?;
    doors.delete()
}

/// Stores empty objects of these names in a fresh bucket.
pub(crate) fn store_empty(
    account: &Account,
    handle: &Handle,
    bucket: &str,
    names: &[String],
    stop: &Stop,
) -> Result<()> {
    tasks::block_on(handle, async {
        let mut connection = Connection::open(account).await?;
        connection.put(&format!("/{bucket}"), Bytes::new()).await?;
        for name in names {
            stop.check()?;
            let path = format!("/{bucket}/{name}");
            connection.put(&path, Bytes::new()).await?;
        }
        Ok(())
    })
}

impl Up {
    /// Returns how to speak to its S3 door.
    pub(crate) fn account(&self) -> Account {
        Account {
            address: self.s3.clone(),
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
        }
    }
}

struct Doors<'a> {
    bench: &'a mut Bench,
    up: &'a Up,
    ours: &'a mut Target,
    null: &'a mut Target,
    disk: &'a DiskWrite,
}

impl Doors<'_> {
    fn put(&mut self, label: &str, size: u64, connections: usize) -> Result<()> {
        let spec = cell(&format!("put-{label}-x{connections}"));
        let op = Op::Put {
            prefix: format!("{size}/put{connections}/"),
            size,
        };
        let until = Until::CountOrTime((PUT_SLICE_MAX_BYTES / size).max(1));
        let (null, ours) = (&mut *self.null, &mut *self.ours);
        let put = |op: Op| {
            move |target: &mut Target, slice: &Slice, first| {
                target.load(slice, connections, op.clone(), until, first)
            }
        };
        let load_null = put(op.clone());
        let mut floors = vec![side("server", |slice: &Slice| load_null(null, slice, 0))];
        if spec.unit == Unit::MibPerSecond {
            let disk = self.disk;
            floors.push(side("disk", move |slice: &Slice| disk.run(slice)));
            let threads = connections.min(cores());
            floors.push(side("md5", move |slice: &Slice| disk::md5(slice, threads)));
        }
        let load_ours = put(op.clone());
        let mut stored = 0;
        let ours_side = side("ours", |slice: &Slice| {
            let done = load_ours(ours, slice, stored)?;
            stored += done.ops;
            Ok(done)
        });
        self.bench.cell(spec, Some(self.up), floors, ours_side)?;
        // The room is needed, and the next cell shall not find a full cache.
        let Op::Put { prefix, .. } = op else {
            return Ok(());
        };
        if stored > 0 {
            self.ours.prepare(Op::Delete { prefix }, 0, stored)?;
        }
        Ok(())
    }

    fn get(&mut self, label: &str, size: u64, count: u64) -> Result<()> {
        let prefix = format!("{size}/get/");
        let names =
            [1, MANY].map(|connections| (connections, format!("get-{label}-x{connections}")));
        let heads = [1, MANY].map(|connections| (connections, format!("head-x{connections}")));
        let heads = if size == 64 * KIB { &heads[..] } else { &[] };
        let all = names.iter().chain(heads);
        if !all.clone().any(|(_, name)| self.bench.wants(name)) {
            return Ok(());
        }
        self.bench.say("storing what will be read");
        let put = Op::Put {
            prefix: prefix.clone(),
            size,
        };
        self.ours.prepare(put, 0, count)?;
        for (connections, name) in all {
            let op = if name.starts_with("head") {
                Op::Head {
                    prefix: prefix.clone(),
                    count,
                }
            } else {
                Op::Get {
                    prefix: prefix.clone(),
                    size,
                    count,
                }
            };
            self.both(cell(name), *connections, &op)?;
        }
        Ok(())
    }

    /// Measures the same load on the floor server and on ours.
    fn both(&mut self, spec: &Spec, connections: usize, op: &Op) -> Result<()> {
        let (null, ours) = (&mut *self.null, &mut *self.ours);
        let floor = side("server", |slice: &Slice| {
            null.load(slice, connections, op.clone(), Until::Time, 0)
        });
        let ours = side("ours", |slice: &Slice| {
            ours.load(slice, connections, op.clone(), Until::Time, 0)
        });
        self.bench.cell(spec, Some(self.up), vec![floor], ours)
    }

    /// Small objects, and listings of ten thousand of them.
    fn small(&mut self) -> Result<()> {
        let put = Op::Put {
            prefix: "1024/fill/".into(),
            size: KIB,
        };
        let fill = cell("fill-1k-x8");
        let mut stored = 0;
        let (null, ours) = (&mut *self.null, &mut *self.ours);
        let floor = side("server", |slice: &Slice| {
            null.load(slice, MANY, put.clone(), Until::Time, 0)
        });
        let ours_side = side("ours", |slice: &Slice| {
            let done = ours.load(slice, MANY, put.clone(), Until::Time, stored)?;
            stored += done.ops;
            Ok(done)
        });
        self.bench
            .cell(fill, Some(self.up), vec![floor], ours_side)?;
        let listings = [
            ("list-10000", false, KEYS),
            ("list-delimiter", true, FOLDERS),
        ];
        if !listings.iter().any(|(name, ..)| self.bench.wants(name)) {
            return Ok(());
        }
        // Of their own: deleting what was stored too much would leave work in the background, not a store at rest.
        self.bench.say("storing ten thousand objects");
        let prefix = "1024/list/".to_owned();
        let put = Op::Put {
            prefix: prefix.clone(),
            size: KIB,
        };
        self.ours.prepare(put, 0, KEYS)?;
        for (name, delimiter, rows) in listings {
            let op = Op::List {
                prefix: prefix.clone(),
                delimiter,
                rows,
            };
            let ours = &mut *self.ours;
            let listing = side("ours", |slice: &Slice| {
                ours.load(slice, 1, op.clone(), Until::Time, 0)
            });
            self.bench
                .cell(cell(name), Some(self.up), Vec::new(), listing)?;
        }
        Ok(())
    }

    /// Deletions: the objects are stored before each slice, outside its clock.
    fn delete(&mut self) -> Result<()> {
        for connections in [1, MANY] {
            let spec = cell(&format!("delete-x{connections}"));
            let prefix = format!("1024/delete{connections}/");
            let put = Op::Put {
                prefix: prefix.clone(),
                size: KIB,
            };
            let delete = Op::Delete { prefix };
            let (null, ours) = (&mut *self.null, &mut *self.ours);
            let floor = side("server", |slice: &Slice| {
                null.load(slice, connections, delete.clone(), Until::Time, 0)
            });
            let ours_side = side("ours", |slice: &Slice| {
                let count = slice.supply(5000.0, 4000);
                ours.prepare(put.clone(), 0, count)?;
                let until = Until::CountOrTime(count);
                ours.load(slice, connections, delete.clone(), until, 0)
            });
            self.bench
                .cell(spec, Some(self.up), vec![floor], ours_side)?;
        }
        let prefix = "1024/multi/".to_owned();
        let put = Op::Put {
            prefix: prefix.clone(),
            size: KIB,
        };
        let ours = &mut *self.ours;
        let ours_side = side("ours", |slice: &Slice| {
            ours.prepare(put.clone(), 0, PAGE)?;
            let delete = Op::DeleteMany {
                prefix: prefix.clone(),
            };
            ours.load(slice, 1, delete, Until::Count(1), 0)
        });
        self.bench.cell(
            cell("multi-delete-1000"),
            Some(self.up),
            Vec::new(),
            ours_side,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_counted_and_paged() {
        let reply = b"<R><Key>a</Key><Key>b</Key><NextContinuationToken>x&amp;y</NextContinuationToken></R>";
        assert_eq!(occurrences(reply, b"<Key>"), 2);
        assert_eq!(next_token(reply).as_deref(), Some("x&y"));
        assert_eq!(next_token(b"<R></R>"), None);
        assert_eq!(encode("a+/="), "a%2B%2F%3D");
    }

    #[test]
    fn a_key_carries_its_size_for_the_floor_server() {
        assert_eq!(key("1024/list/", 101), "/bench/1024/list/d01/0000101");
    }
}
