//! What a gateway's end means (pure).

/// Exit code of the current generation for what a restart does not mend (`EX_CONFIG`).
const EX_CONFIG: i32 = 78;
/// More of a reason than this helps nobody.
const REASON_MAX: usize = 600;

/// Why a gateway ended before it was ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It refuses its configuration. `named`: and says what is wrong with it.
    Configuration { reason: String, named: bool },
    /// There is another one on the same state or port.
    SecondInstance,
    /// Neither another start nor another configuration helps.
    Hopeless(String),
    /// Anything else; its last words.
    Other(String),
}

/// Reads an exit code and the last lines of both streams.
pub fn fault(status: i32, tail: &[String]) -> Fault {
    if let Some(reason) = refused_configuration(tail) {
        return Fault::Configuration { reason, named: true };
    }
    let says = |text: &str| tail.iter().any(|line| line.contains(text));
    if says("gateway already running") || says("another gateway instance is already listening") {
        return Fault::SecondInstance;
    }
    let last = last_words(tail);
    // A downgrade: the state was written by a newer version.
    if status == EX_CONFIG && says("newer than this build") {
        return Fault::Hopeless(last);
    }
    if status == EX_CONFIG {
        return Fault::Configuration {
            reason: last,
            named: false,
        };
    }
    Fault::Other(last)
}

/// From `Invalid config at FILE:` on, the lines that name what is wrong.
fn refused_configuration(tail: &[String]) -> Option<String> {
    const SAID: &str = "Invalid config at ";
    let (at, first) = tail
        .iter()
        .enumerate()
        .find_map(|(at, line)| Some((at, &line[line.find(SAID)?..])))?;
    let more = tail[at + 1..]
        .iter()
        .map(|line| line.trim())
        .take_while(|line| !line.is_empty() && !line.starts_with(['│', '◇']) && !line.starts_with("Run "));
    // The early generation writes its line breaks as `\n`.
    let first = first.replace("\\n", " ");
    let whole: Vec<&str> = std::iter::once(first.trim()).chain(more).collect();
    Some(cut(&whole.join(" ")))
}

/// The last line that says something.
pub fn last_words(tail: &[String]) -> String {
    let is_text = |line: &&str| line.chars().any(char::is_alphanumeric) && !line.starts_with("Run ");
    let last = tail.iter().rev().map(|line| line.trim()).find(is_text);
    cut(last.unwrap_or("it said nothing"))
}

fn cut(text: &str) -> String {
    text.chars().take(REASON_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(status: i32, tail: &str) -> Fault {
        fault(status, &tail.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    fn invalid(what: &str) -> Fault {
        let reason = format!("Invalid config at /root/.openclaw/openclaw.json: {what}");
        Fault::Configuration { reason, named: true }
    }

    #[test]
    fn the_current_generation_names_the_keys() {
        let tail = r#"2026-11-23T16:24:52.917+00:00 [gateway] spawn broker ready pid=27923
2026-11-23T16:24:55.052+00:00 Gateway failed to start: Invalid config at /root/.openclaw/openclaw.json:
openclaw.json:1 — gateway: Unrecognized key: "nonsense"
<root>: Unrecognized key: "bogus"
Run "openclaw doctor --fix" to repair, then retry.
If startup is still blocked, inspect the adjacent .bak backup before restoring it manually."#;
        assert_eq!(
            of(78, tail),
            invalid("openclaw.json:1 — gateway: Unrecognized key: \"nonsense\" <root>: Unrecognized key: \"bogus\"")
        );
    }

    #[test]
    fn the_early_generation_says_it_with_exit_code_1() {
        let tail = "Invalid config at /root/.openclaw/openclaw.json:\\n- channels.telegram: Unrecognized key: \"dm\"\n\
                    - <root>: Unrecognized key: \"bogus\"\n│\n◇  Config ──╮\nRun: openclaw doctor --fix";
        assert_eq!(
            of(1, tail),
            invalid("- channels.telegram: Unrecognized key: \"dm\" - <root>: Unrecognized key: \"bogus\"")
        );
    }

    #[test]
    fn what_is_not_the_configurations_fault_is_told_apart() {
        let lock = "GatewayLockError(\"gateway already running (pid 7); lock timeout after 5000ms\")";
        assert_eq!(of(78, lock), Fault::SecondInstance);
        let downgrade = "Refusing to start because 1 OpenClaw database schema(s) are newer than this build.";
        assert_eq!(of(78, downgrade), Fault::Hopeless(downgrade.to_owned()));
        let odd = Fault::Configuration {
            reason: "odd".to_owned(),
            named: false,
        };
        assert_eq!(of(78, "odd\n  \n"), odd);
        assert_eq!(of(1, "a\nError: b\n╯\n"), Fault::Other("Error: b".to_owned()));
        assert_eq!(of(1, ""), Fault::Other("it said nothing".to_owned()));
    }
}
