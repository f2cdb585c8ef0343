//! What only very large archives show: places and sizes beyond 32 bits. Read by Python's own modules.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::process::Command;

use super::{Form, Member};

/// Large enough to need more than 32 bits for its size and for what follows it.
const HUGE: u64 = (4 << 30) + 12_345;

/// A file of zeros that is huge, and two behind it, one with its checksum in front and one with it behind. The zeros are
/// a hole on the disk.
fn write(form: Form, path: &std::path::Path) {
    let mut file = File::create(path).expect("created");
    let mut archive = form.archive(String::new());
    let member = |name, size, whole| Member {
        name,
        size,
        whole,
        index: None,
        status: 200,
        content_type: "text/plain",
        created_at: None,
    };
    let mut out = Vec::new();
    archive.begin(&member("huge", HUGE, None), &mut out);
    file.write_all(&out).expect("written");
    let zeros = vec![0; 16 << 20];
    let mut left = HUGE;
    while left > 0 {
        let now = left.min(zeros.len() as u64);
        archive.passed(&zeros[..now as usize]);
        left -= now;
    }
    file.seek(SeekFrom::Current(HUGE.cast_signed())).expect("sought");
    out.clear();
    archive.end(&mut out);
    let small: &'static [u8] = b"behind it";
    for (name, whole) in [("small/\u{e4}", Some(small)), ("late", None)] {
        archive.begin(&member(name, small.len() as u64, whole), &mut out);
        out.extend_from_slice(small);
        archive.passed(small);
        archive.end(&mut out);
    }
    archive.finish(&mut out);
    file.write_all(&out).expect("written");
}

fn python(script: &str, path: &std::path::Path) -> String {
    let ran = Command::new("python3").args(["-c", script]).arg(path).env("LC_ALL", "C.UTF-8").output();
    let ran = ran.expect("python3 is installed");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("UTF-8").trim().to_owned()
}

#[test]
fn both_archives_go_beyond_32_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("archive");
    // Python checks the checksum of what it reads to its end.
    let zip = "import sys, zipfile
z = zipfile.ZipFile(sys.argv[1])
z.open('huge').read(1000)
print([(i.filename, i.file_size) for i in z.infolist()], [z.read(i) for i in z.infolist()[1:]])";
    let tar = "import sys, tarfile
t = tarfile.open(sys.argv[1])
print([(m.name, m.size) for m in t.getmembers()], [t.extractfile(m).read() for m in t.getmembers()[1:]])";
    for (form, script) in [(Form::Zip, zip), (Form::Tar, tar)] {
        write(form, &path);
        let said = python(script, &path);
        let expected = format!("[('huge', {HUGE}), ('small/ä', 9), ('late', 9)] [b'behind it', b'behind it']");
        assert_eq!(said, expected, "{form:?}");
    }
}
