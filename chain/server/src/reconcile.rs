//! Makes the replicas of a chain equal after a restart of all of them.
//!
//! What is committed anywhere was committed at the tail and may have been acknowledged, and a power cut may have taken
//! it from some replicas: the highest committed version of each chunk wins. A staged version that no replica committed
//! was never acknowledged and goes. One walk over the rows in chunk order; bytes are touched only where rows differ.

use std::collections::VecDeque;

use janusfs_chain_engine::{ChunkInfo, Engine, EngineError, ReadMode};
use janusfs_types::{ChunkId, ChunkVersion};

use crate::limits::PAGE_MAX;

/// Rows of one engine in chunk order, a page at a time.
struct Rows<'a> {
    engine: &'a Engine,
    page: VecDeque<ChunkInfo>,
    after: Option<ChunkId>,
    at_end: bool,
}

impl<'a> Rows<'a> {
    fn new(engine: &'a Engine) -> Self {
        Self {
            engine,
            page: VecDeque::new(),
            after: None,
            at_end: false,
        }
    }

    fn peek(&mut self) -> Result<Option<ChunkInfo>, EngineError> {
        if self.page.is_empty() && !self.at_end {
            self.page = self.engine.list(self.after, PAGE_MAX)?.into();
            self.after = self.page.back().map(|row| row.chunk).or(self.after);
            self.at_end = self.page.is_empty();
        }
        Ok(self.page.front().copied())
    }
}

/// Equalises `engines`, the replicas of one chain in chain order. `whole_chain`: no replica is elsewhere, so pending
/// versions can be dropped. Returns the number of chunk copies made.
pub(crate) fn reconcile(engines: &[&Engine], whole_chain: bool) -> Result<u64, EngineError> {
    let mut rows: Vec<Rows<'_>> = engines.iter().map(|engine| Rows::new(engine)).collect();
    let mut copies = 0;
    loop {
        let mut heads = Vec::with_capacity(rows.len());
        for walk in &mut rows {
            heads.push(walk.peek()?);
        }
        let Some(chunk) = heads.iter().flatten().map(|row| row.chunk).min() else {
            return Ok(copies);
        };
        let mut found = Vec::with_capacity(rows.len());
        for (walk, head) in rows.iter_mut().zip(heads) {
            let row = head.filter(|row| row.chunk == chunk);
            if row.is_some() {
                walk.page.pop_front();
            }
            found.push(row);
        }
        copies += equalise(engines, chunk, &found)?;
        if whole_chain {
            for (engine, row) in engines.iter().zip(&found) {
                if row.is_some_and(|row| row.pending.is_some()) {
                    engine.discard_pending(chunk)?;
                }
            }
        }
    }
}

fn equalise(
    engines: &[&Engine],
    chunk: ChunkId,
    rows: &[Option<ChunkInfo>],
) -> Result<u64, EngineError> {
    let committed = |row: &Option<ChunkInfo>| {
        row.filter(|row| row.committed > ChunkVersion(0))
            .map(|row| (row.committed, row.crc))
    };
    let Some(newest) = rows
        .iter()
        .filter_map(committed)
        .map(|(version, _)| version)
        .max()
    else {
        return Ok(0);
    };
    let first = committed(&rows[0]);
    if rows.iter().all(|row| committed(row) == first) {
        return Ok(0);
    }
    for (engine, row) in engines.iter().zip(rows) {
        let Some(row) = row.filter(|row| row.committed == newest) else {
            continue;
        };
        let source = match engine.read(chunk, 0, row.len_bytes, ReadMode::Blocking) {
            Ok(Some(source)) => source,
            Ok(None) | Err(EngineError::Corrupt { .. }) => continue,
            Err(error) => return Err(error),
        };
        let mut copies = 0;
        for (other, held) in engines.iter().zip(rows) {
            if committed(held) != Some((newest, row.crc)) {
                other.replace(
                    chunk,
                    newest,
                    std::slice::from_ref(&source.data),
                    row.crc,
                    row.last,
                )?;
                copies += 1;
            }
        }
        return Ok(copies);
    }
    // Every newest copy is damaged: nothing may take its place silently. Reads answer with the damage.
    tracing::error!(%chunk, version = %newest, "no good copy of the newest version");
    Ok(0)
}
