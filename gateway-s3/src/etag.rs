//! ETags, times, and the conditions built on both (RFC 9110, section 13.2.2).
//!
//! Invariant: an ETag is kept without quotes; it is quoted only as a typed `s3s` value. Conditions on *writes* are not
//! decided here but inside the publishing transaction.

use std::time::{Duration, SystemTime};

use janusfs_wire::meta::Conditions;
use s3s::{
    S3Error, S3ErrorCode, S3Result,
    crypto::{Checksum as _, Md5},
    dto::{ETag, ETagCondition, Timestamp},
};

use crate::error::not_implemented;

/// Returns the typed ETag of a stored one.
pub(crate) fn typed(etag: &str) -> ETag {
    ETag::Strong(etag.to_owned())
}

/// Returns the ETag of a multipart object: the MD5 of its parts' MD5s, and their count.
///
/// A part whose ETag is no MD5 (stored by reference to a file that POSIX wrote) enters with the text of its ETag.
pub(crate) fn of_parts<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let (mut md5, mut count) = (Md5::new(), 0u32);
    for part in parts {
        match hex::decode(part) {
            Ok(digest) if digest.len() == 16 => md5.update(&digest),
            _ => md5.update(part.as_bytes()),
        }
        count += 1;
    }
    format!("{}-{count}", hex::encode(md5.finalize()))
}

/// Returns the `s3s` time of nanoseconds since the epoch.
pub(crate) fn timestamp(ns: i64) -> Timestamp {
    let since = Duration::from_nanos(ns.unsigned_abs());
    let time = if ns < 0 {
        SystemTime::UNIX_EPOCH - since
    } else {
        SystemTime::UNIX_EPOCH + since
    };
    Timestamp::from(time)
}

/// The conditions of a read, or of the source of a copy.
#[derive(Default)]
pub(crate) struct ReadConditions<'a> {
    pub(crate) if_match: Option<&'a ETagCondition>,
    pub(crate) if_none_match: Option<&'a ETagCondition>,
    pub(crate) if_modified_since: Option<&'a Timestamp>,
    pub(crate) if_unmodified_since: Option<&'a Timestamp>,
}

/// What the conditions say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    Proceed,
    NotModified,
    PreconditionFailed,
}

impl ReadConditions<'_> {
    /// Decides in the order of RFC 9110: a condition on the ETag makes the one on the time void. Times count in seconds.
    pub(crate) fn verdict(&self, etag: &str, modified_ns: i64) -> Verdict {
        let modified = timestamp(modified_ns.div_euclid(1_000_000_000) * 1_000_000_000);
        let holds = match (self.if_match, self.if_unmodified_since) {
            (Some(condition), _) => matches(condition, etag, false),
            (None, Some(limit)) => modified <= *limit,
            (None, None) => true,
        };
        if !holds {
            return Verdict::PreconditionFailed;
        }
        let unchanged = match (self.if_none_match, self.if_modified_since) {
            (Some(condition), _) => matches(condition, etag, true),
            (None, Some(limit)) => modified <= *limit,
            (None, None) => false,
        };
        if unchanged {
            Verdict::NotModified
        } else {
            Verdict::Proceed
        }
    }
}

fn matches(condition: &ETagCondition, etag: &str, weak: bool) -> bool {
    match condition {
        ETagCondition::Any => true,
        ETagCondition::ETag(ETag::Strong(value)) => value == etag,
        ETagCondition::ETag(ETag::Weak(value)) => weak && value == etag,
    }
}

