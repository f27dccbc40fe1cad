//! What is built in: from the registry only, pinned by a checksum, and under licences that go with ours. And what is
//! promised: by tests that exist.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;

/// Permissive, and wanting no more than to be named.
const LICENCES: [&str; 9] = [
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Whether an SPDX expression can be met by what is allowed. One of words, `OR`, `AND`, and brackets around an `OR`.
fn is_met(expression: &str) -> bool {
    expression.split(" AND ").all(|all| {
        let any = all
            .trim_matches(['(', ')'])
            .split(" OR ")
            .flat_map(|one| one.split('/'));
        any.map(str::trim).any(|one| LICENCES.contains(&one))
    })
}

#[test]
fn every_dependency_may_be_used_and_comes_from_the_registry() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{}", packages.len());
    for package in packages {
        let (name, licence) = (&package["name"], package["license"].as_str().unwrap_or_default());
        assert!(is_met(licence), "{name} is under {licence:?}");
        let source = package["source"].as_str().unwrap_or("registry+ of ours");
        assert!(source.starts_with("registry+"), "{name} is from {source}");
    }
}

#[test]
fn an_expression_is_met_by_one_of_its_choices_and_all_of_its_parts() {
    for met in [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-3.0 OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
    ] {
        assert!(is_met(met), "{met}");
    }
    for not in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND AGPL-3.0"] {
        assert!(!is_met(not), "{not}");
    }
}

/// The names of all functions in the sources below `dir`, and of all modules.
fn names(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            names(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let functions = text.split("fn ").skip(1);
            found.extend(functions.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
        }
        found.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
}

#[test]
fn every_test_that_a_promise_rests_on_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut known = BTreeSet::new();
    names(&root.join("src"), &mut known);
    names(&root.join("tests"), &mut known);
    let text = fs::read_to_string(root.join("docs/guarantees.md")).unwrap();
    let quoted: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    let is_name = |text: &&&str| {
        (text.contains('_') || text.contains("::"))
            && text.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_' | ':'))
    };
    let (mut tests, mut missing) = (0, Vec::new());
    for name in quoted.iter().filter(is_name) {
        tests += 1;
        missing.extend(name.split("::").filter(|part| !known.contains(*part)));
    }
    for path in quoted.iter().filter(|text| text.contains('/') && !text.contains(' ')) {
        missing.extend((!root.join(path.trim_start_matches("./")).exists()).then_some(*path));
    }
    assert!(
        missing.is_empty(),
        "docs/guarantees.md names what there is not: {missing:#?}"
    );
    assert!(tests > 50, "{tests}");
}
