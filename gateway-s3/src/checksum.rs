//! Body digests: what a client may give, what is computed and stored, and how parts' checksums make an object's.
//!
//! Invariant: what is stored is what was computed, never what a client claims. Absent: when and where bytes are hashed
//! (`hashing`); SHA-512, MD5 and xxHash checksums (refused).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use crc_fast::{CrcAlgorithm, checksum_combine};
use http::HeaderMap;
use janusfs_wire::meta::Pairs;
use s3s::{
    S3Error, S3ErrorCode, S3Result,
    crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Sha1, Sha256},
    s3_error,
};

use crate::{error::not_implemented, md5::Md5};

/// The stored name of the checksum over a whole object.
pub(crate) const FULL_OBJECT: &str = "FULL_OBJECT";
/// The stored name of the checksum over the parts' checksums.
pub(crate) const COMPOSITE: &str = "COMPOSITE";

/// A checksum algorithm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Algorithm {
    Crc32,
    Crc32c,
    Crc64Nvme,
    Sha1,
    Sha256,
}

impl Algorithm {
    pub(crate) const ALL: [Self; 5] = [
        Self::Crc32,
        Self::Crc32c,
        Self::Crc64Nvme,
        Self::Sha1,
        Self::Sha256,
    ];

    /// Returns the name under which a checksum is stored.
    pub(crate) fn stored(self) -> &'static str {
        match self {
            Self::Crc32 => "crc32",
            Self::Crc32c => "crc32c",
            Self::Crc64Nvme => "crc64nvme",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }

    /// Returns the name in S3's API.
    pub(crate) fn api(self) -> String {
        self.stored().to_ascii_uppercase()
    }

    /// Reads a stored name, or the API's.
    pub(crate) fn parse(name: &str) -> S3Result<Self> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.stored().eq_ignore_ascii_case(name))
            .ok_or_else(|| not_implemented(&format!("the checksum algorithm {name}")))
    }

    fn len_bytes(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc64Nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Sha1 | Self::Sha256 => None,
        }
    }

    /// Returns the type of checksum a multipart upload gets, given what the client asked for.
    pub(crate) fn multipart_type(self, asked: Option<&str>) -> S3Result<&'static str> {
        let default = if self == Self::Crc64Nvme {
            FULL_OBJECT
        } else {
            COMPOSITE
        };
        match asked {
            None => Ok(default),
            Some(FULL_OBJECT) if self.crc().is_some() => Ok(FULL_OBJECT),
            Some(COMPOSITE) if self != Self::Crc64Nvme => Ok(COMPOSITE),
            Some(other) => Err(s3_error!(
                InvalidRequest,
                "the checksum type {other} cannot be used with {}",
                self.api()
            )),
        }
    }
}

/// Checksums that came with a request, by stored name, in base64.
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Given(pub(crate) Vec<(Algorithm, String)>);

/// Collects the checksum fields of an `s3s` request or part.
macro_rules! given {
    ($input:expr) => {{
        let unsupported = [
            ("SHA512", $input.checksum_sha512.is_some()),
            ("MD5", $input.checksum_md5.is_some()),
            ("XXHASH64", $input.checksum_xxhash64.is_some()),
            ("XXHASH3", $input.checksum_xxhash3.is_some()),
            ("XXHASH128", $input.checksum_xxhash128.is_some()),
        ];
        let supported = [
            (crate::checksum::Algorithm::Crc32, &$input.checksum_crc32),
            (crate::checksum::Algorithm::Crc32c, &$input.checksum_crc32c),
            (
                crate::checksum::Algorithm::Crc64Nvme,
                &$input.checksum_crc64nvme,
            ),
            (crate::checksum::Algorithm::Sha1, &$input.checksum_sha1),
            (crate::checksum::Algorithm::Sha256, &$input.checksum_sha256),
        ];
        crate::checksum::Given::collect(&unsupported, &supported)
    }};
}
pub(crate) use given;

