//! From the SDK's errors to what a caller should do.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::super::call::Call;
use super::super::{StoreError, StoreErrorKind};

/// What a bare 404 (a HEAD has no body to say more) is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Object,
    Upload,
    Bucket,
}

pub(super) fn s3_error<E>(call: &Call, error: &SdkError<E, HttpResponse>, about: Refused) -> StoreError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(refused) => {
            let status = refused.raw().status().as_u16();
            refusal(call, status, (refused.err().code().unwrap_or(""), refused.err().message()), about)
        }
        SdkError::TimeoutError(_) => call.error(StoreErrorKind::Unavailable, "no answer in time"),
        SdkError::ResponseError(answer) => {
            let status = answer.raw().status().as_u16();
            let kind = if status < 400 { StoreErrorKind::Unavailable } else { kind_of(status, "", about) };
            call.error(kind, format!("an unreadable answer with status {status}: {}", causes(error)))
        }
        _ => unsent(call, error),
    }
}

/// A refusal with S3's code, "" for none, and what it says for people.
pub(super) fn refusal(call: &Call, status: u16, (code, said): (&str, Option<&str>), about: Refused) -> StoreError {
    let kind = kind_of(status, code, about);
    let said = said.unwrap_or("no further explanation");
    call.error(kind, format!("the server answered {status} {code}: {said}{}", advice(kind, code)))
}

/// A request that never got an answer, or was never sent.
fn unsent(call: &Call, error: &(dyn Error + 'static)) -> StoreError {
    let why = causes(error);
    // The SDK has no type for this in its public errors; all its providers' errors say the word.
    if why.contains("credentials provider") || why.contains("provided credentials") || why.contains("credential") {
        let advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role";
        return call.error(StoreErrorKind::Denied, format!("no usable credentials ({why}); {advice}"));
    }
    call.error(StoreErrorKind::Unavailable, format!("the server cannot be reached: {why}"))
}

/// The whole chain of causes; the outermost says little ("dispatch failure").
pub(super) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The error code where there is one, else the status.
pub(super) fn kind_of(status: u16, code: &str, about: Refused) -> StoreErrorKind {
    use StoreErrorKind as K;
    match code {
        "NoSuchKey" => K::NotFound,
        "NoSuchBucket" => K::NoSuchBucket,
        "NoSuchUpload" => K::UploadGone,
        "InvalidRange" => K::InvalidRange,
        "PreconditionFailed" => K::AlreadyExists,
        "ConditionalRequestConflict" | "OperationAborted" => K::Conflict,
        "AccessDenied"
        | "AllAccessDisabled"
        | "AccountProblem"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "InvalidToken"
        | "TokenRefreshRequired"
        | "RequestTimeTooSkewed"
        | "NotSignedUp"
        | "InvalidSecurity"
        | "AuthorizationHeaderMalformed"
        | "PermanentRedirect" => K::Denied,
        "InsufficientStorage" | "QuotaExceeded" | "XMinioStorageFull" | "InsufficientCapacity" => K::Full,
        "SlowDown" | "ThrottlingException" | "RequestLimitExceeded" | "TooManyRequests" => K::Throttled,
        "InternalError" | "ServiceUnavailable" | "RequestTimeout" | "BadDigest" | "IncompleteBody" => K::Unavailable,
        _ => kind_of_status(status, about),
    }
}

fn kind_of_status(status: u16, about: Refused) -> StoreErrorKind {
    use StoreErrorKind as K;
    match (status, about) {
        (404, Refused::Object) => K::NotFound,
        (404, Refused::Upload) => K::UploadGone,
        (404, Refused::Bucket) => K::NoSuchBucket,
        (301 | 307 | 401 | 403, _) => K::Denied,
        (409, _) => K::Conflict,
        (412, _) => K::AlreadyExists,
        (416, _) => K::InvalidRange,
        (507, _) => K::Full,
        // Not implemented: asking again does not help.
        (501, _) => K::Invalid,
        (429, _) => K::Throttled,
        (408 | 425 | 500.., _) => K::Unavailable,
        _ => K::Invalid,
    }
}

fn advice(kind: StoreErrorKind, code: &str) -> &'static str {
    match (kind, code) {
        (_, "RequestTimeTooSkewed") => "; set this machine's clock",
        (_, "PermanentRedirect" | "AuthorizationHeaderMalformed") => "; is the region right?",
        (StoreErrorKind::Denied, _) => "; check the credentials and what they may do",
        (StoreErrorKind::NoSuchBucket, _) => "; create the bucket or name another",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use StoreErrorKind as K;

    #[test]
    fn codes_say_what_to_do() {
        let table = [
            (404, "NoSuchKey", Refused::Object, K::NotFound),
            (404, "NoSuchBucket", Refused::Object, K::NoSuchBucket),
            (404, "NoSuchUpload", Refused::Upload, K::UploadGone),
            (404, "", Refused::Object, K::NotFound),
            (404, "NotFound", Refused::Object, K::NotFound),
            (404, "", Refused::Upload, K::UploadGone),
            (404, "", Refused::Bucket, K::NoSuchBucket),
            (403, "", Refused::Object, K::Denied),
            (403, "SignatureDoesNotMatch", Refused::Object, K::Denied),
            (403, "InvalidAccessKeyId", Refused::Object, K::Denied),
            (400, "ExpiredToken", Refused::Object, K::Denied),
            (301, "PermanentRedirect", Refused::Object, K::Denied),
            (412, "PreconditionFailed", Refused::Object, K::AlreadyExists),
            (412, "", Refused::Object, K::AlreadyExists),
            (409, "ConditionalRequestConflict", Refused::Upload, K::Conflict),
            (416, "InvalidRange", Refused::Object, K::InvalidRange),
            (507, "InsufficientStorage", Refused::Object, K::Full),
            (403, "QuotaExceeded", Refused::Object, K::Full),
            (503, "SlowDown", Refused::Object, K::Throttled),
            (503, "", Refused::Object, K::Unavailable),
            (429, "", Refused::Object, K::Throttled),
            (500, "InternalError", Refused::Object, K::Unavailable),
            (502, "", Refused::Object, K::Unavailable),
            (501, "NotImplemented", Refused::Object, K::Invalid),
            (400, "EntityTooSmall", Refused::Upload, K::Invalid),
        ];
        for (status, code, about, kind) in table {
            assert_eq!(kind_of(status, code, about), kind, "{status} {code} {about:?}");
        }
    }
}
