//! The wire form of the vocabulary in `core/types`.

use janusfs_types::{
    Attr, BlobId, ChainId, ChainInfo, ChainTable, ChainVersion, ChunkId, ChunkVersion, ClientId,
    Content, Credentials, DataVersion, Epoch, Extent, FileKind, InodeId, Layout, NodeId, RequestId,
    SessionId, TargetId, TargetInfo, Times,
};

use crate::{DecodeError, Decoder, Encoder, Wire, wire_enum, wire_fields, wire_newtypes};

wire_newtypes!(
    BlobId,
    ChainId,
    ChainVersion,
    ChunkVersion,
    ClientId,
    DataVersion,
    Epoch,
    InodeId,
    NodeId,
    RequestId,
    SessionId,
    TargetId,
);
wire_enum!(FileKind {
    1 => Regular, 2 => Directory, 3 => Symlink, 4 => Fifo, 5 => CharDevice, 6 => BlockDevice, 7 => Socket,
});
wire_fields!(ChunkId { blob, index });
wire_fields!(Times {
    accessed_ns,
    modified_ns,
    changed_ns,
    born_ns
});
wire_fields!(Attr {
    inode,
    kind,
    mode,
    uid,
    gid,
    nlink,
    size,
    rdev,
    times,
    data_version
});
wire_fields!(Credentials { uid, gid });
wire_fields!(Layout {
    chunk_size_log2,
    chain_table,
    stripe,
    seed
});
wire_fields!(Extent {
    file_offset,
    len_bytes,
    blob,
    blob_offset,
    layout
});
wire_fields!(TargetInfo {
    target,
    node,
    address
});
wire_fields!(ChainInfo {
    chain,
    version,
    targets
});
wire_fields!(ChainTable {
    version,
    chains,
    targets
});

impl Wire for Content {
    fn put(&self, out: &mut Encoder) {
        match self {
            Self::Inline(bytes) => {
                1u8.put(out);
                out.put_bytes(bytes);
            }
            Self::Blob { blob, layout } => {
                2u8.put(out);
                blob.put(out);
                layout.put(out);
            }
            Self::Extents(extents) => {
                3u8.put(out);
                extents.put(out);
            }
        }
    }

    fn get(input: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        match u8::get(input)? {
            1 => Ok(Self::Inline(input.take_bytes()?.to_vec())),
            2 => Ok(Self::Blob {
                blob: BlobId::get(input)?,
                layout: Layout::get(input)?,
            }),
            3 => Ok(Self::Extents(Vec::get(input)?)),
            tag => Err(DecodeError::Tag {
                what: "Content",
                tag,
            }),
        }
    }
}
