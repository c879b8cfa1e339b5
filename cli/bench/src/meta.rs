//! The metadata service below the doors, over both stores, with the messages that clients send; against the store alone
//! doing the least that the operation could cost: one key read, one key written, one range of keys.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use janusfs_env::tasks;
use janusfs_kv::{Durability, Kv, MemKv, RocksKv, RocksKvOptions, Txn as _};
use janusfs_meta::{Meta, MetaConfig};
use janusfs_rpc::{Router, Transport, call};
use janusfs_types::{Credentials, FileKind, InodeId, Layout, TargetId, limits};
use janusfs_wire::{
    Method, ServiceId,
    meta::{Create, Lookup, ReadDir, Rename, RenameMode},
};
use tokio::runtime::Handle;

use crate::{
    chunk::one_target,
    measure::{Bench, Done, Slice, side},
    noise::noise,
    report::{Spec, Unit},
    scratch::Scratch,
};

/// Entries of the directory that is looked up in and listed: one full page.
const ENTRIES: u64 = 1000;
/// Length of a value of the store alone: about that of an inode's record.
const VALUE_BYTES: usize = 120;

const fn spec(name: &'static str) -> Spec {
    Spec {
        name,
        unit: Unit::OpsPerSecond,
        aim: None,
        space_bytes: 128 << 20,
    }
}

/// Every cell of the metadata service.
pub(crate) const CELLS: &[Spec] = &[
    spec("meta-create-rocks"),
    spec("meta-lookup-rocks"),
    spec("meta-list-rocks"),
    spec("meta-rename-rocks"),
    spec("meta-create-mem"),
    spec("meta-lookup-mem"),
    spec("meta-list-mem"),
    spec("meta-rename-mem"),
];

/// Measures the cells that were asked for.
pub(crate) fn measure(bench: &mut Bench, scratch: &Scratch, handle: &Handle) -> Result<()> {
    bench.say("opening the stores");
    let open = |name: &str| {
        RocksKv::open(&scratch.join(name), RocksKvOptions::default())
            .context("cannot open a metadata store")
    };
    let (under, alone) = (open("meta")?, open("kv")?);
    over(bench, handle, "rocks", under, alone)?;
    over(bench, handle, "mem", MemKv::default(), MemKv::default())
}

