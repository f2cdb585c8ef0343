//! A real video, made by hand: a minute of VP8 in `WebM`, one key frame a second, red in its first half and blue in its
//! second, with so much padding that a player cannot hold it and has to ask for parts.

/// Seconds of the video.
pub(super) const SECONDS: u64 = 60;
/// Bytes of padding in each second.
const PADDING: usize = 400_000;

/// VP8 key frames of 64 by 48 pixels, as a browser's canvas encodes them.
const RED: &[u8] = b"\xf0\x03\x00\x9d\x01\x2a\x40\x00\x30\x00\x3e\x6d\x36\x98\x49\x24\x23\x22\xa1\x22\xa8\x00\x80\x0d\
    \x89\x67\x00\xd4\xf6\x80\x7e\x00\x00\x15\x1a\x63\x1c\x3e\x0c\xc0\x00\xfe\xf0\x9b\x43\xff\xf2\x0b\x96\x17\x5c\x8d\
    \x7f\xff\x20\x3f\xe4\x07\xfc\x80\xff\xf8\xf7\xc5\x0d\x8a\xb0\xc8\x00\x00\x00\x00";
const BLUE: &[u8] = b"\x90\x03\x00\x9d\x01\x2a\x40\x00\x30\x00\x3e\x6d\x36\x98\x49\x24\x23\x22\xa1\x22\xa8\x00\x80\x0d\
    \x89\x67\x00\x76\x00\x00\x2a\x34\xc6\x38\x7c\x19\x80\x00\xfe\xf9\x1d\xdb\xff\xfe\x40\x7f\xfe\x40\x7f\xfe\x40\x7f\
    \xfc\x80\xff\xfe\x21\x77\xb2\x03\x00\x00\x00\x00";

/// An EBML element: its id, its length in eight bytes, its content.
fn element(id: &[u8], content: &[u8]) -> Vec<u8> {
    [id, &((content.len() as u64) | (1 << 56)).to_be_bytes(), content].concat()
}

fn number(id: &[u8], value: u64) -> Vec<u8> {
    element(id, &value.to_be_bytes())
}

fn parent(id: &[u8], children: &[Vec<u8>]) -> Vec<u8> {
    element(id, &children.concat())
}

/// The file.
pub(super) fn movie() -> Vec<u8> {
    let (doctype, writer) = (element(b"\x42\x82", b"webm"), element(b"\x4d\x80", b"des"));
    let versions =
        [(b"\x42\x86", 1), (b"\x42\xf7", 1), (b"\x42\xf2", 4), (b"\x42\xf3", 8), (b"\x42\x87", 2), (b"\x42\x85", 2)];
    let versions = versions.map(|(id, value)| number(id, value));
    let head = parent(b"\x1a\x45\xdf\xa3", &[&versions[..], &[doctype]].concat());
    let duration = element(b"\x44\x89", &(SECONDS as f64 * 1000.0).to_be_bytes());
    let info = parent(
        b"\x15\x49\xa9\x66",
        &[number(b"\x2a\xd7\xb1", 1_000_000), duration, writer, element(b"\x57\x41", b"des")],
    );
    let size = parent(b"\xe0", &[number(b"\xb0", 64), number(b"\xba", 48)]);
    let codec = element(b"\x86", b"V_VP8");
    let track = parent(b"\xae", &[number(b"\xd7", 1), number(b"\x73\xc5", 1), number(b"\x83", 1), codec, size]);
    let tracks = parent(b"\x16\x54\xae\x6b", &[track]);
    let cluster = |second: u64| {
        let frame = if second < SECONDS / 2 { RED } else { BLUE };
        let block = element(b"\xa3", &[b"\x81\x00\x00\x80", frame].concat());
        parent(b"\x1f\x43\xb6\x75", &[number(b"\xe7", second * 1000), block, element(b"\xec", &vec![0; PADDING])])
    };
    let clusters: Vec<Vec<u8>> = (0..SECONDS).map(cluster).collect();
    // Where each second begins; every number has eight bytes, so the length is known before they are.
    let cues = |places: &[u64]| {
        let point = |(second, place): (usize, &u64)| {
            let position = parent(b"\xb7", &[number(b"\xf7", 1), number(b"\xf1", *place)]);
            parent(b"\xbb", &[number(b"\xb3", second as u64 * 1000), position])
        };
        parent(b"\x1c\x53\xbb\x6b", &places.iter().enumerate().map(point).collect::<Vec<_>>())
    };
    let mut at = (info.len() + tracks.len() + cues(&[0; SECONDS as usize]).len()) as u64;
    let places: Vec<u64> = clusters
        .iter()
        .map(|cluster| {
            at += cluster.len() as u64;
            at - cluster.len() as u64
        })
        .collect();
    let content = [&[info, tracks, cues(&places)][..], &clusters[..]].concat();
    [head, parent(b"\x18\x53\x80\x67", &content)].concat()
}
