//! Trees that nobody of ours would commit, in a store that others can write to.

use std::fs;

use super::{
    kit::{Kit, dir, meta},
    restored,
};
use crate::state::{
    head::Head,
    model::{CommitId, Delta, Entry, Extent, Hash, Kind, Reason, Tree},
    segment::{Damage, SegmentError, SegmentWriter, Source, line::Decoder, reader::ReadError},
};

fn entry(kind: Kind) -> Entry {
    Entry { kind, ..dir() }
}

/// Commits a tree as it is, as somebody who can write to the bucket may.
fn commit_unchecked(kit: &mut Kit, tree: Tree, chunks: &[&[u8]]) -> CommitId {
    let head = Head::default();
    let id = kit.generation.next_id();
    let mut writer = SegmentWriter::new(&head, &kit.path("spool"), id, None).unwrap();
    for chunk in chunks {
        writer.put(chunk).unwrap();
    }
    let first = writer.finish(meta(id, None, Reason::Change), Delta::default()).unwrap();
    let stored: Vec<_> = first.chunks.values().copied().collect();
    kit.history.commit(&first).unwrap();
    let sources = [Source {
        commit: id,
        size: first.size(),
    }];
    let head = Head::loaded(id, tree, stored, &sources);
    let id = kit.generation.next_id();
    let writer = SegmentWriter::new(&head, &kit.path("spool"), id, None).unwrap();
    let second = writer.finish(meta(id, None, Reason::Change), Delta::default()).unwrap();
    kit.history.commit(&second).unwrap();
    id
}

#[test]
fn hostile_trees_are_refused_and_touch_nothing() {
    let bytes: &[u8] = b"0123456789";
    let data = |from, len| Extent::Data {
        chunk: Hash::of(bytes),
        from,
        len,
    };
    let file = |len, extents| entry(Kind::File { len, extents });
    let good = || file(10, vec![data(0, 10)]);
    let link = |target: &str| entry(Kind::Symlink { target: target.into() });
    let cases: Vec<(&str, Vec<(&str, Entry)>)> = vec![
        ("absolute", vec![("/etc/passwd", good())]),
        ("parent", vec![("state/../../up", good())]),
        ("parent", vec![("..", dir())]),
        ("dot", vec![("state/./x", good())]),
        ("empty part", vec![("state//x", good())]),
        ("nul", vec![("state/a\0b", good())]),
        (
            "through a link",
            vec![("state/l", link("/etc")), ("state/l/passwd", good())],
        ),
        ("through a file", vec![("state/f", good()), ("state/f/x", good())]),
        ("no parent", vec![("state/none/x", good())]),
        ("root is a link", vec![("other", link("/etc")), ("other/x", good())]),
        ("too long", vec![("state/f", file(11, vec![data(0, 10)]))]),
        ("too short", vec![("state/f", file(9, vec![data(0, 10)]))]),
        ("beyond its chunk", vec![("state/f", file(10, vec![data(1, 10)]))]),
        ("wraps around", vec![("state/f", file(10, vec![data(u32::MAX, 10)]))]),
        (
            "huge",
            vec![("state/f", file(u64::MAX, vec![Extent::Hole { len: u64::MAX }]))],
        ),
        (
            "hard link out",
            vec![(
                "state/h",
                entry(Kind::HardLink {
                    to: b"/etc/passwd".to_vec(),
                }),
            )],
        ),
        (
            "hard link to a link",
            vec![
                ("state/a", link("/etc/passwd")),
                (
                    "state/h",
                    entry(Kind::HardLink {
                        to: b"state/a".to_vec(),
                    }),
                ),
            ],
        ),
        (
            "hard link to itself",
            vec![(
                "state/h",
                entry(Kind::HardLink {
                    to: b"state/h".to_vec(),
                }),
            )],
        ),
        (
            "mode",
            vec![(
                "state/f",
                Entry {
                    mode: 0o100644,
                    ..good()
                },
            )],
        ),
        ("empty link", vec![("state/l", link(""))]),
    ];
    for (name, entries) in cases {
        let mut kit = Kit::new();
        let mut tree = Tree::from([(b"state".to_vec(), dir())]);
        tree.extend(
            entries
                .into_iter()
                .map(|(path, entry)| (path.as_bytes().to_vec(), entry)),
        );
        let id = commit_unchecked(&mut kit, tree, &[bytes]);
        let before = fs::read_dir(kit.path("")).unwrap().count();
        let error = kit.reopened().load(id).unwrap_err();
        assert!(matches!(error, ReadError::Damaged { .. }), "{name}: {error}");
        // The commit before it, which is empty, is taken instead.
        let (_, placed, passed) = restored(kit.recover_to("back"));
        assert_eq!((passed.len(), placed.files), (1, 0), "{name}");
        assert!(fs::read_dir(kit.path("")).unwrap().count() <= before + 1, "{name}");
    }
}

