//! The stored form of chunk rows and of the barrier.
//!
//! Keys: `b` for the barrier; `c`, blob (u64), index (u32), big-endian, for a chunk, so that key order is chunk order.
//! Value of a chunk: encoding number (u8), images, CRC32C of all before it (u32). An image list is the committed
//! image (count 0 or 1), the pending one (0 or 1), the previous ones (count u8). An image: version, epoch (u64), length,
//! checksum (u32), flags (u8: 1 sealed, 2 tagged, 4 patched), client, request (u64, if tagged); if the length is not 0:
//! class (u8), slot (u32) and one u32 for each piece; if patched: a count (u8, at least 1) of patches, each a number (u8),
//! which grows from one to the next, and a slot (u32). All integers big-endian. Encoding 1 is the same without patches.

use std::sync::Arc;

use janusfs_types::{BlobId, ChunkId, ChunkVersion, ClientId, RequestId};

use crate::{
    Tag,
    crc::crc32c,
    image::{Body, Image, Patch, Versions},
    slots::{Placed, SizeClass, Slot},
};

/// The newest encoding of a chunk row, and the one that is written.
pub(crate) const ENCODING: u8 = 2;
/// The oldest encoding that is read.
const ENCODING_MIN: u8 = 1;
const SEALED: u8 = 1;
const TAGGED: u8 = 2;
const PATCHED: u8 = 4;

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
    let tagged = if image.tag.is_some() { TAGGED } else { 0 };
    let patches = image.body.as_ref().map_or(&[][..], |body| &body.patches);
    out.push(sealed | tagged | if patches.is_empty() { 0 } else { PATCHED });
    if let Some(tag) = image.tag {
        out.extend_from_slice(&tag.client.0.to_be_bytes());
        out.extend_from_slice(&tag.request.0.to_be_bytes());
    }
    if let Some(slot) = image.body.as_ref().map(|body| body.slot.slot()) {
        out.push(slot.class.number());
        out.extend_from_slice(&slot.index.to_be_bytes());
        for sum in image.pieces.iter() {
            out.extend_from_slice(&sum.to_be_bytes());
        }
    }
    if !patches.is_empty() {
        out.push(u8::try_from(patches.len()).expect("at most half of 256 stretches are patched"));
        for patch in patches {
            out.push(u8::try_from(patch.number).expect("a class has at most 256 stretches"));
            out.extend_from_slice(&patch.slot.slot().index.to_be_bytes());
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
    let known_flags = match take::<1>(&mut rest)? {
        [ENCODING] => SEALED | TAGGED | PATCHED,
        [ENCODING_MIN] => SEALED | TAGGED,
        [number] if number > ENCODING => return Err(RowError::Newer(number)),
        _ => return Err(RowError::Damaged),
    };
    let committed = take_images(&mut rest, 1, known_flags)?.pop();
    let pending = take_images(&mut rest, 1, known_flags)?.pop();
    let previous = take_images(&mut rest, u8::MAX, known_flags)?;
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

fn take_images(rest: &mut &[u8], most: u8, known_flags: u8) -> Result<Vec<Image<Slot>>, RowError> {
    let [count] = take(rest)?;
    if count > most {
        return Err(RowError::Damaged);
    }
    (0..count).map(|_| take_image(rest, known_flags)).collect()
}

fn take_image(rest: &mut &[u8], known_flags: u8) -> Result<Image<Slot>, RowError> {
    let version = ChunkVersion(take_u64(rest)?);
    let epoch = take_u64(rest)?;
    let len = take_u32(rest)?;
    let crc = take_u32(rest)?;
    let [flags] = take(rest)?;
    if flags & !known_flags != 0 || (flags & PATCHED != 0 && len == 0) {
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
    let mut body = None;
    let mut pieces = Vec::new();
    if len > 0 {
        let [class] = take(rest)?;
        let class = SizeClass::new(class).ok_or(RowError::Damaged)?;
        let index = take_u32(rest)?;
        if len > class.size() {
            return Err(RowError::Damaged);
        }
        for _ in 0..len.div_ceil(class.piece()) {
            pieces.push(take_u32(rest)?);
        }
        let patches = if flags & PATCHED == 0 {
            Arc::new([])
        } else {
            take_patches(rest, class, len)?
        };
        let slot = Slot { class, index };
        body = Some(Body { slot, patches });
    }
    let sealed = flags & SEALED != 0;
    Ok(Image {
        version,
        epoch,
        body,
        len,
        crc,
        sealed,
        tag,
        pieces: pieces.into(),
    })
}

fn take_patches(
    rest: &mut &[u8],
    class: SizeClass,
    len: u32,
) -> Result<Arc<[Patch<Slot>]>, RowError> {
    let class = class.patch().ok_or(RowError::Damaged)?;
    let [count] = take(rest)?;
    let mut patches: Vec<Patch<Slot>> = Vec::with_capacity(count.into());
    for _ in 0..count {
        let number = u32::from(take::<1>(rest)?[0]);
        let index = take_u32(rest)?;
        let grows = patches.last().is_none_or(|last| last.number < number);
        if !grows || number >= len.div_ceil(class.size()) {
            return Err(RowError::Damaged);
        }
        let slot = Slot { class, index };
        patches.push(Patch { number, slot });
    }
    if patches.is_empty() {
        return Err(RowError::Damaged);
    }
    Ok(patches.into())
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
                let class = SizeClass::for_len(u64::from(len)).filter(|_| len > 0);
                let count = class.map_or(0, |class| len.div_ceil(class.piece()));
                let body = class.map(|class| Body {
                    slot: Slot { class, index },
                    patches: patches(class, len, index),
                });
                Image {
                    version: ChunkVersion(version),
                    epoch,
                    body,
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

    /// Every so many stretches patched, or none.
    fn patches(class: SizeClass, len: u32, seed: u32) -> Arc<[Patch<Slot>]> {
        let Some(class) = class.patch().filter(|_| !seed.is_multiple_of(3)) else {
            return Arc::new([]);
        };
        (seed % 5..len.div_ceil(class.size()))
            .step_by(2 + seed as usize % 7)
            .map(|number| Patch {
                number,
                slot: Slot {
                    class,
                    index: seed ^ number,
                },
            })
            .collect()
    }

    fn with_encoding(number: u8, mut row: Vec<u8>) -> Vec<u8> {
        row[0] = number;
        let body = row.len() - 4;
        let crc = crc32c(&row[..body]);
        row[body..].copy_from_slice(&crc.to_be_bytes());
        row
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
        fn a_row_of_the_first_encoding_is_read_and_knows_no_patches(row in row()) {
            let patched = row
                .images()
                .any(|image| image.body.as_ref().is_some_and(|body| !body.patches.is_empty()));
            let expected = if patched { Err(RowError::Damaged) } else { Ok(row.clone()) };
            prop_assert_eq!(decode(&with_encoding(ENCODING_MIN, encode(&row))), expected);
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
    fn patches_that_cannot_be_are_damage() {
        let patched = |size: u32, numbers: &[u32]| {
            let class = SizeClass::for_len(u64::from(size)).unwrap();
            let patch = |number: &u32| Patch {
                number: *number,
                slot: Slot {
                    class: SizeClass::new(0).unwrap(),
                    index: 9,
                },
            };
            let image = Image {
                version: ChunkVersion(3),
                epoch: 4,
                body: Some(Body {
                    slot: Slot { class, index: 1 },
                    patches: numbers.iter().map(patch).collect(),
                }),
                len: size - 70_000 % size,
                crc: 5,
                sealed: false,
                tag: None,
                pieces: vec![7; (size - 70_000 % size).div_ceil(class.piece()) as usize].into(),
            };
            decode(&encode(&StoredRow {
                committed: Some(image),
                ..Versions::default()
            }))
        };
        assert!(patched(512 << 10, &[0, 2, 6]).is_ok());
        assert_eq!(
            patched(512 << 10, &[7]),
            Err(RowError::Damaged),
            "past the end"
        );
        assert_eq!(
            patched(512 << 10, &[2, 2]),
            Err(RowError::Damaged),
            "twice the same"
        );
        assert_eq!(
            patched(64 << 10, &[0]),
            Err(RowError::Damaged),
            "a class without patches"
        );
    }

    #[test]
    fn a_newer_encoding_is_told_apart_from_damage() {
        let mut bytes = vec![ENCODING + 1, 0, 0, 0];
        let crc = crc32c(&bytes);
        bytes.extend(crc.to_be_bytes());
        assert_eq!(decode(&bytes), Err(RowError::Newer(ENCODING + 1)));
    }
}