/// Returns the conditions of a write for the transaction that decides them.
pub(crate) fn write_conditions(
    if_match: Option<&ETagCondition>,
    if_none_match: Option<&ETagCondition>,
) -> S3Result<Conditions> {
    let mut conditions = Conditions::default();
    match if_match {
        None => {}
        Some(ETagCondition::Any) => conditions.if_match.push("*".into()),
        Some(ETagCondition::ETag(ETag::Strong(value))) => conditions.if_match.push(value.clone()),
        Some(ETagCondition::ETag(ETag::Weak(_))) => {
            return Err(S3Error::new(S3ErrorCode::PreconditionFailed));
        }
    }
    match if_none_match {
        None => {}
        Some(ETagCondition::Any) => conditions.if_none_match.push("*".into()),
        Some(ETagCondition::ETag(_)) => {
            return Err(not_implemented("If-None-Match other than * on a write"));
        }
    }
    Ok(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "900150983cd24fb0d6963f7d28e17f72";

    fn condition(text: &str) -> ETagCondition {
        ETagCondition::parse_http_header(text.as_bytes()).unwrap()
    }

    fn time(seconds: i64) -> Timestamp {
        timestamp(seconds * 1_000_000_000)
    }

    #[test]
    fn multipart_etag_is_md5_of_md5s() {
        // printf 'abc' | md5sum, twice, as binary through md5sum again.
        let etag = of_parts([ETAG, ETAG].into_iter());
        let mut md5 = Md5::new();
        md5.update(&hex::decode(ETAG.repeat(2)).unwrap());
        assert_eq!(etag, format!("{}-2", hex::encode(md5.finalize())));
        assert_ne!(
            of_parts(["opaque-1"].into_iter()),
            of_parts(["opaque-2"].into_iter())
        );
    }

    #[test]
    fn a_time_within_its_second_is_not_later_than_the_second() {
        use s3s::dto::TimestampFormat;
        let date = "Tue, 14 Nov 2023 22:13:20 GMT";
        let limit = Timestamp::parse(TimestampFormat::HttpDate, date).unwrap();
        let c = ReadConditions {
            if_unmodified_since: Some(&limit),
            ..Default::default()
        };
        assert_eq!(c.verdict(ETAG, 1_700_000_000_999_999_999), Verdict::Proceed);
        assert_eq!(
            c.verdict(ETAG, 1_700_000_001_000_000_000),
            Verdict::PreconditionFailed
        );
    }

    #[test]
    fn etag_conditions_go_before_times() {
        let (yes, no) = (condition(&format!("\"{ETAG}\"")), condition("\"other\""));
        let modified = 100 * 1_000_000_000 + 5;
        let (before, after) = (time(99), time(101));
        let verdict = |c: ReadConditions<'_>| c.verdict(ETAG, modified);

        assert_eq!(verdict(ReadConditions::default()), Verdict::Proceed);
        assert_eq!(
            verdict(ReadConditions {
                if_match: Some(&yes),
                if_unmodified_since: Some(&before),
                ..Default::default()
            }),
            Verdict::Proceed
        );
        assert_eq!(
            verdict(ReadConditions {
                if_match: Some(&no),
                ..Default::default()
            }),
            Verdict::PreconditionFailed
        );
        assert_eq!(
            verdict(ReadConditions {
                if_unmodified_since: Some(&before),
                ..Default::default()
            }),
            Verdict::PreconditionFailed
        );
        assert_eq!(
            verdict(ReadConditions {
                if_none_match: Some(&no),
                if_modified_since: Some(&after),
                ..Default::default()
            }),
            Verdict::Proceed
        );
        assert_eq!(
            verdict(ReadConditions {
                if_none_match: Some(&yes),
                ..Default::default()
            }),
            Verdict::NotModified
        );
        assert_eq!(
            verdict(ReadConditions {
                if_modified_since: Some(&time(100)),
                ..Default::default()
            }),
            Verdict::NotModified
        );
    }

    #[test]
    fn weak_tags_match_only_weakly() {
        let weak = condition(&format!("W/\"{ETAG}\""));
        let c = ReadConditions {
            if_match: Some(&weak),
            ..Default::default()
        };
        assert_eq!(c.verdict(ETAG, 0), Verdict::PreconditionFailed);
        let c = ReadConditions {
            if_none_match: Some(&weak),
            ..Default::default()
        };
        assert_eq!(c.verdict(ETAG, 0), Verdict::NotModified);
    }

    #[test]
    fn write_conditions_take_only_what_the_transaction_decides() {
        let any = condition("*");
        let conditions = write_conditions(Some(&condition("\"a\"")), Some(&any)).unwrap();
        assert_eq!(conditions.if_match, ["a"]);
        assert_eq!(conditions.if_none_match, ["*"]);
        let refused = write_conditions(None, Some(&condition("\"a\""))).unwrap_err();
        assert_eq!(*refused.code(), S3ErrorCode::NotImplemented);
    }
}