/// Sets the checksum fields of an `s3s` answer from stored pairs.
macro_rules! set_checksums {
    ($output:expr, $pairs:expr) => {
        for (name, value) in $pairs {
            match crate::checksum::Algorithm::parse(name) {
                Ok(crate::checksum::Algorithm::Crc32) => {
                    $output.checksum_crc32 = Some(value.clone());
                }
                Ok(crate::checksum::Algorithm::Crc32c) => {
                    $output.checksum_crc32c = Some(value.clone());
                }
                Ok(crate::checksum::Algorithm::Crc64Nvme) => {
                    $output.checksum_crc64nvme = Some(value.clone());
                }
                Ok(crate::checksum::Algorithm::Sha1) => {
                    $output.checksum_sha1 = Some(value.clone());
                }
                Ok(crate::checksum::Algorithm::Sha256) => {
                    $output.checksum_sha256 = Some(value.clone());
                }
                Err(_) => {}
            }
        }
    };
}
pub(crate) use set_checksums;

impl Given {
    /// Reads the fields that [`given!`] lists.
    pub(crate) fn collect(
        unsupported: &[(&str, bool)],
        supported: &[(Algorithm, &Option<String>)],
    ) -> S3Result<Self> {
        if let Some((name, _)) = unsupported.iter().find(|(_, present)| *present) {
            return Err(not_implemented(&format!("the checksum algorithm {name}")));
        }
        let given = supported
            .iter()
            .filter_map(|(algorithm, value)| Some((*algorithm, (*value).clone()?)))
            .collect();
        Ok(Self(given))
    }

    /// Adds the checksums that came in the trailer.
    pub(crate) fn add_trailer(&mut self, trailer: &HeaderMap) {
        for algorithm in Algorithm::ALL {
            let name = format!("x-amz-checksum-{}", algorithm.stored());
            if let Some(value) = trailer
                .get(name.as_str())
                .and_then(|value| value.to_str().ok())
            {
                self.0.push((algorithm, value.trim().to_owned()));
            }
        }
    }

    /// Returns the value given for an algorithm.
    pub(crate) fn value(&self, algorithm: Algorithm) -> Option<&str> {
        self.0
            .iter()
            .find(|(given, _)| *given == algorithm)
            .map(|(_, value)| value.as_str())
    }

    /// Checks that every given checksum is one of `computed`.
    pub(crate) fn verify(&self, computed: &Pairs) -> S3Result<()> {
        for (algorithm, value) in &self.0 {
            match STANDARD.decode(value) {
                Ok(raw) if raw.len() == algorithm.len_bytes() => {}
                _ => {
                    return Err(s3_error!(
                        InvalidRequest,
                        "Value for x-amz-checksum-{} header is invalid.",
                        algorithm.stored()
                    ));
                }
            }
            let agrees = computed
                .iter()
                .any(|(name, sum)| name == algorithm.stored() && sum == value);
            if !agrees {
                return Err(mismatch(*algorithm));
            }
        }
        Ok(())
    }
}

/// Says that bytes and checksum differ.
pub(crate) fn mismatch(algorithm: Algorithm) -> S3Error {
    let text = format!(
        "The {} you specified did not match the calculated checksum.",
        algorithm.api()
    );
    S3Error::with_message(S3ErrorCode::BadDigest, text)
}

/// Returns the algorithm that the `x-amz-trailer` header announces.
pub(crate) fn announced(headers: &HeaderMap) -> S3Result<Option<Algorithm>> {
    let Some(trailer) = headers
        .get("x-amz-trailer")
        .and_then(|value| value.to_str().ok())
    else {
        return Ok(None);
    };
    match trailer
        .trim()
        .to_ascii_lowercase()
        .strip_prefix("x-amz-checksum-")
    {
        Some(name) => Algorithm::parse(name).map(Some),
        None => Ok(None),
    }
}

/// Returns the 16 bytes of a `Content-MD5` header.
pub(crate) fn parse_content_md5(value: &str) -> S3Result<[u8; 16]> {
    let raw = STANDARD
        .decode(value)
        .ok()
        .and_then(|raw| <[u8; 16]>::try_from(raw).ok());
    raw.ok_or_else(|| S3Error::new(S3ErrorCode::InvalidDigest))
}

/// The sums of a body so far.
#[derive(Default)]
pub(crate) struct Sums {
    md5: Md5,
    crc32: Option<Crc32>,
    crc32c: Option<Crc32c>,
    crc64nvme: Option<Crc64Nvme>,
    sha1: Option<Sha1>,
    sha256: Option<Sha256>,
}

