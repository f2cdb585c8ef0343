//! `multipart/mixed` (RFC 2046): one part for each file asked for, in the order asked for, with `Content-Length`, so that
//! a reader needs to search for nothing.

use std::fmt::Write;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{Archive, Member};

/// What RFC 8187 lets stand as it is in `filename*`.
const ATTRIBUTE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A multipart body as it is written.
pub(super) struct Multipart {
    boundary: String,
}

impl Multipart {
    pub(super) fn new(boundary: String) -> Self {
        Self { boundary }
    }
}

impl Archive for Multipart {
    fn has_failures(&self) -> bool {
        true
    }

    fn begin(&mut self, member: &Member<'_>, out: &mut Vec<u8>) {
        let mut head = format!("\r\n--{}\r\nContent-Type: {}\r\n", self.boundary, member.content_type);
        let name = utf8_percent_encode(member.name, ATTRIBUTE);
        let mut line = |text: std::fmt::Arguments<'_>| head.write_fmt(text).expect("writing to a string cannot fail");
        line(format_args!("Content-Length: {}\r\n", member.size));
        line(format_args!("Content-Disposition: attachment; filename*=UTF-8''{name}\r\n"));
        if let Some(index) = member.index {
            line(format_args!("X-DES-Index: {index}\r\nX-DES-Status: {}\r\n", member.status));
        }
        head.push_str("\r\n");
        out.extend_from_slice(head.as_bytes());
    }

    fn passed(&mut self, _piece: &[u8]) {}

    fn end(&mut self, _out: &mut Vec<u8>) {}

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("\r\n--{}--\r\n", self.boundary).as_bytes());
    }
}
