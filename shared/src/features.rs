//! Optional parts of a build, and what to say where one is missing.
//!
//! Each part is a cargo feature of the crates that need it. Configuration types exist in every build, so that a setting
//! or URL of a missing part is refused with its name instead of being unknown.

/// What to say when somebody asks for a part that was left out: `feature` is cargo's name of it, `what` is what it gives.
pub fn missing(feature: &str, what: &str) -> String {
    format!("this program was built without {what}; build it again with `--features {feature}` (or `--features full`)")
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_cargo_flag_is_named() {
        let text = super::missing("s3", "S3 buckets");
        assert!(text.contains("--features s3") && text.contains("S3 buckets"), "{text}");
    }
}
