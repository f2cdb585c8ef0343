//! One key: what it is called, what it may do, and the line of the file that says so.
//!
//! ```text
//! NAME SCOPES [expires=RFC 3339] [rate=REQUESTS A SECOND] [burst=REQUESTS] sha256=HEX
//! ```
//!
//! The digest stands last, so that a line that was cut off while it was written is never taken for a whole one. Nothing
//! that is wrong with a line is told with the line's own words: somebody may have written the key there.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use des_shared::clock::Dice;
use des_shared::created_at::CreatedAt;
use des_shared::shard::{hex32, parse_hex32};
use sha2::{Digest, Sha256};

use super::limit::Limit;
use super::text::{base64url, rfc3339};

/// What a new key starts with, so that scanners for leaked secrets know it.
const PREFIX: &str = "des_";
/// Random bytes of a new key.
const RANDOM_BYTES: usize = 32;
/// A shorter key is not taken, whatever its digest: it is not one that a machine made.
pub(super) const MIN_KEY_BYTES: usize = 32;
/// The longest name of a key, in bytes.
const MAX_NAME_BYTES: usize = 64;

/// Something a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Read files, one or many, and what is known of them.
    Read = 1,
    /// Delete files, and list what is deleted.
    Delete = 2,
    /// List what is deleted.
    Admin = 4,
}

impl Scope {
    const ALL: [Self; 3] = [Self::Read, Self::Delete, Self::Admin];

    /// Its word in a file and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Delete => "delete",
            Self::Admin => "admin",
        }
    }
}

/// A set of scopes. None contains another: a key may do what its scopes say and no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    /// These scopes.
    pub fn of(scopes: &[Scope]) -> Self {
        Self(scopes.iter().fold(0, |set, scope| set | *scope as u8))
    }

    /// Whether a scope is in the set.
    pub fn has(self, scope: Scope) -> bool {
        self.0 & scope as u8 != 0
    }

    /// What is in either set.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether both sets have a scope in common.
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// `read,delete`.
impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = Scope::ALL.iter().filter(|scope| self.has(**scope)).map(|scope| scope.name()).collect();
        f.write_str(&names.join(","))
    }
}

impl FromStr for Scopes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').try_fold(Self::default(), |set, word| {
            let scope = Scope::ALL.into_iter().find(|scope| scope.name() == word.trim());
            let scope = scope.ok_or("expected scopes out of read, delete and admin, separated by commas")?;
            Ok(Self(set.0 | scope as u8))
        })
    }
}

/// A key as far as anybody but its owner knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What logs and tombstones call it.
    pub name: Arc<str>,
    /// What it may do.
    pub scopes: Scopes,
    /// Until when it is good, Unix milliseconds; `None` for ever.
    pub expires_ms: Option<u64>,
    /// How many requests it may make.
    pub limit: Option<Limit>,
    /// SHA-256 of the key.
    pub(super) digest: [u8; 32],
}

/// The line of a file.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.scopes)?;
        if let Some(expires_ms) = self.expires_ms {
            write!(f, " expires={}", rfc3339(expires_ms))?;
        }
        if let Some(Limit { per_second, burst }) = self.limit {
            write!(f, " rate={per_second} burst={burst}")?;
        }
        write!(f, " sha256={}", hex32(&self.digest))
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, scopes, options @ .., digest] = &words[..] else {
            return Err("expected NAME SCOPES [expires=...] [rate=...] [burst=...] sha256=...".to_owned());
        };
        let digest = digest.strip_prefix("sha256=").and_then(|hex| parse_hex32(hex.as_bytes()));
        let digest = digest.ok_or("the line must end in sha256= and 64 digits 0-9 a-f")?;
        let name = check_name(name)?.into();
        let scopes = scopes.parse()?;
        let (mut expires_ms, mut rate, mut burst) = (None, None, None);
        for option in options {
            let known = match option.split_once('=') {
                Some(("expires", text)) => expires_ms.replace(parse_expiry(text)?).is_none(),
                Some(("rate", text)) => rate.replace(number(text)?).is_none(),
                Some(("burst", text)) => burst.replace(number(text)?).is_none(),
                _ => false,
            };
            if !known {
                return Err(
                    "between scopes and sha256= only expires=, rate= and burst= may stand, once each".to_owned()
                );
            }
        }
        let limit = match (rate, burst) {
            (None, None) => None,
            (Some(per_second), burst) => Some(Limit { per_second, burst: burst.unwrap_or(per_second) }),
            (None, Some(_)) => return Err("burst= needs rate=".to_owned()),
        };
        Ok(Self { name, scopes, expires_ms, limit, digest })
    }
}

/// A name of 1 to 64 of the characters that need no quoting anywhere.
fn check_name(name: &str) -> Result<&str, String> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() <= MAX_NAME_BYTES && name.bytes().all(ok) {
        Ok(name)
    } else {
        Err("a key's name is 1 to 64 of the characters A-Z a-z 0-9 . _ - @, a letter or digit first".to_owned())
    }
}

