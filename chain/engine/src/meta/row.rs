//! The stored form of chunk rows and of the barrier.
//!
//! Keys: `b` for the barrier; `c`, blob (u64), index (u32), big-endian, for a chunk, so that key order is chunk order.
//! Value of a chunk: encoding number (u8), images, CRC32C of all before it (u32). An image list is the committed
//! image (count 0 or 1), the pending one (0 or 1), the previous ones (count u8). An image: version, epoch (u64), length,
//! checksum (u32), flags (u8: 1 sealed, 2 tagged), client, request (u64, if tagged); if the length is not 0: class
//! (u8), slot (u32) and one u32 for each piece. All integers big-endian.

use janusfs_types::{BlobId, ChunkId, ChunkVersion, ClientId, RequestId};

use crate::{
    Tag,
    crc::crc32c,
    image::{Image, Versions},
    slots::{Placed, SizeClass, Slot},
};

/// The newest encoding of a chunk row.
const ENCODING: u8 = 1;
const SEALED: u8 = 1;
const TAGGED: u8 = 2;

/// Key of the barrier: the epoch up to which data and rows are on stable storage.
pub(crate) const BARRIER_KEY: &[u8] = b"b";

/// Why bytes are no row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RowError {
    /// Written by a newer program.
    Newer(u8),
    /// Damaged.
    Damaged,
}

/// A row as it is stored.
pub(crate) type StoredRow = Versions<Image<Slot>>;

/// Returns a chunk's key.
pub(crate) fn chunk_key(chunk: ChunkId) -> [u8; 13] {
    let mut key = [b'c'; 13];
    key[1..9].copy_from_slice(&chunk.blob.0.to_be_bytes());
    key[9..].copy_from_slice(&chunk.index.to_be_bytes());
    key
}

/// Reads a chunk's key back.
pub(crate) fn parse_chunk_key(key: &[u8]) -> Option<ChunkId> {
    let (&[prefix], rest) = key.split_first_chunk()?;
    let (blob, index) = rest.split_first_chunk()?;
    let index = u32::from_be_bytes(index.try_into().ok()?);
    (prefix == b'c').then_some(ChunkId {
        blob: BlobId(u64::from_be_bytes(*blob)),
        index,
    })
}

/// Encodes the barrier.
pub(crate) fn encode_barrier(epoch: u64) -> [u8; 8] {
    epoch.to_be_bytes()
}

/// Decodes the barrier.
pub(crate) fn decode_barrier(value: &[u8]) -> Result<u64, RowError> {
    value
        .try_into()
        .map(u64::from_be_bytes)
        .map_err(|_| RowError::Damaged)
}

/// Encodes a chunk's versions.
pub(crate) fn encode<S: Placed, I: AsRef<Image<S>>>(row: &Versions<I>) -> Vec<u8> {
    let mut out = Vec::with_capacity(2560);
    out.push(ENCODING);
    put_images(&mut out, row.committed.iter());
    put_images(&mut out, row.pending.iter());
    put_images(&mut out, row.previous.iter());
    let crc = crc32c(&out);
    out.extend_from_slice(&crc.to_be_bytes());
    out
}

fn put_images<'a, S: Placed + 'a, I: AsRef<Image<S>> + 'a>(
    out: &mut Vec<u8>,
    images: impl ExactSizeIterator<Item = &'a I>,
) {
    out.push(u8::try_from(images.len()).expect("a chunk has a handful of versions"));
    for image in images {
        put_image(out, image.as_ref());
    }
}

fn put_image<S: Placed>(out: &mut Vec<u8>, image: &Image<S>) {
    out.extend_from_slice(&image.version.0.to_be_bytes());
    out.extend_from_slice(&image.epoch.to_be_bytes());
    out.extend_from_slice(&image.len.to_be_bytes());
    out.extend_from_slice(&image.crc.to_be_bytes());
    let sealed = if image.sealed { SEALED } else { 0 };
    out.push(sealed | if image.tag.is_some() { TAGGED } else { 0 });
    if let Some(tag) = image.tag {
        out.extend_from_slice(&tag.client.0.to_be_bytes());
        out.extend_from_slice(&tag.request.0.to_be_bytes());
    }
    if let Some(slot) = image.slot.as_ref().map(Placed::slot) {
        out.push(slot.class.number());
        out.extend_from_slice(&slot.index.to_be_bytes());
        for sum in image.pieces.iter() {
            out.extend_from_slice(&sum.to_be_bytes());
        }
    }
}

