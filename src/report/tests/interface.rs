//! The HTTP interface, held to what it says of itself by published tools.

use super::{tools::python, *};

#[tokio::test(flavor = "multi_thread")]
async fn the_api_describes_itself() {
    let world = world(guarded()).await;
    let (status, _, document) = world.with_token("GET", "/openapi.json").await;
    assert_eq!((status, document["openapi"].as_str()), (200, Some("3.1.0")));
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_is_as_its_description_says() {
    let world = world(guarded()).await;
    for event in [
        Event::BootPhase { phase: Phase::Done },
        Event::ServiceStarted {
            service: "gateway".into(),
            pid: 42,
        },
        Event::SnapshotSuspicious {
            commit: commit(),
            why: "most of it is gone".into(),
        },
        Event::StoreUnavailable { why: "gone".into() },
    ] {
        world.events.emit(event);
    }
    world.report.carry().await;
    let (_, _, mut document) = world.with_token("GET", "/openapi.json").await;
    // A poll waits as long as it is asked to; the tool asks for a minute at a time.
    for path in ["/events", "/operations/{id}"] {
        let parameters = document["paths"][path]["get"]["parameters"].as_array_mut().unwrap();
        let wait = parameters
            .iter_mut()
            .find(|parameter| parameter["name"] == "wait")
            .unwrap();
        wait["schema"]["pattern"] = json!("^([0-9]{1,2}ms|0)$");
    }
    let description = world.dir.path().join("openapi.json");
    std::fs::write(&description, document.to_string()).unwrap();
    let addr = world.addr;
    let output = tokio::task::spawn_blocking(move || {
        python()
            .args(["-m", "schemathesis.cli", "run", "--no-color"])
            .arg(description)
            .args(["--url", &format!("http://{addr}")])
            .args(["-H", &format!("Authorization: Bearer {TOKEN}")])
            .args([
                "--checks",
                "all",
                "--max-examples",
                "20",
                "--seed",
                "1",
                "--generation-deterministic",
            ])
            // A probe that says no is no error of the server.
            .args(["--exclude-checks", "not_a_server_error", "--request-timeout", "30"])
            .current_dir(std::env::temp_dir())
            .output()
            .unwrap()
    })
    .await
    .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The OpenMetrics parser of Prometheus' own Python client.
#[tokio::test(flavor = "multi_thread")]
async fn metrics_parse_as_openmetrics() {
    let world = world(guarded()).await;
    world.events.emit(Event::ServiceStarted {
        service: "gate\"way\\\n".into(),
        pid: 42,
    });
    world.report.carry().await;
    let (status, head, body) = world
        .ask(format!(
            "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {TOKEN}\r\n\r\n"
        ))
        .await;
    assert_eq!(status, 200);
    assert!(
        head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"),
        "{head}"
    );
    let parse = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
families = {family.name: family for family in text_string_to_metric_families(sys.argv[1])}
assert families['moltinit_service_starts'].samples[0].labels == {'service': 'gate\"way\\\\\\n'}, families
for name, family in families.items():
    assert name.startswith('moltinit_') and family.documentation.endswith('.'), family
    assert not family.unit or name.endswith(family.unit), family
print(len(families))
";
    let output = python().args(["-c", parse, &body]).output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{body}",
        String::from_utf8_lossy(&output.stderr)
    );
    let families: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(families > 25, "{families}");
}