impl Sums {
    pub(crate) fn new(algorithms: &[Algorithm]) -> Self {
        let mut sums = Self::default();
        for algorithm in algorithms {
            match algorithm {
                Algorithm::Crc32 => sums.crc32 = Some(Crc32::new()),
                Algorithm::Crc32c => sums.crc32c = Some(Crc32c::new()),
                Algorithm::Crc64Nvme => sums.crc64nvme = Some(Crc64Nvme::new()),
                Algorithm::Sha1 => sums.sha1 = Some(Sha1::new()),
                Algorithm::Sha256 => sums.sha256 = Some(Sha256::new()),
            }
        }
        sums
    }

    /// Takes the next bytes.
    pub(crate) fn update(&mut self, batch: &[Bytes]) {
        self.update_checksums(batch);
        self.md5.update(batch);
    }

    /// Takes the next bytes of each of several bodies, which costs less than one after the other.
    pub(crate) fn update_all(bodies: &mut [(&mut Self, &[Bytes])]) {
        for (sums, batch) in &mut *bodies {
            sums.update_checksums(batch);
        }
        let mut md5s: Vec<(&mut Md5, &[Bytes])> = bodies
            .iter_mut()
            .map(|(sums, batch)| (&mut sums.md5, *batch))
            .collect();
        Md5::update_all(&mut md5s);
    }

    fn update_checksums(&mut self, batch: &[Bytes]) {
        for bytes in batch {
            if let Some(sum) = &mut self.crc32 {
                sum.update(bytes);
            }
            if let Some(sum) = &mut self.crc32c {
                sum.update(bytes);
            }
            if let Some(sum) = &mut self.crc64nvme {
                sum.update(bytes);
            }
            if let Some(sum) = &mut self.sha1 {
                sum.update(bytes);
            }
            if let Some(sum) = &mut self.sha256 {
                sum.update(bytes);
            }
        }
    }

    /// Returns the digests.
    pub(crate) fn finish(self) -> Digests {
        let mut checksums = Pairs::new();
        let mut add = |algorithm: Algorithm, raw: &[u8]| {
            checksums.push((algorithm.stored().to_owned(), STANDARD.encode(raw)));
        };
        if let Some(sum) = self.crc32 {
            add(Algorithm::Crc32, &sum.finalize());
        }
        if let Some(sum) = self.crc32c {
            add(Algorithm::Crc32c, &sum.finalize());
        }
        if let Some(sum) = self.crc64nvme {
            add(Algorithm::Crc64Nvme, &sum.finalize());
        }
        if let Some(sum) = self.sha1 {
            add(Algorithm::Sha1, &sum.finalize());
        }
        if let Some(sum) = self.sha256 {
            add(Algorithm::Sha256, &sum.finalize());
        }
        Digests {
            md5: self.md5.finish(),
            checksums,
        }
    }
}

/// What a body hashed to.
#[derive(PartialEq, Debug)]
pub(crate) struct Digests {
    /// The MD5, which is the ETag.
    pub(crate) md5: [u8; 16],
    /// The checksums asked for, ready to be stored.
    pub(crate) checksums: Pairs,
}

/// Computes the full-object CRC of parts laid end to end, each given by its CRC in base64 and length.
pub(crate) fn combine(algorithm: Algorithm, parts: &[(&str, u64)]) -> Option<String> {
    let crc = algorithm.crc()?;
    let width = algorithm.len_bytes();
    let mut whole: Option<u64> = None;
    for (value, len) in parts {
        let raw = STANDARD
            .decode(value)
            .ok()
            .filter(|raw| raw.len() == width)?;
        let part = raw
            .iter()
            .fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
        whole = Some(match whole {
            None => part,
            Some(before) => checksum_combine(crc, before, part, *len),
        });
    }
    let bytes = whole?.to_be_bytes();
    Some(STANDARD.encode(bytes.get(bytes.len() - width..)?))
}

