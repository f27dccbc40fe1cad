//! What only gets another name is in every commit, whatever else goes on.

use std::collections::BTreeSet;

use super::*;

/// Files and directories that go to and fro.
const THINGS: usize = 200;

/// The file that a thing is, or has in it.
fn file(side: &str, thing: usize) -> String {
    match thing % 2 {
        0 => format!("{side}/{thing}"),
        _ => format!("{side}/{thing}/in/it"),
    }
}

/// Moves each thing to the other side, and back, never twice within a commit.
fn move_things(live: &Path, done: &AtomicBool) {
    for n in (0..THINGS).cycle() {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let [left, right] = ["left", "right"].map(|side| live.join(side).join(n.to_string()));
        let (from, to) = if left.exists() { (left, right) } else { (right, left) };
        fs::rename(from, to).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_moves_while_others_never_rest_is_in_every_commit_under_one_name() {
    let kit = Kit::new();
    for n in 0..THINGS {
        kit.write(&file("left", n), n.to_string());
    }
    fs::create_dir(kit.live().join("right")).unwrap();
    let live = Live::start(kit);
    live.commit();
    let (place, done) = (live.kit.live(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let stop = StopOnDrop(&done);
        scope.spawn(|| move_things(&place, &done));
        // Never so long that the kernel has nothing more to tell.
        scope.spawn(|| {
            for n in 0.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                fs::write(place.join(format!("busy-{}", n % 20)), n.to_string()).unwrap();
                fs::rename(place.join(format!("busy-{}", n % 20)), place.join("replaced")).unwrap();
            }
        });
        // Each is tried again and again, as something of it is not in.
        let (mut made, until) = (BTreeSet::new(), Instant::now() + DEADLINE);
        while made.len() < 6 {
            assert!(Instant::now() < until, "{made:?}");
            made.insert(live.commit().id);
        }
        drop(stop);
    });
    let history = live.kit.reopened();
    for id in history.restorable().unwrap() {
        let tree = history.load(id).unwrap().tree().clone();
        for n in 0..THINGS {
            let is_there = |side| tree.contains_key(format!("state/{}", file(side, n)).as_bytes());
            assert!(is_there("left") || is_there("right"), "{n} in {id}");
        }
    }
}
