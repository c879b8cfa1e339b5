//! One writer: operations at both doors on keys of its own, noted before they begin and when they are acknowledged.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context as _;
use aws_sdk_s3::{
    Client,
    error::{ProvideErrorMetadata as _, SdkError},
    primitives::ByteStream,
    types::{CompletedMultipartUpload, CompletedPart},
};
use tokio::runtime::Handle;

use super::{
    BUCKET,
    history::{Ack, History},
    now,
    value::{Value, patch},
};
use crate::Seeded;

/// How names of temporary files end.
pub(super) const TEMPORARY: &str = ".tmp";
/// Keys of a writer.
const KEYS: u64 = 12;
/// Lengths of values: empty, inline, around the inline limit, within a chunk, more than one chunk.
const LENGTHS: [u64; 10] = [
    0, 10, 3000, 4096, 5000, 70_000, 70_001, 300_000, 1_500_000, 5_000_000,
];
/// The least that S3 takes for a part that is not the last.
const PART_BYTES: u64 = 5 << 20;

/// A writer during one round.
pub(super) struct Writer<'a> {
    pub(super) number: u64,
    pub(super) keys: &'a mut BTreeMap<String, History>,
    pub(super) s3: &'a Client,
    pub(super) runtime: &'a Handle,
    pub(super) directory: &'a Path,
    pub(super) chance: Seeded,
    /// Operations acknowledged, by all writers.
    pub(super) acknowledged: &'a AtomicU64,
}

