//! Settings of the S3 face.

use std::net::SocketAddr;

use des_shared::config::{Listen, Setting, Values, settings};

use super::keys::S3Keys;

/// What the S3 face needs to know.
#[derive(Clone, Debug)]
pub struct S3FaceConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// The name of its one bucket.
    pub bucket: String,
    /// Who may read; everybody when there is none.
    pub keys: Option<S3Keys>,
    /// Name under which `bucket.{domain}` leads to a bucket, beside paths that begin with it.
    pub domain: Option<String>,
}

impl S3FaceConfig {
    /// Reads the settings named `DES_S3_FACE_*`; `None` when there is no such face, or something is wrong, which is noted.
    /// `listen` is the HTTP interface: where that lets nobody in without a key, this face does not either.
    pub(crate) fn read(values: &mut Values, listen: Option<&Listen>) -> Option<Self> {
        let bucket = values.read(&settings::S3_FACE_BUCKET, |text| {
            let usable = s3s::path::check_bucket_name(text);
            if usable { Ok(text.to_owned()) } else { Err(format!("{text:?} is not a bucket name such as des")) }
        });
        let keys = S3Keys::read(values);
        let domain = values.read(&settings::S3_FACE_DOMAIN, |text| {
            let wrong = |_| format!("{text:?} is not a domain such as s3.example.com or localhost:8001");
            s3s::host::SingleDomain::new(text).map(|_| text.to_owned()).map_err(wrong)
        });
        let address = values.read(&settings::S3_FACE_LISTEN, |text| {
            let wrong = |_| format!("{text:?} is not an address such as 127.0.0.1:8001 or [::]:8001");
            text.parse::<SocketAddr>().map_err(wrong)
        })?;
        let given = |setting: &Setting| values.text(setting).is_some();
        let keyed = given(&settings::S3_FACE_KEYS) || given(&settings::S3_FACE_KEYS_FILE);
        let closed = [settings::KEYS_FILE, settings::URL_SIGNING_KEYS].iter().any(given);
        let anonymous = values.flag(&settings::ALLOW_ANONYMOUS)?;
        let guarded = !address.ip().is_loopback() || closed || listen.is_some_and(|listen| listen.auth.required());
        if guarded && !keyed && !anonymous {
            values.problem(format!(
                "DES_S3_FACE_LISTEN (--s3-face-listen): {address} is not loopback, or the HTTP interface wants keys, so set \
                 DES_S3_FACE_KEYS or DES_S3_FACE_KEYS_FILE, or DES_ALLOW_ANONYMOUS=true to serve everybody"
            ));
            return None;
        }
        // Keys that were given and are wrong must not open the door.
        (!keyed || keys.is_some()).then_some(Self { address, bucket: bucket?, keys, domain })
    }
}

#[cfg(test)]
mod tests {
    use des_shared::config::ConfigErrors;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<S3FaceConfig>, ConfigErrors> {
        let all = crate::all_settings();
        let mut values = Values::from_pairs(&all, pairs);
        let listen = Listen::read(&mut values, &settings::LISTEN_RETRIEVER);
        let config = S3FaceConfig::read(&mut values, listen.as_ref());
        values.finish(Some(config))
    }

    const LISTEN: (&str, &str) = ("DES_S3_FACE_LISTEN", "127.0.0.1:8001");

    #[test]
    fn off_by_default_and_open_on_loopback_alone() {
        assert!(read(&[]).expect("no face").is_none());
        let face = read(&[LISTEN]).expect("loopback").expect("a face");
        assert!((face.bucket.as_str(), face.keys.is_none(), face.domain) == ("des", true, None));
        let open = ("DES_S3_FACE_LISTEN", "0.0.0.0:8001");
        let text = read(&[open]).expect_err("open").to_string();
        assert!(text.contains("DES_S3_FACE_KEYS") && text.contains("DES_ALLOW_ANONYMOUS"), "{text}");
        assert!(read(&[open, ("DES_ALLOW_ANONYMOUS", "true")]).expect("opted out").is_some());
        let face = read(&[open, ("DES_S3_FACE_KEYS", "reader:correct-horse")]).expect("keys").expect("a face");
        assert!(!format!("{face:?}").contains("horse"), "{face:?}");
        // What the HTTP interface asks a key for is not to be had without one next door.
        let text = read(&[LISTEN, ("DES_API_KEYS", "correct-horse")]).expect_err("a back door").to_string();
        assert!(text.contains("DES_S3_FACE_KEYS"), "{text}");
        for closing in [("DES_KEYS_FILE", "/keys"), ("DES_URL_SIGNING_KEYS", "a:secret")] {
            let text = read(&[LISTEN, closing]).expect_err("a back door").to_string();
            assert!(text.contains("DES_S3_FACE_KEYS"), "{text}");
        }
    }

    #[test]
    fn every_wrong_value_is_named_and_no_secret_shown() {
        let text = read(&[
            ("DES_S3_FACE_LISTEN", "8001"),
            ("DES_S3_FACE_BUCKET", "No Bucket"),
            ("DES_S3_FACE_KEYS", "reader=hunter2-hunter2"),
            ("DES_S3_FACE_DOMAIN", "a b"),
        ]);
        let text = text.expect_err("wrong").to_string();
        for name in ["DES_S3_FACE_LISTEN", "DES_S3_FACE_BUCKET", "DES_S3_FACE_KEYS", "DES_S3_FACE_DOMAIN"] {
            assert!(text.contains(name), "{text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
}
