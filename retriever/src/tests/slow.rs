//! Clients that read slowly or go away: memory stays bounded, and the store is not read for nobody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use des_shared::archive::Streams;
use des_shared::layout::bigfile_key;
use des_shared::segment::ShardFormat;
use des_shared::shard::ShardWriter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::support::{NOON, Place, Rig, key};

/// A file that is never read to its end here, so its hash may be any.
const SIZE: u64 = 512 << 20;
/// What may be on its way to a client that does not read: buffers of the retriever and, for the most part, of the kernel
/// for what it sends.
const ON_ITS_WAY: u64 = 12 << 20;

fn put(place: &Place) {
    let sha256 = [7; 32];
    let mut writer = ShardWriter::new(ShardFormat::V3, None, 1).expect("a writer");
    let mut out = writer.header().to_vec();
    writer.append_bigfile("movie.mp4", sha256, SIZE, None).expect("appended");
    out.extend_from_slice(&writer.finish().expect("finished"));
    place.put(&key("movie.mp4", 0), out);
    let object = bigfile_key("_bigFiles", &sha256);
    place.put(&object, b"");
    // A hole: it takes no room on the disk.
    let file = std::fs::File::options().write(true).open(place.folder.path().join(object)).expect("it is there");
    file.set_len(SIZE).expect("grown");
}

/// Waits until the streams' bytes stay the same, and gives them.
async fn settled(streams: &Streams) -> u64 {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut last = (streams.bytes(), Instant::now());
    while Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = streams.bytes();
        if now != last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() > Duration::from_millis(500) && now > 0 {
            return now;
        }
    }
    panic!("the store is read on and on: {} bytes", streams.bytes());
}

async fn closed(streams: &Streams) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while streams.open() > 0 {
        assert!(Instant::now() < deadline, "a stream of a client that is gone is still open");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn ask(address: &str, range: &str) -> TcpStream {
    // Otherwise the kernel takes as much for the client as it likes: 27 MiB were seen.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(256 << 10).expect("set");
    let mut client = socket.connect(address.parse().expect("an address")).await.expect("connected");
    let request = format!("GET /files/movie.mp4?created_at={NOON} HTTP/1.1\r\nHost: {address}\r\n{range}\r\n");
    client.write_all(request.as_bytes()).await.expect("sent");
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_is_waited_for_and_a_gone_one_is_not() {
    let place = Place::new();
    put(&place);
    let streams: Arc<Streams> = place.recording.streams();
    let server = Rig::new(&place, 8).serve().await;
    let address = server.url("").trim_start_matches("http://").to_owned();
    let mut client = ask(&address, "").await;
    let before = settled(&streams).await;
    assert!(before <= ON_ITS_WAY, "{before} bytes were read for a client that took none");
    // It takes some, and as much is read behind it.
    let mut taken = vec![0; 32 << 20];
    client.read_exact(&mut taken).await.expect("the beginning");
    let after = settled(&streams).await;
    assert!(
        after > before && after <= (32 << 20) + ON_ITS_WAY,
        "{after} bytes were read for a client that took 32 MiB"
    );
    assert_eq!(streams.open(), 1);
    drop(client);
    closed(&streams).await;
    assert!(streams.bytes() < SIZE / 4, "{} bytes were read for nobody", streams.bytes());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_before_the_first_byte_stops_the_reading() {
    let place = Place::new();
    put(&place);
    let streams = place.recording.streams();
    let server = Rig::new(&place, 8).serve().await;
    let address = server.url("").trim_start_matches("http://").to_owned();
    // All of the file is hashed before a part of it is sent.
    let client = ask(&address, "Range: bytes=5-6\r\n").await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while streams.bytes() == 0 {
        assert!(Instant::now() < deadline, "nothing is read");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(client);
    closed(&streams).await;
    assert!(streams.bytes() < SIZE, "it was read to its end");
    server.stop().await;
}
