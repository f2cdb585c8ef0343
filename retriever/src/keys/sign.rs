//! Signed URLs: whoever has one may fetch one file for some time, without a key.
//!
//! The signature is HMAC-SHA-256 over what the request means, not over how it is written: the uid decoded, the moment, and
//! every other parameter decoded and sorted. So any encoding of the same uid is the same file, and a parameter that is
//! changed, added or taken away makes another request. Each part has its length in front, so no two requests have the
//! same bytes. Uid and moment are read by the very function that the handler reads them with.

use std::fmt;
use std::sync::Arc;

use axum::http::Uri;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::percent_decode_str;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::text::{base64url, rfc3339};
use crate::api;

/// Shorter secrets can be guessed.
const MIN_SECRET_BYTES: usize = 32;
/// What every signed message starts with; another meaning gets another word.
const PURPOSE: &[u8] = b"des-signed-url-1";
/// A signature for GET is good for HEAD too. Nothing else can be signed.
const METHOD: &[u8] = b"GET";

/// What a signed URL has beside the file's own parameters.
const EXPIRES: &str = "expires";
const KEY: &str = "key";
const SIGNATURE: &str = "signature";

/// Secrets that sign URLs. The first one signs, each of them is good.
#[derive(Clone, Default)]
pub struct UrlKeys(Arc<[UrlKey]>);

struct UrlKey {
    id: Arc<str>,
    secret: String,
}

impl fmt::Debug for UrlKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

/// Why a URL cannot be signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// There is nothing to sign with.
    #[error("there is no signing key{}; set DES_URL_SIGNING_KEYS to id:secret pairs", .0.as_ref().map(|id| format!(" {id:?}")).unwrap_or_default())]
    NoKey(Option<String>),
    /// It is not the path and query of a file.
    #[error("{0}")]
    NoFile(String),
    /// It has parameters that only a signed URL has.
    #[error("the URL has {0} already: sign the one without")]
    Signed(&'static str),
}

/// Why a signed URL lets nobody in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// It is not what was signed, or nobody here signed it.
    #[error("the signature is not one for this URL")]
    Wrong,
    /// It was good.
    #[error("the URL was good until {0}; ask for a new one")]
    Expired(String),
    /// It would be good for too long.
    #[error("the URL is good until {until}, which is longer than the {longest_s} s that are allowed")]
    TooLong {
        /// Until when.
        until: String,
        /// What is allowed, in seconds.
        longest_s: u64,
    },
}

impl Refused {
    /// A stable word for programs.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Wrong => "signature-wrong",
            Self::Expired(_) => "signature-expired",
            Self::TooLong { .. } => "signature-too-long",
        }
    }
}