impl Writer<'_> {
    /// Works until an operation fails, and returns why.
    pub(super) fn run_until_error(&mut self) -> anyhow::Error {
        loop {
            let key = self.pick();
            let operation = self.chance.below(16);
            let done = match operation {
                0..=2 => self.replace(&key),
                3 | 4 => self.rewrite(&key),
                5 | 6 => self.overwrite(&key),
                7 | 8 => self.append(&key),
                9 => self.shorten(&key),
                10 => self.unlink(&key),
                11 | 12 => self.put(&key),
                13 => self.copy(&key),
                14 => self.delete(&key),
                _ => self.multipart(&key),
            };
            if let Err(error) = done {
                return error.context(format!("operation {operation} on {key}"));
            }
        }
    }

    fn pick(&mut self) -> String {
        format!("w{}-{}", self.number, self.chance.below(KEYS))
    }

    fn length(&mut self) -> u64 {
        let choice = self.chance.below(LENGTHS.len() as u64);
        LENGTHS[usize::try_from(choice).expect("an index")]
    }

    fn value(&mut self) -> Value {
        let len = self.length();
        Value::new(self.write_number(), len)
    }

    /// Returns a number that no other write has, and no zero byte that could pass for a hole at its ends.
    fn write_number(&mut self) -> u64 {
        self.chance.number() | 1
    }

    fn history(&mut self, key: &str) -> &mut History {
        self.keys.entry(key.to_owned()).or_default()
    }

    fn acknowledge(&mut self, key: &str, ack: Ack) {
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        self.history(key).acknowledge(ack);
    }

    fn path(&self, key: &str) -> PathBuf {
        self.directory.join(key)
    }

    /// Returns the current value if there is one with bytes; else gives the key one.
    fn existing(&mut self, key: &str) -> anyhow::Result<Value> {
        match self.history(key).current() {
            Some(value) if value.len() > 0 => Ok(value.clone()),
            _ => {
                let value = Value::new(self.write_number(), 70_000);
                self.put_value(key, &value)?;
                Ok(value)
            }
        }
    }

    /// Ends a change through an open file: with `fsync` one time in two, else by closing it.
    fn finish(&mut self, key: &str, file: File) -> anyhow::Result<()> {
        let stable = self.chance.one_in(2);
        if stable {
            file.sync_all().context("fsync")?;
            self.acknowledge(key, Ack::Stable);
        }
        close(file)?;
        if !stable {
            self.acknowledge(key, Ack::Visible(now()));
        }
        Ok(())
    }

    /// Makes a change of names stable, one time in three: through the directory, or through the file.
    fn harden_name(&mut self, key: &str, file: bool) -> anyhow::Result<()> {
        let path = match self.chance.below(6) {
            0 => self.directory.to_owned(),
            1 if file => self.path(key),
            _ => return Ok(()),
        };
        File::open(&path)?.sync_all().context("fsync of a name")?;
        self.acknowledge(key, Ack::Stable);
        Ok(())
    }

    /// Writes a temporary file and renames it over the key.
    fn replace(&mut self, key: &str) -> anyhow::Result<()> {
        let value = self.value();
        let temporary = self.path(&format!("{key}{TEMPORARY}"));
        let mut file = File::create(&temporary)?;
        file.write_all(&value.bytes())?;
        if self.chance.one_in(2) {
            file.sync_all()?;
        }
        close(file)?;
        self.history(key).replace(Some(value));
        fs::rename(&temporary, self.path(key))?;
        self.acknowledge(key, Ack::Visible(now()));
        self.harden_name(key, true)
    }

    /// Creates the file, or truncates it, and writes it.
    fn rewrite(&mut self, key: &str) -> anyhow::Result<()> {
        let value = self.value();
        self.history(key).replace(Some(Value::default()));
        let mut file = File::create(self.path(key))?;
        self.acknowledge(key, Ack::Visible(now()));
        self.history(key).change(value.clone());
        file.write_all(&value.bytes())?;
        self.finish(key, file)
    }

    fn overwrite(&mut self, key: &str) -> anyhow::Result<()> {
        let old = self.existing(key)?;
        let offset = self.chance.below(old.len());
        let len = 1 + self.chance.below(old.len() - offset);
        let write = self.write_number();
        let file = OpenOptions::new().write(true).open(self.path(key))?;
        self.history(key).change(old.overwrite(write, offset, len));
        file.write_all_at(&patch(write, offset, len), offset)?;
        self.finish(key, file)
    }

    fn append(&mut self, key: &str) -> anyhow::Result<()> {
        let old = self.existing(key)?;
        let (write, len) = (self.write_number(), 1 + self.length() / 4);
        let mut file = OpenOptions::new().append(true).open(self.path(key))?;
        self.history(key).change(old.append(write, len));
        file.write_all(&patch(write, old.len(), len))?;
        self.finish(key, file)
    }

    fn shorten(&mut self, key: &str) -> anyhow::Result<()> {
        let old = self.existing(key)?;
        let len = 1 + self.chance.below(old.len());
        let file = OpenOptions::new().write(true).open(self.path(key))?;
        self.history(key).change(old.truncate(len));
        file.set_len(len)?;
        self.finish(key, file)
    }

    fn unlink(&mut self, key: &str) -> anyhow::Result<()> {
        if self.history(key).current().is_none() {
            return Ok(());
        }
        self.history(key).replace(None);
        fs::remove_file(self.path(key))?;
        self.acknowledge(key, Ack::Visible(now()));
        self.harden_name(key, false)
    }

    fn put(&mut self, key: &str) -> anyhow::Result<()> {
        let value = self.value();
        self.put_value(key, &value)
    }

    fn put_value(&mut self, key: &str, value: &Value) -> anyhow::Result<()> {
        self.history(key).replace(Some(value.clone()));
        let body = ByteStream::from(value.bytes());
        let put = self.s3.put_object().bucket(BUCKET).key(key).body(body);
        self.runtime.block_on(put.send())?;
        self.acknowledge(key, Ack::Stable);
        Ok(())
    }

    /// Copies another key's value: its bytes, too, must be stable then, whoever wrote them.
    fn copy(&mut self, key: &str) -> anyhow::Result<()> {
        let from = self.pick();
        if from == key {
            return Ok(());
        }
        let value = self.existing(&from)?;
        self.history(key).replace(Some(value));
        let source = format!("{BUCKET}/{from}");
        let copy = self
            .s3
            .copy_object()
            .bucket(BUCKET)
            .key(key)
            .copy_source(source);
        match self.runtime.block_on(copy.send()) {
            Ok(_) => self.acknowledge(key, Ack::Stable),
            // The kernel tells the node of a closed file a little later, and a file that is open for writing is not shared.
            Err(SdkError::ServiceError(error)) if error.err().code() == Some("NotImplemented") => {
                self.history(key).withdraw();
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn delete(&mut self, key: &str) -> anyhow::Result<()> {
        self.history(key).replace(None);
        let delete = self.s3.delete_object().bucket(BUCKET).key(key);
        self.runtime.block_on(delete.send())?;
        self.acknowledge(key, Ack::Stable);
        Ok(())
    }

    fn multipart(&mut self, key: &str) -> anyhow::Result<()> {
        let len = PART_BYTES + 1 + self.length() / 4;
        let value = Value::new(self.write_number(), len);
        let bytes = value.bytes();
        let (first, second) = bytes.split_at(usize::try_from(PART_BYTES).expect("it fits"));
        let s3 = self.s3;
        let (upload, parts) = self.runtime.block_on(async {
            let created = s3
                .create_multipart_upload()
                .bucket(BUCKET)
                .key(key)
                .send()
                .await?;
            let upload = created.upload_id().context("an upload id")?.to_owned();
            let mut parts = Vec::new();
            for (number, part) in (1..).zip([first, second]) {
                let request = s3
                    .upload_part()
                    .bucket(BUCKET)
                    .key(key)
                    .upload_id(&upload)
                    .part_number(number);
                let sent = request.body(ByteStream::from(part.to_vec())).send().await?;
                let part = CompletedPart::builder().part_number(number);
                parts.push(part.set_e_tag(sent.e_tag().map(str::to_owned)).build());
            }
            anyhow::Ok((upload, parts))
        })?;
        self.history(key).replace(Some(value));
        let parts = CompletedMultipartUpload::builder()
            .set_parts(Some(parts))
            .build();
        let complete = s3
            .complete_multipart_upload()
            .bucket(BUCKET)
            .key(key)
            .upload_id(upload);
        self.runtime
            .block_on(complete.multipart_upload(parts).send())?;
        self.acknowledge(key, Ack::Stable);
        Ok(())
    }
}

/// Closes a file and hears of errors, which dropping it would not tell.
fn close(file: File) -> anyhow::Result<()> {
    nix::unistd::close(file).context("close")
}
