//! Every uid through real clients: what each of them makes of a path before it is sent.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::support::{Content, Place, Rig, put_in_all_slots, v3};
use super::wire::{Asked, Client};

const AT: &str = "?created_at=2025-03-10T12:00:00Z";

/// As a client sends a path that has slashes.
const WITH_SLASHES: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

const UIDS: &[&str] = &[
    "plain",
    "a/b/c.json",
    "/leading",
    "trailing/",
    "a//b",
    "//",
    "..",
    ".",
    "../up",
    "a/../b",
    "a/./b",
    "a/..",
    "...",
    ".hidden",
    "100%",
    "%41",
    "%2F",
    "%",
    "a+b",
    "a b",
    " ",
    "a?b=c&d",
    "a#b",
    "a;b,c:d@e!$'()*",
    "a\\b",
    "a\"b<c>d",
    "a|b^c`d{e}f[g]",
    "tab\there",
    "line\r\nbreak",
    "nul\0here",
    "日本/ä",
    "é",
    "e\u{301}",
    "\u{1f600}\u{202e}x",
    "\u{fffd}",
    "batch/of/things",
    "12345678901234567890123456789",
    "٣",
    "files/files",
];

async fn fixture() -> (Place, super::support::Server, String) {
    let place = Place::new();
    let files: Content = UIDS.iter().map(|uid| ((*uid).to_owned(), format!("<{uid}>").into_bytes())).collect();
    put_in_all_slots(&place, "0000", &v3(1, &files));
    let server = Rig::new(&place, 4).serve().await;
    let address = server.url("").trim_start_matches("http://").to_owned();
    (place, server, address)
}

#[tokio::test]
async fn as_they_are_sent() {
    let (_place, server, address) = fixture().await;
    for uid in UIDS {
        for encoded in [
            utf8_percent_encode(uid, NON_ALPHANUMERIC).to_string(),
            utf8_percent_encode(uid, NON_ALPHANUMERIC).to_string().to_lowercase(),
            utf8_percent_encode(uid, WITH_SLASHES).to_string(),
        ] {
            // Lower case is for the escapes; a uid of capitals would be another.
            if encoded != encoded.to_lowercase() || *uid == uid.to_lowercase() {
                for client in [Client::ByHand, Client::Curl] {
                    let target = format!("/files/{encoded}{AT}");
                    let reply = client.ask(&address, &Asked { method: "GET", target, headers: Vec::new() }).await;
                    let body = String::from_utf8_lossy(&reply.body);
                    assert_eq!((reply.status, body.as_ref()), (200, format!("<{uid}>").as_str()), "{encoded}");
                }
            }
        }
    }
    server.stop().await;
}

/// Clients that follow the URL standard, browsers among them, resolve components that are `.` or `..`, escaped or not. With
/// the slashes escaped every other uid survives them.
#[tokio::test]
async fn through_a_client_that_normalises() {
    let (_place, server, _) = fixture().await;
    let client = reqwest::Client::new();
    for uid in UIDS {
        let url = server.url(&format!("/files/{}{AT}", utf8_percent_encode(uid, NON_ALPHANUMERIC)));
        let reply = client.get(&url).send().await.expect("an answer");
        if matches!(*uid, "." | "..") {
            assert_eq!(reply.status(), 404, "it asked for something else, and gets nothing");
            continue;
        }
        assert_eq!(reply.status(), 200, "{url}");
        assert_eq!(reply.text().await.expect("text"), format!("<{uid}>"), "{url}");
    }
    server.stop().await;
}
