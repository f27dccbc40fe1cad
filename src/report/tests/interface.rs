//! The HTTP interface, held to what it says of itself by published tools. That the server is as its description says is
//! shown by the real one, in `tests/it/interface.rs`.

use super::{tools::python, *};
use crate::{neighbour::run, pid1::Exit};

#[tokio::test(flavor = "multi_thread")]
async fn the_api_describes_itself() {
    let world = world(guarded()).await;
    let (status, _, document) = world.with_token("GET", "/openapi.json").await;
    assert_eq!((status, document["openapi"].as_str()), (200, Some("3.1.0")));
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
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
    let output = run(python(&["-c", parse, &body]));
    assert_eq!(
        output.exit,
        Exit::Code(0),
        "{}\n{body}",
        String::from_utf8_lossy(&output.stderr)
    );
    let families: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(families > 25, "{families}");
}