impl UrlKeys {
    /// Reads `id:secret,id:secret`.
    ///
    /// # Errors
    /// A sentence for people without any secret in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<UrlKey> = Vec::new();
        for (at, pair) in text.split(',').map(str::trim).enumerate().filter(|(_, pair)| !pair.is_empty()) {
            let wrong = |why: &str| format!("pair {}: {why}", at + 1);
            let (id, secret) = pair.split_once(':').ok_or_else(|| wrong("expected id:secret (secret not shown)"))?;
            if id.is_empty() || id.len() > 64 || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
                return Err(wrong("the id is 1 to 64 of the characters A-Z a-z 0-9 . _ -"));
            }
            if secret.len() < MIN_SECRET_BYTES {
                return Err(wrong("the secret has fewer than 32 characters; `openssl rand -hex 32` makes a good one"));
            }
            if keys.iter().any(|key| *key.id == *id) {
                return Err(wrong("the id stands twice"));
            }
            keys.push(UrlKey { id: id.into(), secret: secret.to_owned() });
        }
        if keys.is_empty() { Err("expected id:secret pairs".to_owned()) } else { Ok(Self(keys.into())) }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Signs the path and query of a file (`/files/{uid}?created_at=...`, and what else is asked for), good until
    /// `expires_s` (Unix seconds). Answers them with the parameters of the signature.
    ///
    /// # Errors
    /// [`SignError`] when there is no such key, or this is no file.
    pub fn sign(&self, id: Option<&str>, target: &str, expires_s: u64) -> Result<String, SignError> {
        let key = match id {
            None => self.0.first(),
            Some(id) => self.0.iter().find(|key| *key.id == *id),
        };
        let key = key.ok_or_else(|| SignError::NoKey(id.map(str::to_owned)))?;
        let no_file = |why: &dyn fmt::Display| SignError::NoFile(format!("{target:?} is not a file's URL: {why}"));
        let uri: Uri = target.parse().map_err(|e| no_file(&e))?;
        let query = uri.query().unwrap_or_default();
        if let Some(name) = [EXPIRES, KEY, SIGNATURE].into_iter().find(|name| values(query, name).next().is_some()) {
            return Err(SignError::Signed(name));
        }
        let expires = expires_s.to_string();
        let signature = key.signature(&uri, &expires).map_err(|e| no_file(&e))?;
        Ok(format!("{}?{query}&{EXPIRES}={expires}&{KEY}={}&{SIGNATURE}={signature}", uri.path(), key.id))
    }

    /// Whether a request comes with a signature, right or wrong.
    pub(super) fn signed(uri: &Uri) -> bool {
        values(uri.query().unwrap_or_default(), SIGNATURE).next().is_some()
    }

    /// The id of the key that signed this request to read a file. A moment is asked about only when the signature is
    /// right.
    pub(crate) fn verify(&self, uri: &Uri, now_ms: u64, longest_s: u64) -> Result<Arc<str>, Refused> {
        let query = uri.query().unwrap_or_default();
        let once = |name| {
            let mut all = values(query, name);
            all.next().filter(|_| all.next().is_none()).ok_or(Refused::Wrong)
        };
        let (expires, id, signature) = (once(EXPIRES)?, once(KEY)?, once(SIGNATURE)?);
        let key = self.0.iter().find(|key| *key.id == *id).ok_or(Refused::Wrong)?;
        let right = key.signature(uri, expires).map_err(|_| Refused::Wrong)?;
        // Compared as text: a signature has one spelling.
        if !bool::from(right.as_bytes().ct_eq(signature.as_bytes())) {
            return Err(Refused::Wrong);
        }
        let expires_s: u64 = expires.parse().map_err(|_| Refused::Wrong)?;
        let until = || rfc3339(expires_s.saturating_mul(1000));
        if expires_s.saturating_mul(1000) <= now_ms {
            return Err(Refused::Expired(until()));
        }
        if expires_s > (now_ms / 1000).saturating_add(longest_s) {
            return Err(Refused::TooLong { until: until(), longest_s });
        }
        Ok(key.id.clone())
    }
}

impl UrlKey {
    /// The signature of a request for a file.
    fn signature(&self, uri: &Uri, expires: &str) -> Result<String, crate::error::Error> {
        let (uid, created_at) = api::file_of(uri)?;
        let mut mac = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes()).expect("HMAC takes keys of any length");
        let mut part = |bytes: &[u8]| {
            mac.update(&(bytes.len() as u64).to_le_bytes());
            mac.update(bytes);
        };
        for bytes in [PURPOSE, METHOD, uid.as_bytes(), created_at.as_str().as_bytes()] {
            part(bytes);
        }
        for bytes in [expires, &*self.id] {
            part(bytes.as_bytes());
        }
        for (name, value) in others(uri.query().unwrap_or_default()) {
            part(name.as_bytes());
            part(&value);
        }
        Ok(base64url(&mac.finalize().into_bytes()))
    }
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn values<'q>(query: &'q str, name: &str) -> impl Iterator<Item = &'q str> {
    pairs(query).filter(move |(other, _)| *other == name).map(|(_, value)| value)
}

/// Every parameter that has no place of its own in the message, sorted. Names are taken as they are written, as the
/// handlers take them; values are decoded as forms are.
fn others(query: &str) -> Vec<(&str, Vec<u8>)> {
    let own = |name: &str| matches!(name, "created_at" | EXPIRES | KEY | SIGNATURE);
    let decoded = |value: &str| percent_decode_str(&value.replace('+', " ")).collect();
    let mut others: Vec<_> =
        pairs(query).filter(|(name, _)| !own(name)).map(|(name, value)| (name, decoded(value))).collect();
    others.sort_unstable();
    others
}
