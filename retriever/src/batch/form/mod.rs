//! The forms of an answer: tar, zip, multipart. Encoders without IO: they append to a buffer what stands around the
//! files' bytes.

mod multipart;
mod tar;
mod zip;

use des_shared::created_at::CreatedAt;

/// Which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `application/x-tar`
    Tar,
    /// `application/zip`
    Zip,
    /// `multipart/mixed`
    Multipart,
}

/// One file of an answer.
pub(super) struct Member<'a> {
    /// A relative path.
    pub(super) name: &'a str,
    /// Its size in bytes.
    pub(super) size: u64,
    /// Its bytes, where they are here already.
    pub(super) whole: Option<&'a [u8]>,
    /// Its number in the list asked for; none for what was not asked for.
    pub(super) index: Option<usize>,
    /// HTTP status.
    pub(super) status: u16,
    pub(super) content_type: &'a str,
    /// When it was created; the beginning of time for what was not asked for.
    pub(super) created_at: Option<&'a CreatedAt>,
}

/// Writes what stands around files. For each: [`Archive::begin`], the bytes with [`Archive::passed`] told of each piece,
/// [`Archive::end`].
pub(super) trait Archive: Send {
    /// Whether files that cannot be had are members, too.
    fn has_failures(&self) -> bool;

    /// What stands before a file's bytes.
    fn begin(&mut self, member: &Member<'_>, out: &mut Vec<u8>);

    /// A piece of the file's bytes went by.
    fn passed(&mut self, piece: &[u8]);

    /// What stands behind a file's bytes.
    fn end(&mut self, out: &mut Vec<u8>);

    /// What stands behind the last file.
    fn finish(&mut self, out: &mut Vec<u8>);
}

impl Form {
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Tar => "application/x-tar",
            Self::Zip => "application/zip",
            Self::Multipart => "multipart/mixed",
        }
    }

    /// An empty archive. `boundary` separates the parts of a multipart answer.
    pub(super) fn archive(self, boundary: String) -> Box<dyn Archive> {
        match self {
            Self::Tar => Box::new(tar::Tar::default()),
            Self::Zip => Box::new(zip::Zip::default()),
            Self::Multipart => Box::new(multipart::Multipart::new(boundary)),
        }
    }
}

#[cfg(test)]
mod tests;