/// Decodes a chunk's versions.
pub(crate) fn decode(value: &[u8]) -> Result<StoredRow, RowError> {
    let (body, crc) = value.split_last_chunk().ok_or(RowError::Damaged)?;
    if crc32c(body) != u32::from_be_bytes(*crc) {
        return Err(RowError::Damaged);
    }
    let mut rest = body;
    match take::<1>(&mut rest)? {
        [ENCODING] => {}
        [number] if number > ENCODING => return Err(RowError::Newer(number)),
        _ => return Err(RowError::Damaged),
    }
    let committed = take_images(&mut rest, 1)?.pop();
    let pending = take_images(&mut rest, 1)?.pop();
    let previous = take_images(&mut rest, u8::MAX)?;
    if rest.is_empty() {
        Ok(Versions {
            committed,
            pending,
            previous,
        })
    } else {
        Err(RowError::Damaged)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], RowError> {
    let (head, tail) = rest.split_first_chunk().ok_or(RowError::Damaged)?;
    *rest = tail;
    Ok(*head)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, RowError> {
    take(rest).map(u32::from_be_bytes)
}

fn take_u64(rest: &mut &[u8]) -> Result<u64, RowError> {
    take(rest).map(u64::from_be_bytes)
}

fn take_images(rest: &mut &[u8], most: u8) -> Result<Vec<Image<Slot>>, RowError> {
    let [count] = take(rest)?;
    if count > most {
        return Err(RowError::Damaged);
    }
    (0..count).map(|_| take_image(rest)).collect()
}

fn take_image(rest: &mut &[u8]) -> Result<Image<Slot>, RowError> {
    let version = ChunkVersion(take_u64(rest)?);
    let epoch = take_u64(rest)?;
    let len = take_u32(rest)?;
    let crc = take_u32(rest)?;
    let [flags] = take(rest)?;
    if flags & !(SEALED | TAGGED) != 0 {
        return Err(RowError::Damaged);
    }
    let tag = if flags & TAGGED == 0 {
        None
    } else {
        Some(Tag {
            client: ClientId(take_u64(rest)?),
            request: RequestId(take_u64(rest)?),
        })
    };
    let mut slot = None;
    let mut pieces = Vec::new();
    if len > 0 {
        let [class] = take(rest)?;
        let class = SizeClass::new(class).ok_or(RowError::Damaged)?;
        slot = Some(Slot {
            class,
            index: take_u32(rest)?,
        });
        if len > class.size() {
            return Err(RowError::Damaged);
        }
        for _ in 0..len.div_ceil(class.piece()) {
            pieces.push(take_u32(rest)?);
        }
    }
    let sealed = flags & SEALED != 0;
    Ok(Image {
        version,
        epoch,
        slot,
        len,
        crc,
        sealed,
        tag,
        pieces: pieces.into(),
    })
}

impl<S> AsRef<Image<S>> for Image<S> {
    fn as_ref(&self) -> &Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image() -> impl Strategy<Value = Image<Slot>> {
        let len = prop_oneof![Just(0u32), 1u32..=1 << 16, 1u32..=1 << 26];
        let tag = proptest::option::of((any::<u64>(), any::<u64>()));
        (
            any::<u64>(),
            any::<u64>(),
            len,
            any::<u32>(),
            any::<bool>(),
            tag,
            any::<u32>(),
        )
            .prop_map(|(version, epoch, len, crc, sealed, tag, index)| {
                let slot = SizeClass::for_len(u64::from(len))
                    .filter(|_| len > 0)
                    .map(|class| Slot { class, index });
                let count = slot.map_or(0, |slot| len.div_ceil(slot.class.piece()));
                Image {
                    version: ChunkVersion(version),
                    epoch,
                    slot,
                    len,
                    crc,
                    sealed,
                    tag: tag.map(|(client, request)| Tag {
                        client: ClientId(client),
                        request: RequestId(request),
                    }),
                    pieces: (0..count).map(|piece| piece ^ crc).collect(),
                }
            })
    }

    fn row() -> impl Strategy<Value = StoredRow> {
        let option = || proptest::option::of(image());
        (option(), option(), proptest::collection::vec(image(), 0..3)).prop_map(
            |(committed, pending, previous)| Versions {
                committed,
                pending,
                previous,
            },
        )
    }

    proptest! {
        #[test]
        fn a_row_survives_encoding(row in row()) {
            prop_assert_eq!(decode(&encode(&row)), Ok(row));
        }

        #[test]
        fn a_flipped_bit_is_noticed(row in row(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = encode(&row);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = vec![ENCODING];
            bytes.extend(body);
            let crc = crc32c(&bytes);
            bytes.extend(crc.to_be_bytes());
            let _ = decode(&bytes);
        }

        #[test]
        fn key_order_is_chunk_order(a in any::<(u64, u32)>(), b in any::<(u64, u32)>()) {
            let chunk = |(blob, index)| ChunkId { blob: BlobId(blob), index };
            let (a, b) = (chunk(a), chunk(b));
            prop_assert_eq!(chunk_key(a).cmp(&chunk_key(b)), a.cmp(&b));
            prop_assert_eq!(parse_chunk_key(&chunk_key(a)), Some(a));
        }
    }

    #[test]
    fn a_newer_encoding_is_told_apart_from_damage() {
        let mut bytes = vec![ENCODING + 1, 0, 0, 0];
        let crc = crc32c(&bytes);
        bytes.extend(crc.to_be_bytes());
        assert_eq!(decode(&bytes), Err(RowError::Newer(ENCODING + 1)));
    }
}
