//! A capture step by step, with what others do in between.

use std::fs;

use ulid::Ulid;

use super::*;
use crate::state::{model::CommitId, tests::kit::Kit};

fn roots(kit: &Kit) -> [Root; 1] {
    [Root {
        name: "state".into(),
        path: kit.live(),
    }]
}

fn writer<'a>(kit: &Kit, head: &'a Head) -> SegmentWriter<'a> {
    let id = CommitId {
        generation: Ulid::generate(),
        seq: 1,
    };
    SegmentWriter::new(head, &kit.path("spool"), id, None).unwrap()
}

fn all() -> Changes {
    let mut all = Changes::default();
    all.lost("test");
    all
}

#[test]
fn what_gets_another_name_before_it_is_read_is_said_to_be_missing() {
    let kit = Kit::new();
    kit.write("one", "kept");
    let (roots, head, watch, memory) = (roots(&kit), Head::default(), Watch::start(|| {}), Memory::default());
    let mut first = writer(&kit, &head);
    let mut look = Look::new(&roots, head.tree(), &memory, &watch);
    look.at(&all());
    let mut work = Work::new(head.tree(), &memory);
    fs::rename(kit.live().join("one"), kit.live().join("two")).unwrap();
    let Look { mut places, found, .. } = look;
    work.files(&mut places, &found, &mut first).unwrap();
    let captured = work.finish(Vec::new());
    assert!(captured.incomplete && captured.vanished);
}
