//! Which S3 attributes hold for an inode now, and the conditions on them.
//!
//! Invariant: attributes that describe bytes (ETag, checksums, part sizes) hold only for the data version that they were
//! stored with. Once POSIX opened the file to write, the ETag is made of the inode and its data version: opaque, new with each change, and
//! with a `-` in it, so that no client takes it for an MD5.

use janusfs_types::{Attr, DataVersion, FsError};
use janusfs_wire::meta::{Conditions, ObjectAttrs};

/// MD5 of nothing: the ETag of a directory that is shown as an object.
const EMPTY_ETAG: &str = "d41d8cd98f00b204e9800998ecf8427e";

/// Returns the attributes that hold for an inode, out of what is stored.
pub(super) fn current(attr: &Attr, stored: Option<ObjectAttrs>) -> ObjectAttrs {
    match stored {
        Some(attrs) if attrs.data_version == attr.data_version && !attrs.etag.is_empty() => attrs,
        other => ObjectAttrs {
            etag: format!("{:x}-{:x}", attr.inode.0, attr.data_version.0),
            data_version: attr.data_version,
            ..without_bytes(other.unwrap_or_default())
        },
    }
}

/// Returns what does not depend on the bytes: headers and metadata.
pub(super) fn without_bytes(attrs: ObjectAttrs) -> ObjectAttrs {
    ObjectAttrs {
        headers: attrs.headers,
        metadata: attrs.metadata,
        ..ObjectAttrs::default()
    }
}

/// Returns the attributes of a directory that is shown as an object.
pub(super) fn of_directory(data_version: DataVersion) -> ObjectAttrs {
    ObjectAttrs {
        etag: EMPTY_ETAG.into(),
        data_version,
        ..ObjectAttrs::default()
    }
}

/// Decides conditions on the current ETag (`None`: no object).
///
/// # Errors
/// As [`Conditions`] says.
pub(super) fn check(conditions: &Conditions, etag: Option<&str>) -> Result<(), FsError> {
    let named = |etags: &[String], etag: &str| etags.iter().any(|one| one == "*" || one == etag);
    match etag {
        None if !conditions.if_match.is_empty() => Err(FsError::NotFound),
        None => Ok(()),
        Some(etag) => {
            let wanted = conditions.if_match.is_empty() || named(&conditions.if_match, etag);
            if wanted && !named(&conditions.if_none_match, etag) {
                Ok(())
            } else {
                Err(FsError::PreconditionFailed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_follow_the_contract() {
        let tags = |list: &[&str]| list.iter().map(|&tag| tag.to_owned()).collect::<Vec<_>>();
        let case = |if_match: &[&str], if_none_match: &[&str], etag| {
            let conditions = Conditions {
                if_match: tags(if_match),
                if_none_match: tags(if_none_match),
            };
            check(&conditions, etag)
        };
        assert_eq!(case(&[], &[], None), Ok(()));
        assert_eq!(case(&["*"], &[], None), Err(FsError::NotFound));
        assert_eq!(case(&["a", "b"], &[], Some("b")), Ok(()));
        assert_eq!(
            case(&["a"], &[], Some("b")),
            Err(FsError::PreconditionFailed)
        );
        assert_eq!(case(&[], &["*"], None), Ok(()));
        assert_eq!(
            case(&[], &["*"], Some("b")),
            Err(FsError::PreconditionFailed)
        );
        assert_eq!(case(&[], &["a"], Some("b")), Ok(()));
    }
}
