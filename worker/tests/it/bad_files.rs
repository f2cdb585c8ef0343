//! One bad file never stops a shard: each kind of it, and the counts that must hold.

use std::os::unix::fs::{PermissionsExt, symlink};

use des_shared::receipt::FailureReason as Reason;
use des_shared::segment::{PackOptions, SegmentFile};
use des_worker::error::{Advice, PackError};
use des_worker::pack::{NoHooks, Packed, pack_segment};
use des_worker::source::SourceError;
use nix::sys::stat::Mode;

use crate::gate::{Gate, Trick};
use crate::world::{World, contents, line, noise};

async fn pack(world: &World, files: Vec<SegmentFile>) -> Packed {
    let segment = world.segment(0, PackOptions::default(), files);
    let packed = pack_segment(&world.pack_job(&segment), Vec::new(), world.sources(), &NoHooks).await.unwrap();
    assert_eq!(packed.totals.files_packed + packed.totals.files_failed, segment.files.len() as u64);
    assert_eq!(packed.failed.len() as u64, packed.totals.files_failed);
    assert_eq!(packed.failed_files(&segment).len(), packed.failed.len());
    if packed.object.is_some() {
        assert_eq!(contents(world, &segment).await.len() as u64, packed.totals.files_packed);
    }
    packed
}

/// The reason of a lone bad file beside a good one, for both sizes of files.
async fn reason_of(world: &World, bad: SegmentFile) -> Reason {
    let packed = pack(world, vec![world.file("good", b"good"), bad]).await;
    assert_eq!(packed.totals.files_packed, 1);
    assert!(!packed.failed[0].message.is_empty());
    packed.failed[0].reason
}

#[tokio::test]
async fn every_kind_of_bad_file_has_its_reason() {
    let world = World::new();
    let src = world.src();
    std::fs::create_dir(src.join("folder")).unwrap();
    nix::unistd::mkfifo(&src.join("pipe"), Mode::S_IRWXU).unwrap();
    std::os::unix::net::UnixListener::bind(src.join("socket")).unwrap();
    std::fs::write(world.outside().join("secret"), b"secret").unwrap();
    symlink(world.outside().join("secret"), src.join("link-out")).unwrap();
    symlink(world.outside(), src.join("dir-out")).unwrap();
    symlink(src.join("loop"), src.join("loop")).unwrap();
    symlink(src.join("nothing"), src.join("dangling")).unwrap();
    world.write("real", b"12345");
    let cases = [
        ("nothing", Reason::Missing),
        ("dangling", Reason::Missing),
        ("real/below-a-file", Reason::Missing),
        ("folder", Reason::NotAFile),
        ("pipe", Reason::NotAFile),
        ("socket", Reason::NotAFile),
        ("link-out", Reason::OutsideRoots),
        ("dir-out/secret", Reason::OutsideRoots),
        ("dir-out/no-such-file", Reason::OutsideRoots),
        ("../secret", Reason::OutsideRoots),
        ("folder/../../secret", Reason::OutsideRoots),
        ("loop", Reason::BadSource),
    ];
    for (name, expected) in cases {
        for size in [6, 11 << 20] {
            let world = &world;
            let got = reason_of(world, line("bad", size, &src.join(name))).await;
            assert_eq!(got, expected, "{name} of {size} bytes");
            std::fs::remove_dir_all(world.outside().join("zone")).unwrap();
            std::fs::create_dir(world.outside().join("zone")).unwrap();
        }
    }
    for source in ["relative/path", "", "s3://", "s3://bucket", "s3:///key", "/a\0b"] {
        let mut bad = line("bad", 1, &src);
        source.clone_into(&mut bad.source);
        assert_eq!(reason_of(&world, bad).await, Reason::BadSource, "{source:?}");
        std::fs::remove_dir_all(world.outside().join("zone")).unwrap();
        std::fs::create_dir(world.outside().join("zone")).unwrap();
    }
    let mut bad = line("bad", 1, &src);
    "s3://bucket/key".clone_into(&mut bad.source);
    assert_eq!(reason_of(&world, bad).await, Reason::OutsideRoots);
}

#[tokio::test]
async fn links_inside_the_roots_are_followed() {
    let world = World::new();
    let target = world.write("target", b"inside");
    symlink(&target, world.src().join("link")).unwrap();
    let packed = pack(&world, vec![line("link", 6, &world.src().join("link"))]).await;
    assert_eq!(packed.totals.files_packed, 1);
}

