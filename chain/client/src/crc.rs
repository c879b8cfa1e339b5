//! CRC32C of scatter lists.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

/// Returns the CRC32C of the pieces in order, as if they were one.
pub(crate) fn crc32c(pieces: &[Bytes]) -> u32 {
    if let [piece] = pieces {
        return crc_fast::crc32_iscsi(piece);
    }
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    for piece in pieces {
        digest.update(piece);
    }
    u32::try_from(digest.finalize()).expect("a CRC of 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_count_as_one_run() {
        // Check value of CRC-32/ISCSI, RFC 3720 appendix B.4's polynomial.
        assert_eq!(crc32c(&[Bytes::from_static(b"123456789")]), 0xe306_9283);
        let pieces = [b"1234" as &[u8], b"", b"56789"].map(Bytes::from_static);
        assert_eq!(crc32c(&pieces), 0xe306_9283);
        assert_eq!(crc32c(&[]), 0);
    }
}