/// Computes the checksum of parts' checksums, with the count of parts.
pub(crate) fn composite(algorithm: Algorithm, parts: &[&str]) -> Option<String> {
    let mut sums = Sums::new(&[algorithm]);
    for part in parts {
        let raw = STANDARD
            .decode(part)
            .ok()
            .filter(|raw| raw.len() == algorithm.len_bytes())?;
        sums.update(&[Bytes::from(raw)]);
    }
    let (_, value) = sums.finish().checksums.into_iter().next()?;
    Some(format!("{value}-{}", parts.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(algorithms: &[Algorithm], data: &[u8]) -> Digests {
        let mut sums = Sums::new(algorithms);
        sums.update(&[Bytes::copy_from_slice(data)]);
        sums.finish()
    }

    fn checksum(algorithm: Algorithm, data: &[u8]) -> String {
        digest(&[algorithm], data).checksums[0].1.clone()
    }

    #[test]
    fn known_answers() {
        let digests = digest(&Algorithm::ALL, b"123456789");
        assert_eq!(hex::encode(digests.md5), "25f9e794323b453885f5181f1b624d0b");
        let value = |name: &str| {
            let pair = digests
                .checksums
                .iter()
                .find(|(stored, _)| stored == name)
                .unwrap();
            hex::encode(STANDARD.decode(&pair.1).unwrap())
        };
        assert_eq!(value("crc32"), "cbf43926");
        assert_eq!(value("crc32c"), "e3069283");
        assert_eq!(value("crc64nvme"), "ae8b14860a799888");
        assert_eq!(value("sha1"), "f7c3bc1d808e04732adf679965ccc34ca7ae3441");
    }

    #[test]
    fn combined_crcs_are_those_of_the_whole() {
        let data: Vec<u8> = (0..10_000u32)
            .map(|i| u8::try_from(i * 7 % 251).unwrap())
            .collect();
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let cuts: [&[u8]; 3] = [&data[..4097], &data[4097..4097], &data[4097..]];
            let sums: Vec<String> = cuts.iter().map(|cut| checksum(algorithm, cut)).collect();
            let parts: Vec<(&str, u64)> = sums
                .iter()
                .zip(cuts)
                .map(|(sum, cut)| (sum.as_str(), cut.len() as u64))
                .collect();
            assert_eq!(combine(algorithm, &parts), Some(checksum(algorithm, &data)));
        }
        assert_eq!(combine(Algorithm::Sha256, &[("", 0)]), None);
        assert_eq!(combine(Algorithm::Crc32, &[("AA==", 1)]), None);
    }

    #[test]
    fn composite_hashes_the_raw_sums() {
        let parts = [
            checksum(Algorithm::Sha256, b"a"),
            checksum(Algorithm::Sha256, b"b"),
        ];
        let raw: Vec<u8> = parts
            .iter()
            .flat_map(|part| STANDARD.decode(part).unwrap())
            .collect();
        let expected = format!("{}-2", checksum(Algorithm::Sha256, &raw));
        assert_eq!(
            composite(Algorithm::Sha256, &[&parts[0], &parts[1]]),
            Some(expected)
        );
    }

    #[test]
    fn a_wrong_checksum_is_a_bad_digest_and_nonsense_an_invalid_request() {
        let computed = digest(&[Algorithm::Crc32], b"abc").checksums;
        let given = |value: &str| Given(vec![(Algorithm::Crc32, value.to_owned())]);
        assert!(
            given(&checksum(Algorithm::Crc32, b"abc"))
                .verify(&computed)
                .is_ok()
        );
        let wrong = given(&checksum(Algorithm::Crc32, b"abd"))
            .verify(&computed)
            .unwrap_err();
        assert_eq!(*wrong.code(), S3ErrorCode::BadDigest);
        let nonsense = given("hello").verify(&computed).unwrap_err();
        assert_eq!(*nonsense.code(), S3ErrorCode::InvalidRequest);
    }

    #[test]
    fn multipart_types_follow_the_algorithm() {
        assert_eq!(
            Algorithm::Crc64Nvme.multipart_type(None).unwrap(),
            FULL_OBJECT
        );
        assert_eq!(Algorithm::Crc32.multipart_type(None).unwrap(), COMPOSITE);
        assert_eq!(
            Algorithm::Crc32.multipart_type(Some(FULL_OBJECT)).unwrap(),
            FULL_OBJECT
        );
        assert!(Algorithm::Sha256.multipart_type(Some(FULL_OBJECT)).is_err());
        assert!(
            Algorithm::Crc64Nvme
                .multipart_type(Some(COMPOSITE))
                .is_err()
        );
    }
}