fn number(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|n| (1..=Limit::MOST).contains(n));
    number.ok_or_else(|| format!("rate and burst are whole numbers from 1 to {}", Limit::MOST))
}

fn parse_expiry(text: &str) -> Result<u64, String> {
    let wrong = "expires is not a time such as 2027-01-31T00:00:00Z";
    let micros = CreatedAt::parse(text).map_err(|_| wrong)?.unix_micros();
    Ok(u64::try_from(micros).map_err(|_| wrong)? / 1000)
}

/// A key that was just made, with its secret.
pub struct NewKey {
    /// What its owner sends. Nobody else ever learns it.
    pub secret: String,
    /// What goes into the file.
    pub key: Key,
}

impl fmt::Debug for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewKey").field("key", &self.key).finish_non_exhaustive()
    }
}

impl NewKey {
    /// Makes a key of 256 random bits.
    ///
    /// # Errors
    /// A sentence for people when the name, the scopes or the limit cannot be.
    pub fn make(
        name: &str,
        scopes: Scopes,
        expires_ms: Option<u64>,
        limit: Option<Limit>,
        dice: &Dice,
    ) -> Result<Self, String> {
        let name = check_name(name)?.into();
        if scopes == Scopes::default() {
            return Err("a key without scopes may do nothing".to_owned());
        }
        if limit.is_some_and(|l| ![l.per_second, l.burst].iter().all(|n| (1..=Limit::MOST).contains(n))) {
            return Err(format!("rate and burst are whole numbers from 1 to {}", Limit::MOST));
        }
        let secret = format!("{PREFIX}{}", base64url(&dice.bytes::<RANDOM_BYTES>()));
        let digest = Sha256::digest(secret.as_bytes()).into();
        Ok(Self { secret, key: Key { name, scopes, expires_ms, limit, digest } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_read_back_from_its_line() {
        let dice = Dice::seeded(1);
        let scopes = Scopes::of(&[Scope::Read, Scope::Delete]);
        let limit = Some(Limit { per_second: 50, burst: 100 });
        let first = NewKey::make("back-up@home", scopes, Some(1_800_000_000_000), limit, &dice).expect("a key");
        let line = first.key.to_string();
        assert!(line.starts_with("back-up@home read,delete expires=2027-01-15T08:00:00Z rate=50 burst=100 sha256="));
        assert_eq!(line.parse::<Key>(), Ok(first.key.clone()));
        assert!(first.secret.starts_with("des_") && first.secret.len() == 47, "{}", first.secret.len());
        assert!(!line.contains(&first.secret) && !format!("{first:?}").contains(&first.secret));
        assert_ne!(NewKey::make("b", scopes, None, None, &dice).expect("a key").secret, first.secret);
        assert!(NewKey::make("two words", scopes, None, None, &dice).is_err());
        assert!(NewKey::make("b", Scopes::default(), None, None, &dice).is_err());
    }

    #[test]
    fn wrong_lines_are_told_without_their_words() {
        let hex = "ab".repeat(32);
        let right = format!("a read rate=5 sha256={hex}").parse::<Key>().expect("right");
        assert_eq!(right.limit, Some(Limit { per_second: 5, burst: 5 }));
        for (line, why) in [
            ("hunter2".to_owned(), "expected NAME"),
            ("a read hunter2".to_owned(), "must end in sha256"),
            (format!("a read sha256={}", &hex[1..]), "64 digits"),
            (format!("a read sha256={}", hex.to_uppercase()), "64 digits"),
            (format!("a read sha256={hex} rate=5"), "must end in sha256"),
            (format!("a hunter2 sha256={hex}"), "read, delete and admin"),
            (format!("hunter2! read sha256={hex}"), "name"),
            (format!("a read hunter2=1 sha256={hex}"), "only expires="),
            (format!("a read hunter2 sha256={hex}"), "only expires="),
            (format!("a read rate=1 rate=2 sha256={hex}"), "once each"),
            (format!("a read rate=0 sha256={hex}"), "whole numbers"),
            (format!("a read burst=3 sha256={hex}"), "needs rate="),
            (format!("a read expires=hunter2 sha256={hex}"), "expires is not"),
        ] {
            let told = line.parse::<Key>().expect_err(&line);
            assert!(told.contains(why) && !told.contains("hunter2"), "{line}: {told}");
        }
    }

    #[test]
    fn no_beginning_of_a_line_is_a_line() {
        let whole = format!("a read,delete expires=2027-01-01 rate=50 burst=77 sha256={}", "ab".repeat(32));
        for end in 0..whole.len() {
            assert!(whole[..end].parse::<Key>().is_err(), "{}", &whole[..end]);
        }
        assert!(whole.parse::<Key>().is_ok());
    }
}