#[test]
fn few_bytes_that_would_take_much_memory_are_refused() {
    let entry =
        r#"{"entry":{"path":"state/f","mode":420,"uid":0,"gid":0,"mtime_ns":0,"kind":"file","len":1,"extents":[]}}"#;
    let holes = format!("{{\"more\":[{}]}}", vec!["[1]"; 4096].join(","));
    let chunk = format!(
        r#"{{"chunk":{{"sha256":"{}","raw":1,"source":0,"at":8,"len":1}}}}"#,
        "0".repeat(64)
    );
    let sources = [CommitId {
        generation: ulid::Ulid::generate(),
        seq: 1,
    }];
    for (lines, most) in [
        ([entry, &holes], 64),
        ([entry, entry], 1 << 18),
        ([&chunk, &chunk], 1 << 18),
    ] {
        let mut decoder = Decoder::new(&sources, Tree::new());
        decoder.line(lines[0].as_bytes()).unwrap();
        let taken = (0..=most)
            .take_while(|_| decoder.line(lines[1].as_bytes()).is_ok())
            .count();
        assert!(taken > 50 && taken < most, "{taken} of {most}");
        let said = decoder.line(lines[1].as_bytes()).unwrap_err();
        assert!(matches!(said, Damage::Malformed(_)), "{said}");
    }
}

#[test]
fn what_no_reader_would_take_is_not_committed() {
    let kit = Kit::new();
    let mut generation = kit.reopened().begin(ulid::Ulid::generate(), None);
    let id = generation.next_id();
    let head = Head::default();
    let mut writer = SegmentWriter::new(&head, &kit.path("spool"), id, None).unwrap();
    let chunk = writer.put(b"1").unwrap();
    let pair = [Extent::Hole { len: 1 }, Extent::Data { chunk, from: 0, len: 1 }];
    let extents: Vec<Extent> = pair.into_iter().cycle().take(1 << 18).collect();
    let kind = Kind::File { len: 1 << 18, extents };
    let upsert = [(b"state".to_vec(), dir()), (b"state/f".to_vec(), entry(kind))].into();
    let refused = writer.finish(meta(id, None, Reason::Change), Delta { upsert, remove: vec![] });
    assert!(matches!(refused, Err(SegmentError::TooMuch { .. })));
}

#[test]
fn a_tree_that_could_not_be_restored_is_not_committed() {
    let kit = Kit::new();
    let mut generation = kit.reopened().begin(ulid::Ulid::generate(), None);
    let mut refused = |head: &Head, delta: Delta| {
        let id = generation.next_id();
        let writer = SegmentWriter::new(head, &kit.path("spool"), id, None).unwrap();
        matches!(
            writer.finish(meta(id, None, Reason::Change), delta),
            Err(SegmentError::Tree(_))
        )
    };
    let upsert = |path: &str, entry| (path.as_bytes().to_vec(), entry);
    let empty = || {
        entry(Kind::File {
            len: 0,
            extents: vec![],
        })
    };
    let orphan = Delta {
        upsert: vec![upsert("state/f", empty())],
        remove: vec![],
    };
    assert!(refused(&Head::default(), orphan));
    let tree = Tree::from([
        upsert("state", dir()),
        upsert("state/d", dir()),
        upsert("state/d/f", empty()),
        upsert(
            "state/h",
            entry(Kind::HardLink {
                to: b"state/d/f".to_vec(),
            }),
        ),
    ]);
    let head = Head::loaded(generation_id(), tree, vec![], &[]);
    let removing = |paths: &[&str]| Delta {
        upsert: vec![],
        remove: paths.iter().map(|path| path.as_bytes().to_vec()).collect(),
    };
    assert!(refused(&head, removing(&["state/d"])));
    assert!(refused(&head, removing(&["state/d", "state/d/f"])));
    assert!(!refused(&head, removing(&["state/d", "state/d/f", "state/h"])));
    let to_file = Delta {
        upsert: vec![upsert("state/d", empty())],
        remove: vec![],
    };
    assert!(refused(&head, to_file));
}

fn generation_id() -> CommitId {
    CommitId {
        generation: ulid::Ulid::generate(),
        seq: 1,
    }
}

#[test]
fn a_sidecar_is_not_restored_beside_its_database() {
    let mut kit = Kit::new();
    let bytes: &[u8] = b"0123456789";
    let extents = vec![Extent::Data {
        chunk: Hash::of(bytes),
        from: 0,
        len: 10,
    }];
    let tree = Tree::from([
        (b"state".to_vec(), dir()),
        (
            b"state/db".to_vec(),
            entry(Kind::Sqlite {
                len: 10,
                page_size: 512,
                extents: extents.clone(),
            }),
        ),
        (
            b"state/db-wal".to_vec(),
            entry(Kind::File {
                len: 10,
                extents: extents.clone(),
            }),
        ),
        (b"state/other-wal".to_vec(), entry(Kind::File { len: 10, extents })),
        (
            b"state/z".to_vec(),
            entry(Kind::HardLink {
                to: b"state/db-wal".to_vec(),
            }),
        ),
    ]);
    commit_unchecked(&mut kit, tree, &[bytes]);
    restored(kit.recover_to("back"));
    let mut names: Vec<_> = fs::read_dir(kit.path("back"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["db", "other-wal"]);
}
