//! Extended attributes of the namespaces that need no meaning here: `user.`, `trusted.`, `security.`.
//!
//! Who may touch which namespace is the kernel's check. `system.` would be ACLs, which this version does not keep: they
//! are refused rather than stored and ignored.

use bytes::Bytes;
use janusfs_types::{FsError, InodeId, limits::XATTR_MAX_BYTES};
use janusfs_wire::meta::{GetXattr, ListXattr, RemoveXattr, SetXattr};

use super::{Vfs, VfsError, by_inode};

/// `XATTR_CREATE` of `setxattr(2)`.
const CREATE: i32 = 1;
/// `XATTR_REPLACE` of `setxattr(2)`.
const REPLACE: i32 = 2;

impl Vfs {
    pub(crate) async fn set_xattr(
        &self,
        inode: InodeId,
        name: &[u8],
        value: &[u8],
        flags: i32,
    ) -> Result<(), VfsError> {
        check_namespace(name)?;
        if flags & !(CREATE | REPLACE) != 0 {
            return Err(FsError::Invalid("unknown setxattr flags".into()).into());
        }
        let (create, replace) = (flags & CREATE != 0, flags & REPLACE != 0);
        let (name, value) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
        by_inode(
            self.client
                .call(&SetXattr {
                    inode,
                    name,
                    value,
                    create,
                    replace,
                })
                .await,
        )?;
        self.settle().await
    }

    pub(crate) async fn xattr(&self, inode: InodeId, name: &[u8]) -> Result<Bytes, VfsError> {
        check_namespace(name)?;
        let name = Bytes::copy_from_slice(name);
        Ok(by_inode(self.client.call(&GetXattr { inode, name }).await)?)
    }

    /// Returns the names, each ended by a zero byte. `trusted.` names are root's alone.
    pub(crate) async fn list_xattrs(&self, inode: InodeId, uid: u32) -> Result<Vec<u8>, VfsError> {
        let names = by_inode(self.client.call(&ListXattr { inode }).await)?;
        let list = join_names(&names, uid == 0);
        if list.len() > XATTR_MAX_BYTES {
            return Err(FsError::TooBig.into());
        }
        Ok(list)
    }

    pub(crate) async fn remove_xattr(&self, inode: InodeId, name: &[u8]) -> Result<(), VfsError> {
        check_namespace(name)?;
        let name = Bytes::copy_from_slice(name);
        by_inode(self.client.call(&RemoveXattr { inode, name }).await)?;
        self.settle().await
    }
}

fn check_namespace(name: &[u8]) -> Result<(), FsError> {
    let kept: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    if kept
        .iter()
        .any(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
    {
        return Ok(());
    }
    Err(FsError::Unsupported(
        "xattrs other than user., trusted. and security.".into(),
    ))
}

fn join_names(names: &[Bytes], root: bool) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names
        .iter()
        .filter(|name| root || !name.starts_with(b"trusted."))
    {
        list.extend_from_slice(name);
        list.push(0);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acls_are_refused_not_ignored() {
        for name in ["user.a", "trusted.b", "security.capability"] {
            assert_eq!(check_namespace(name.as_bytes()), Ok(()));
        }
        for name in ["system.posix_acl_access", "user.", "other.a", ""] {
            let error = check_namespace(name.as_bytes()).unwrap_err();
            assert_eq!(error.errno(), rustix::io::Errno::OPNOTSUPP.raw_os_error());
        }
    }

    #[test]
    fn trusted_names_are_roots_alone() {
        let names = [
            Bytes::from_static(b"user.a"),
            Bytes::from_static(b"trusted.b"),
        ];
        assert_eq!(join_names(&names, true), b"user.a\0trusted.b\0");
        assert_eq!(join_names(&names, false), b"user.a\0");
        assert_eq!(join_names(&[], true), b"");
    }
}