#[tokio::test]
async fn a_size_that_lies_is_a_failure_in_both_directions_and_sizes() {
    for (real, claimed) in [(5, 4), (5, 6), (0, 1), (1, 0), (5, 11 << 20), (11 << 20, 5), (11 << 20, (11 << 20) + 1)] {
        let world = World::new();
        let path = world.write("liar", &noise(1, real));
        assert_eq!(reason_of(&world, line("liar", claimed, &path)).await, Reason::SizeMismatch, "{real} as {claimed}");
        assert!(world.objects().iter().all(|key| !key.starts_with("_bigFiles")), "{:?}", world.objects());
    }
}

#[tokio::test]
async fn an_unreadable_file_is_a_failure_and_root_reads_everything() {
    let world = World::new();
    let path = world.write("locked", b"locked");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    let packed = pack(&world, vec![world.file("good", b"good"), line("locked", 6, &path)]).await;
    if nix::unistd::geteuid().is_root() {
        assert_eq!(packed.totals.files_packed, 2);
    } else {
        assert_eq!(packed.failed[0].reason, Reason::Unreadable);
    }
    // The same fault without depending on who runs the test.
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![world.file("good", b"g"), world.file("locked", b"l")]);
    let gate = Gate::new(world.sources());
    gate.trick("locked", Trick::Fail(SourceError::file(Reason::Unreadable, "permission denied")));
    let packed = pack_segment(&world.pack_job(&segment), Vec::new(), gate, &NoHooks).await.unwrap();
    assert_eq!((packed.totals.files_packed, packed.failed[0].reason), (1, Reason::Unreadable));
}

#[tokio::test]
async fn a_big_file_that_changes_between_its_two_reads_is_a_failure_and_leaves_nothing() {
    let world = World::new();
    let segment = world.segment(
        0,
        PackOptions::default(),
        vec![world.file("good", b"g"), world.file("big", &noise(1, 11 << 20))],
    );
    let gate = Gate::new(world.sources());
    let path = world.src().join("big");
    gate.before_opening(2, move || std::fs::write(&path, noise(2, 11 << 20)).unwrap());
    let packed = pack_segment(&world.pack_job(&segment), Vec::new(), gate, &NoHooks).await.unwrap();
    assert_eq!((packed.totals.files_packed, packed.failed[0].reason), (1, Reason::Changed));
    assert_eq!(world.objects().len(), 1, "only the shard, no big file and no open upload: {:?}", world.objects());
}

#[tokio::test]
async fn a_big_file_that_vanishes_between_its_two_reads_is_a_failure() {
    let world = World::new();
    let segment = world.segment(
        0,
        PackOptions::default(),
        vec![world.file("good", b"g"), world.file("big", &noise(1, 11 << 20))],
    );
    let gate = Gate::new(world.sources());
    let path = world.src().join("big");
    gate.before_opening(2, move || std::fs::remove_file(&path).unwrap());
    let packed = pack_segment(&world.pack_job(&segment), Vec::new(), gate, &NoHooks).await.unwrap();
    assert_eq!((packed.totals.files_packed, packed.failed[0].reason), (1, Reason::Missing));
    assert_eq!(world.objects().len(), 1, "{:?}", world.objects());
}

#[tokio::test]
async fn when_every_file_fails_no_shard_is_published() {
    let world = World::new();
    let files = (0..300).map(|n| line(&format!("gone-{n}"), 3, &world.src().join("gone"))).collect();
    let packed = pack(&world, files).await;
    assert_eq!((packed.object, packed.totals.files_failed), (None, 300));
    assert!(world.objects().is_empty());
}

#[tokio::test]
async fn a_fault_of_the_worker_is_no_fault_of_a_file() {
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![world.file("a", b"a"), world.file("b", b"b")]);
    let gate = Gate::new(world.sources());
    gate.trick("b", Trick::Fail(SourceError::Worker("too many open files".to_owned())));
    let error = pack_segment(&world.pack_job(&segment), Vec::new(), gate, &NoHooks).await.unwrap_err();
    assert!(matches!(&error, PackError::Sources(why) if why.contains("too many open files")), "{error}");
    assert_eq!(error.advice(), Advice::TryLater);
    assert!(world.objects().is_empty());
}

#[tokio::test]
async fn a_root_that_is_gone_is_no_fault_of_a_file() {
    let world = World::new();
    let segment = world.segment(0, PackOptions::default(), vec![world.file("a", b"a")]);
    let sources = world.sources();
    std::fs::remove_dir_all(world.src()).unwrap();
    let error = pack_segment(&world.pack_job(&segment), Vec::new(), sources, &NoHooks).await.unwrap_err();
    assert_eq!(error.advice(), Advice::TryLater, "{error}");
}
