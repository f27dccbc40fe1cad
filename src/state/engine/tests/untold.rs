//! What the kernel tells nobody of.

use std::os::fd::AsRawFd;

use nix::{
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    sys::stat::Mode,
    unistd::linkat,
};

use super::*;

const MAPPED: &str = r#"
import mmap, sys
file = open(sys.argv[1], "r+b")
map = mmap.mmap(file.fileno(), 0)
print("open"); sys.stdin.readline()
map[0:1] = b"1"
map.flush()
print("written"); sys.stdin.readline()
"#;

fn is_captured_by(ask: fn(&Live)) {
    let kit = Kit::new();
    let at = kit.live();
    kit.write("mapped", vec![b'0'; 9000]);
    let mut map = python(MAPPED, &at.join("mapped"), 0);
    assert_eq!(map.line(), "open");
    // Open by a name that is gone, and by none.
    let mut renamed = fs::File::create(at.join("one")).unwrap();
    fs::hard_link(at.join("one"), at.join("renamed")).unwrap();
    fs::remove_file(at.join("one")).unwrap();
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let mut named = fs::File::from(nix::fcntl::open(&at, flags, Mode::S_IRWXU).unwrap());
    let itself = format!("/proc/self/fd/{}", named.as_raw_fd());
    let follow = AtFlags::AT_SYMLINK_FOLLOW;
    linkat(AT_FDCWD, itself.as_str(), AT_FDCWD, &at.join("named"), follow).unwrap();
    let mut live = Live::start(kit);
    live.commit();
    map.tell();
    assert_eq!(map.line(), "written");
    renamed.write_all(b"written").unwrap();
    named.write_all(b"written").unwrap();
    ask(&live);
    let back = live.restore().1;
    assert_eq!(fs::read(back.join("mapped")).unwrap()[0], b'1');
    for name in ["renamed", "named"] {
        assert_eq!(fs::read_to_string(back.join(name)).unwrap(), "written", "{name}");
    }
}

#[test]
fn what_nobody_tells_of_is_in_a_snapshot_that_is_asked_for() {
    is_captured_by(|live| assert_eq!(live.commit().warnings, Vec::<String>::new()));
}

#[test]
fn what_nobody_tells_of_is_in_the_last_snapshot() {
    is_captured_by(|live| drop(live.finish().unwrap()));
}