/// A load on `T`; the number is the first that no slice has used yet.
type Load<T> = fn(&T, &Slice, &mut u64) -> Result<Done>;
/// An operation, its floor and ours.
type Loads<K> = (&'static str, Load<Alone<K>>, Load<Service>);

/// Measures the service over `under` and the store `alone`.
fn over<K: Kv>(bench: &mut Bench, handle: &Handle, store: &str, under: K, alone: K) -> Result<()> {
    let alone = Alone {
        kv: alone,
        handle: handle.clone(),
        value: noise(VALUE_BYTES),
    };
    let service = tasks::block_on(handle, Service::open(handle.clone(), under))?;
    alone.fill()?;
    service.fill()?;
    let loads: [Loads<K>; 4] = [
        ("create", Alone::put, Service::create),
        ("lookup", Alone::get, Service::lookup),
        ("list", Alone::range, Service::list),
        ("rename", Alone::put, Service::rename),
    ];
    for (name, floor, ours) in loads {
        let name = format!("meta-{name}-{store}");
        let spec = CELLS
            .iter()
            .find(|spec| spec.name == name)
            .expect("the cell is in the table");
        // Numbers go on from slice to slice, so that names stay new.
        let (mut at_floor, mut at_ours) = (ENTRIES, ENTRIES);
        let floor = side("store", |slice: &Slice| floor(&alone, slice, &mut at_floor));
        let ours = side("ours", |slice: &Slice| ours(&service, slice, &mut at_ours));
        bench.cell(spec, None, vec![floor], ours)?;
    }
    Ok(())
}

/// A key-value store with nothing over it.
struct Alone<K> {
    kv: K,
    handle: Handle,
    value: Vec<u8>,
}

fn key(number: u64) -> [u8; 16] {
    let mut key = [b'k'; 16];
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

impl<K: Kv> Alone<K> {
    fn set(&self, number: u64) -> Result<()> {
        tasks::block_on(&self.handle, async {
            let mut txn = self.kv.begin();
            txn.set(&key(number), &self.value);
            txn.commit(Durability::Soon).await
        })
        .context("cannot commit")
    }

    fn fill(&self) -> Result<()> {
        (0..ENTRIES).try_for_each(|number| self.set(number))
    }

    fn put(&self, slice: &Slice, next: &mut u64) -> Result<Done> {
        slice.repeat(|_| {
            self.set(*next)?;
            *next += 1;
            Ok(Some(0))
        })
    }

    fn get(&self, slice: &Slice, _next: &mut u64) -> Result<Done> {
        slice.repeat(|done| {
            let mut txn = self.kv.begin();
            let read = tasks::block_on(&self.handle, txn.get(&key(done % ENTRIES)));
            ensure!(read.context("cannot read")?.is_some(), "a key is missing");
            Ok(Some(0))
        })
    }

    fn range(&self, slice: &Slice, _next: &mut u64) -> Result<Done> {
        let limit = u32::try_from(ENTRIES)?;
        let mut done = slice.repeat(|_| {
            let mut txn = self.kv.begin();
            let (start, end) = (key(0), key(ENTRIES));
            let read = tasks::block_on(&self.handle, txn.range(&start, &end, limit));
            let pairs = read.context("cannot read")?.len();
            ensure!(pairs == usize::try_from(ENTRIES)?, "{pairs} pairs");
            Ok(Some(0))
        })?;
        done.ops *= ENTRIES;
        Ok(done)
    }
}

/// The metadata service as its clients see it: encoded messages through the in-process transport.
struct Service {
    router: Router,
    handle: Handle,
    directory: InodeId,
}

impl Service {
    async fn open<K: Kv>(handle: Handle, kv: K) -> Result<Self> {
        let table = one_target(TargetId(1));
        let layout = Layout {
            chunk_size_log2: limits::CHUNK_SIZE_LOG2_DEFAULT,
            chain_table: table.version,
            stripe: 1,
            seed: 0,
        };
        let config = MetaConfig {
            table,
            layout,
            owner: Credentials::default(),
        };
        let meta = Meta::open(Arc::new(kv), config)
            .await
            .context("cannot open the metadata")?;
        let router = Router::new().with(ServiceId::Meta, Arc::new(meta));
        let mut service = Self {
            router,
            handle,
            directory: InodeId::ROOT,
        };
        let made = service
            .send(&new(InodeId::ROOT, "listed", FileKind::Directory))
            .await?;
        service.directory = made.attr.inode;
        Ok(service)
    }

    async fn send<M: Method>(&self, message: &M) -> Result<M::Reply> {
        let transport: &dyn Transport = &self.router;
        let deadline = std::time::Duration::from_millis(limits::META_DEADLINE_MS);
        call(transport, message, deadline)
            .await
            .with_context(|| M::NAME)
    }

    fn ask<M: Method>(&self, message: &M) -> Result<M::Reply> {
        tasks::block_on(&self.handle, self.send(message))
    }

    fn fill(&self) -> Result<()> {
        (0..ENTRIES).try_for_each(|number| {
            let name = number.to_string();
            self.ask(&new(self.directory, &name, FileKind::Regular))
                .map(|_| ())
        })
    }

    fn create(&self, slice: &Slice, next: &mut u64) -> Result<Done> {
        slice.repeat(|_| {
            let name = format!("c{next}");
            *next += 1;
            self.ask(&new(InodeId::ROOT, &name, FileKind::Regular))?;
            Ok(Some(0))
        })
    }

    fn lookup(&self, slice: &Slice, _next: &mut u64) -> Result<Done> {
        slice.repeat(|done| {
            let name = (done % ENTRIES).to_string();
            self.ask(&Lookup {
                parent: self.directory,
                name: name.into(),
            })?;
            Ok(Some(0))
        })
    }

    fn list(&self, slice: &Slice, _next: &mut u64) -> Result<Done> {
        let limit = u32::try_from(ENTRIES)?;
        let mut done = slice.repeat(|_| {
            let page = self.ask(&ReadDir {
                inode: self.directory,
                after: Bytes::new(),
                limit,
            })?;
            let entries = page.entries.len();
            ensure!(entries == usize::try_from(ENTRIES)?, "{entries} entries");
            Ok(Some(0))
        })?;
        done.ops *= ENTRIES;
        Ok(done)
    }

    fn rename(&self, slice: &Slice, next: &mut u64) -> Result<Done> {
        let first = format!("r{next}");
        self.ask(&new(InodeId::ROOT, &first, FileKind::Regular))?;
        let done = slice.repeat(|_| {
            let (from, to) = (format!("r{next}"), format!("r{}", *next + 1));
            self.ask(&Rename {
                parent: InodeId::ROOT,
                name: from.into(),
                new_parent: InodeId::ROOT,
                new_name: to.into(),
                mode: RenameMode::Replace,
            })?;
            *next += 1;
            Ok(Some(0))
        })?;
        // The next slice begins with a name of its own.
        *next += 1;
        Ok(done)
    }
}

fn new(parent: InodeId, name: &str, kind: FileKind) -> Create {
    Create {
        parent,
        name: Bytes::copy_from_slice(name.as_bytes()),
        kind,
        mode: 0o755,
        rdev: 0,
        who: Credentials::default(),
        exclusive: true,
    }
}
