//! Where a bucket is and how long to wait for it. Plain data, so that configurations are read and checked the same way
//! whether or not the S3 client is compiled in (feature `s3`).

use std::fmt;
use std::time::Duration;

/// The region of a configuration that names none, nor does the environment or the profile.
pub const DEFAULT_REGION: &str = "us-east-1";

/// A bucket and how to reach it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct S3Config {
    /// Name of the bucket.
    pub bucket: String,
    /// Region; by default the environment's or profile's, then `us-east-1`.
    pub region: Option<String>,
    /// URL of an S3-compatible server (bucket names then go into the path); by default AWS's, or `AWS_ENDPOINT_URL`.
    pub endpoint_url: Option<String>,
    /// What every key starts with inside the bucket; a slash is added at its end where it is missing.
    pub prefix: String,
    /// Profile of the AWS configuration files; by default `AWS_PROFILE`.
    pub profile: Option<String>,
    /// Fixed credentials instead of the usual chain.
    pub credentials: Option<S3Credentials>,
    /// How long to wait.
    pub timeouts: S3Timeouts,
}

/// Fixed credentials. `Debug` shows only that there are some.
#[derive(Clone, PartialEq, Eq)]
pub struct S3Credentials {
    /// The public half.
    pub access_key_id: String,
    /// The secret half.
    pub secret_access_key: String,
}

impl fmt::Debug for S3Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("S3Credentials(..)")
    }
}

/// How long one attempt may take. Reading a body is not in these: a body that stalls for 20 s is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct S3Timeouts {
    /// To get a connection.
    pub connect: Duration,
    /// For a call that sends little, until the answer begins.
    pub attempt: Duration,
    /// For a call that sends bytes, until the answer begins: 8 MiB at 70 KB/s.
    pub upload_attempt: Duration,
}

impl Default for S3Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(20),
            upload_attempt: Duration::from_mins(2),
        }
    }
}

impl S3Config {
    /// A bucket with everything else as usual.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self { bucket: bucket.into(), ..Self::default() }
    }

    /// `s3://bucket/prefix`, for people.
    pub fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.normal_prefix()).trim_end_matches('/').to_owned()
    }

    /// Says what is wrong with it, before anything is sent.
    ///
    /// # Errors
    /// A sentence for people that names the setting.
    pub fn check(&self) -> Result<(), String> {
        let bucket_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'/');
        if self.bucket.is_empty() {
            return Err("the bucket is empty; expected its name".to_owned());
        }
        if !self.bucket.bytes().all(bucket_ok) {
            return Err(format!("the bucket is {:?}; expected letters, digits, dots and dashes", self.bucket));
        }
        if let Some(endpoint) = &self.endpoint_url
            && endpoint.strip_prefix("http://").or(endpoint.strip_prefix("https://")).is_none_or(str::is_empty)
        {
            return Err(format!("the endpoint URL is {endpoint:?}; expected http://HOST or https://HOST"));
        }
        let prefix = self.normal_prefix();
        if prefix.contains('\0') || prefix.split('/').any(|part| part == "." || part == "..") {
            return Err(format!("the prefix is {:?}; expected no `.` or `..` component and no NUL", self.prefix));
        }
        Ok(())
    }

    /// "" or ending in a slash, never starting with one.
    pub(crate) fn normal_prefix(&self) -> String {
        let prefix = self.prefix.trim_start_matches('/');
        if prefix.is_empty() || prefix.ends_with('/') { prefix.to_owned() } else { format!("{prefix}/") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_in_one_slash() {
        for (given, normal) in [("", ""), ("/", ""), ("a", "a/"), ("a/", "a/"), ("/a/b", "a/b/")] {
            let config = S3Config { prefix: given.into(), ..S3Config::new("b") };
            assert_eq!(config.normal_prefix(), normal, "{given:?}");
        }
        assert_eq!(S3Config { prefix: "a/".into(), ..S3Config::new("b") }.url(), "s3://b/a");
    }

    #[test]
    fn problems_are_named() {
        let wrong = [
            (S3Config::new(""), "bucket is empty"),
            (S3Config::new("a b"), "\"a b\""),
            (S3Config { endpoint_url: Some("localhost:9000".into()), ..S3Config::new("b") }, "http://HOST"),
            (S3Config { endpoint_url: Some("http://".into()), ..S3Config::new("b") }, "http://HOST"),
            (S3Config { prefix: "a/../b".into(), ..S3Config::new("b") }, "prefix"),
        ];
        for (config, expected) in wrong {
            let problem = config.check().expect_err(expected);
            assert!(problem.contains(expected), "{problem}");
        }
        assert_eq!(S3Config::new("fine-bucket").check(), Ok(()));
    }

    #[test]
    fn debug_shows_no_secret() {
        let credentials = S3Credentials { access_key_id: "AKIAxyz".into(), secret_access_key: "hush".into() };
        let shown = format!("{:?}", S3Config { credentials: Some(credentials), ..S3Config::new("b") });
        assert!(!shown.contains("hush") && !shown.contains("AKIAxyz"), "{shown}");
    }
}
