//! The Worker of `worker/`, in real workerd: its own tests, which run under Node.

use std::{path::Path, process::Command};

use crate::support::MOLTINIT;

/// Runs `worker/tests/NAME.test.mjs`.
fn node_test(name: &str) {
    let worker = Path::new(env!("CARGO_MANIFEST_DIR")).join("worker");
    let output = Command::new("node")
        .args(["--test", "--test-reporter=spec", "--test-timeout=900000"])
        .arg(worker.join("tests").join(format!("{name}.test.mjs")))
        .current_dir(&worker)
        .env("MOLTINIT_TEST_BIN", MOLTINIT)
        .output()
        .expect("node");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{}", said.concat());
    // A file in which no test is found is a success too, and so is one whose tests are skipped.
    let count = |what: &str| {
        let line = said[0]
            .lines()
            .find_map(|line| line.trim_start_matches("ℹ ").strip_prefix(what));
        line.and_then(|number| number.trim().parse::<u32>().ok())
    };
    assert!(count("pass ").is_some_and(|passed| passed > 0), "{}", said.concat());
    assert_eq!(
        (count("skipped "), count("todo ")),
        (Some(0), Some(0)),
        "{}",
        said.concat()
    );
}

#[test]
fn the_worker_lets_in_only_whom_access_let_in() {
    node_test("access");
}

#[test]
fn the_worker_asks_access_for_its_keys_when_it_must() {
    node_test("keys");
}

#[test]
fn the_worker_keeps_every_callback_once_and_only_ours() {
    node_test("events");
}

#[test]
fn the_worker_relays_cdp_to_whoever_has_the_secret() {
    node_test("cdp");
}

#[test]
fn the_worker_leads_to_the_gateway_once_it_is_up() {
    node_test("proxy");
}

#[test]
fn the_workers_admin_page_does_what_it_says() {
    node_test("admin");
}

/// The Worker polls the probes and receives the callbacks across a SIGKILL, an outage of its own, and a shutdown.
#[test]
fn the_worker_misses_no_event_whatever_happens() {
    node_test("life");
}

#[test]
fn wrangler_takes_the_worker_as_it_is() {
    node_test("build");
}

#[test]
fn the_worker_type_checks() {
    let worker = Path::new(env!("CARGO_MANIFEST_DIR")).join("worker");
    let output = Command::new(worker.join("node_modules/.bin/tsc"))
        .current_dir(&worker)
        .output()
        .expect("run the tests by ./scripts/test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
