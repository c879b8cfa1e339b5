//! A disk in memory that forgets and tears what was not synced, and loses power after a given number of writes.
//!
//! After a power cut each sector holds its stable content or any one it was given since; a file may have lost its
//! growth. Sectors themselves are atomic, as disks promise.
#![allow(clippy::cast_possible_truncation, reason = "test sizes are small")]

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::{Disk, DiskFile, Space};

const SECTOR: u64 = 512;

/// A seeded generator for tests (SplitMix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below
    }
}

/// The supply that a simulated disk and its metadata store share.
pub(crate) struct Power(AtomicU64);

impl Power {
    pub(crate) fn endless() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(u64::MAX)))
    }

    /// Lets `count` more writes and syncs through.
    pub(crate) fn set(&self, count: u64) {
        self.0.store(count, Ordering::SeqCst);
    }

    /// Uses up one step; an error when the power is gone.
    pub(crate) fn spend(&self) -> io::Result<()> {
        let less = |left: u64| match left {
            0 => None,
            u64::MAX => Some(left),
            _ => Some(left - 1),
        };
        self.0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
            .map_err(|_| io::Error::other("no power"))?;
        Ok(())
    }
}

#[derive(Default)]
struct FileState {
    stable: BTreeMap<u64, [u8; SECTOR as usize]>,
    /// Everything a sector was given since the last sync, newest last.
    unsynced: BTreeMap<u64, Vec<[u8; SECTOR as usize]>>,
    stable_len: u64,
    len: u64,
}

impl FileState {
    fn sector(&self, number: u64) -> [u8; SECTOR as usize] {
        let newest = self
            .unsynced
            .get(&number)
            .and_then(|versions| versions.last());
        newest
            .or(self.stable.get(&number))
            .copied()
            .unwrap_or([0; SECTOR as usize])
    }

    fn read(&self, buf: &mut [u8], offset: u64) -> usize {
        let count = self.len.saturating_sub(offset).min(buf.len() as u64);
        let mut at = offset;
        while at < offset + count {
            let end = ((at / SECTOR + 1) * SECTOR).min(offset + count);
            let sector = self.sector(at / SECTOR);
            let base = at - at % SECTOR;
            buf[(at - offset) as usize..(end - offset) as usize]
                .copy_from_slice(&sector[(at - base) as usize..(end - base) as usize]);
            at = end;
        }
        count as usize
    }

    fn write(&mut self, buf: &[u8], offset: u64) {
        let until = offset + buf.len() as u64;
        let mut at = offset;
        while at < until {
            let end = ((at / SECTOR + 1) * SECTOR).min(until);
            let mut sector = self.sector(at / SECTOR);
            let base = at - at % SECTOR;
            sector[(at - base) as usize..(end - base) as usize]
                .copy_from_slice(&buf[(at - offset) as usize..(end - offset) as usize]);
            self.unsynced.entry(at / SECTOR).or_default().push(sector);
            at = end;
        }
        self.len = self.len.max(until);
    }

    fn sync(&mut self) {
        for (number, versions) in std::mem::take(&mut self.unsynced) {
            self.stable.insert(number, *versions.last().unwrap());
        }
        self.stable_len = self.len;
    }

    fn power_cut(&mut self, dice: &mut Dice) {
        // From "nothing arrived" to "all but a few sectors arrived".
        let keep_percent = [0, 50, 97, 100][dice.roll(4) as usize];
        for (number, versions) in std::mem::take(&mut self.unsynced) {
            if dice.roll(100) < keep_percent {
                let newest = versions.len() as u64 - 1;
                let which = newest - dice.roll(2).min(newest) * dice.roll(newest + 1);
                self.stable.insert(number, versions[which as usize]);
            }
        }
        if dice.roll(100) < keep_percent {
            self.stable_len = self.len;
        }
        self.len = self.stable_len;
    }
}

/// A simulated disk; clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk {
    files: Arc<Mutex<BTreeMap<String, Arc<Mutex<FileState>>>>>,
    power: Arc<Power>,
    pub(crate) free_bytes: Arc<AtomicU64>,
}

impl SimDisk {
    pub(crate) fn new(power: Arc<Power>) -> Self {
        Self {
            files: Arc::default(),
            power,
            free_bytes: Arc::new(AtomicU64::new(1 << 40)),
        }
    }

    /// Loses what was not synced, or some of it.
    pub(crate) fn power_cut(&self, seed: u64) {
        let mut dice = Dice(seed);
        for file in self.files.lock().values() {
            file.lock().power_cut(&mut dice);
        }
    }

    /// Flips one bit that is stored.
    pub(crate) fn flip_bit(&self, name: &str, offset: u64) {
        let file = Arc::clone(&self.files.lock()[name]);
        let mut byte = [0];
        file.lock().read(&mut byte, offset);
        byte[0] ^= 4;
        file.lock().write(&byte, offset);
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.power.spend()?;
        let file = Arc::clone(self.files.lock().entry(name.to_owned()).or_default());
        Ok(Box::new(SimFile {
            file,
            power: Arc::clone(&self.power),
        }))
    }

    fn space(&self) -> io::Result<Space> {
        let free_bytes = self.free_bytes.load(Ordering::SeqCst);
        Ok(Space {
            capacity_bytes: 1 << 40,
            free_bytes,
        })
    }
}

struct SimFile {
    file: Arc<Mutex<FileState>>,
    power: Arc<Power>,
}

impl DiskFile for SimFile {
    fn pread(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.file.lock().read(buf, offset))
    }

    fn pread_cached(&self, buf: &mut [u8], offset: u64) -> io::Result<bool> {
        // Every other sector is "not in memory", so that callers meet both answers.
        Ok((offset / SECTOR).is_multiple_of(2) && self.pread(buf, offset)? == buf.len())
    }

    fn pwrite(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let power = self.power.spend();
        let arrived = if power.is_ok() {
            buf
        } else {
            &buf[..buf.len() / 2]
        };
        self.file.lock().write(arrived, offset);
        power
    }

    fn sync_data(&self) -> io::Result<()> {
        // Lets other threads write while a barrier is half done.
        (0..20).for_each(|_| std::thread::yield_now());
        self.power.spend()?;
        self.file.lock().sync();
        (0..20).for_each(|_| std::thread::yield_now());
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut file = self.file.lock();
        let end = (offset + len).min(file.len);
        let sectors: Vec<u64> = (offset / SECTOR..end.div_ceil(SECTOR)).collect();
        for number in sectors {
            if file.sector(number) != [0; SECTOR as usize] {
                file.unsynced
                    .entry(number)
                    .or_default()
                    .push([0; SECTOR as usize]);
            }
        }
        Ok(())
    }
}
