//! A uid as the name of a file: in an archive or on a disk, below a folder and never outside of it.

/// The first folder of names that are no uid's.
pub const RESERVED: &str = "_des";

/// A relative path for a uid, which percent-decoding makes the uid again, so that two uids never share one.
///
/// Slashes make folders. These are written percent-encoded: a slash with nothing on one side of it, components that are
/// `.` or `..`, percent signs, backslashes, control characters, and the underscore of a first component that is
/// [`RESERVED`]. A component may still be longer than a file system takes (255 bytes on most).
pub fn safe_name(uid: &str) -> String {
    let mut name = String::with_capacity(uid.len());
    let mut before: Option<&str> = None;
    for component in uid.split('/') {
        if let Some(before) = before {
            name.push_str(if before.is_empty() || component.is_empty() { "%2F" } else { "/" });
        }
        match component {
            "." | ".." => name.push_str(&component.replace('.', "%2E")),
            RESERVED if before.is_none() => name.push_str("%5Fdes"),
            other => other.chars().for_each(|c| push(&mut name, c)),
        }
        before = Some(component);
    }
    name
}

fn push(name: &mut String, c: char) {
    use std::fmt::Write;
    if !c.is_control() && !matches!(c, '%' | '\\') {
        name.push(c);
        return;
    }
    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
        write!(name, "%{byte:02X}").expect("writing to a string cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_stay_below_their_folder() {
        for (uid, name) in [
            ("a", "a"),
            ("a/b ü日本.txt", "a/b ü日本.txt"),
            ("/etc/passwd", "%2Fetc/passwd"),
            ("a//b/", "a%2F%2Fb%2F"),
            ("../../x", "%2E%2E/%2E%2E/x"),
            ("a/./..b", "a/%2E/..b"),
            ("a\\..\\b", "a%5C..%5Cb"),
            ("100%", "100%25"),
            ("a\0\n\u{85}", "a%00%0A%C2%85"),
            ("_des/report.ndjson", "%5Fdes/report.ndjson"),
            ("_des", "%5Fdes"),
            ("a/_des", "a/_des"),
            ("_design", "_design"),
        ] {
            assert_eq!(safe_name(uid), name, "{uid:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_leads_back_to_its_uid_and_nowhere_else(uid in "([./%_\\\\\u{0}\u{7f}üdes日]|_des|\\.\\.|//){1,12}") {
            let name = safe_name(&uid);
            prop_assert_eq!(percent_decode_str(&name).decode_utf8().unwrap(), uid);
            prop_assert!(name.split('/').all(|part| !matches!(part, "" | "." | "..")), "{}", name);
            prop_assert!(!name.chars().any(|c| c.is_control() || c == '\\'));
            prop_assert!(name != RESERVED && !name.starts_with("_des/"));
        }
    }
}
