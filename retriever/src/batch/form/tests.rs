//! What only very large archives show: places and sizes beyond 32 bits. Read by Python's own modules.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::process::Command;

use super::{Form, Member};

/// Large enough to need more than 32 bits for its size and for what follows it.
const HUGE: u64 = (4 << 30) + 12_345;

/// A file of zeros that is huge, and one behind it. The zeros are a hole on the disk.
fn write(form: Form, path: &std::path::Path, described: bool) {
    let mut file = File::create(path).expect("created");
    let mut archive = form.archive(String::new());
    let zeros = vec![0; 16 << 20];
    let mut out = Vec::new();
    let member = |name, size, whole| Member {
        name,
        size,
        whole,
        index: None,
        status: 200,
        content_type: "text/plain",
        created_at: None,
    };
    archive.begin(&member("huge", HUGE, None), &mut out);
    file.write_all(&out).expect("written");
    let mut left = HUGE;
    while left > 0 {
        let now = left.min(zeros.len() as u64);
        archive.passed(&zeros[..now as usize]);
        left -= now;
    }
    file.seek(SeekFrom::Current(HUGE as i64)).expect("sought");
    out.clear();
    archive.end(&mut out);
    let small = b"behind it";
    let whole = (!described).then_some(&small[..]);
    archive.begin(&member("small/\u{e4}", small.len() as u64, whole), &mut out);
    out.extend_from_slice(small);
    archive.passed(small);
    archive.end(&mut out);
    archive.finish(&mut out);
    file.write_all(&out).expect("written");
}

fn python(script: &str, path: &std::path::Path) -> String {
    let ran = Command::new("python3").args(["-c", script]).arg(path).output().expect("python3 is installed");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    String::from_utf8(ran.stdout).expect("UTF-8").trim().to_owned()
}

#[test]
fn zip_goes_beyond_32_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("huge.zip");
    let script = "import sys, zipfile
z = zipfile.ZipFile(sys.argv[1])
print([(i.filename, i.file_size) for i in z.infolist()], z.read(z.infolist()[1]), z.infolist()[0].CRC)
z.open('huge').read(1000)";
    for described in [false, true] {
        write(Form::Zip, &path, described);
        let zeros = {
            let mut crc = crc32fast::Hasher::new();
            let piece = vec![0; 16 << 20];
            let mut left = HUGE;
            while left > 0 {
                let now = left.min(piece.len() as u64);
                crc.update(&piece[..now as usize]);
                left -= now;
            }
            crc.finalize()
        };
        assert_eq!(python(script, &path), format!("[('huge', {HUGE}), ('small/ä', 9)] b'behind it' {zeros}"));
    }
}

#[test]
fn tar_goes_beyond_32_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("huge.tar");
    write(Form::Tar, &path, false);
    let script = "import sys, tarfile
t = tarfile.open(sys.argv[1])
print([(m.name, m.size) for m in t.getmembers()], t.extractfile('small/ä').read())";
    assert_eq!(python(script, &path), format!("[('huge', {HUGE}), ('small/ä', 9)] b'behind it'"));
}
