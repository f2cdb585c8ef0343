//! `Accept-Encoding` (RFC 9110 section 12.5.3): whether a client takes a zstd frame, and whether it takes plain bytes.

/// What a client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Codings {
    /// A zstd frame, and likes it no less than plain bytes.
    pub(crate) zstd: bool,
    /// The file's own bytes.
    pub(crate) plain: bool,
}

impl Codings {
    /// A client that says nothing takes plain bytes.
    pub(crate) const PLAIN: Self = Self { zstd: false, plain: true };

    /// Of the field's value; several lines are joined by commas.
    pub(crate) fn read(header: &str) -> Self {
        let (mut zstd, mut identity, mut rest) = (None, None, None);
        for item in header.split(',') {
            let mut parts = item.split(';').map(str::trim);
            let named = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "zstd" => &mut zstd,
                "identity" => &mut identity,
                "*" => &mut rest,
                _ => continue,
            };
            *named = Some(weight(parts));
        }
        let plain = identity.or(rest).unwrap_or(1.0) > 0.0;
        // A star is no promise that a client really knows zstd; it counts only where plain bytes are refused.
        let zstd = match (zstd, rest) {
            (Some(weight), _) => weight > 0.0 && (!plain || identity.is_none_or(|identity| weight >= identity)),
            (None, Some(weight)) => !plain && weight > 0.0,
            (None, None) => false,
        };
        Self { zstd, plain }
    }
}

/// The value of `q`, 1 where there is none. One that is no number from 0 to 1 refuses: the client meant something else
/// than "gladly".
pub(crate) fn weight<'a>(mut parameters: impl Iterator<Item = &'a str>) -> f32 {
    let value = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim())
    });
    let number = |text: &str| text.parse::<f32>().ok().filter(|q| (0.0..=1.0).contains(q));
    value.map_or(1.0, |text| number(text).unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_decide() {
        for (header, zstd, plain) in [
            ("", false, true),
            ("gzip", false, true),
            ("zstd", true, true),
            ("gzip, zstd", true, true),
            ("ZSTD;q=0.5", true, true),
            ("br;q=1.0, zstd ; q=0.1", true, true),
            ("zstd;q=0.5, identity", false, true),
            ("zstd, identity;q=0.5", true, true),
            ("zstd;q=0", false, true),
            ("zstd; q=0.0", false, true),
            ("zstd;q=2", false, true),
            ("zstd;q=nan", false, true),
            ("zstdx", false, true),
            ("*", false, true),
            ("*;q=0", false, false),
            ("identity;q=1, *;q=0", false, true),
            ("identity;q=0", false, false),
            ("zstd, identity;q=0", true, false),
            ("zstd;q=0.1, *;q=0", true, false),
            ("identity;q=0, *;q=0.2", true, false),
        ] {
            assert_eq!(Codings::read(header), Codings { zstd, plain }, "{header}");
        }
    }
}
