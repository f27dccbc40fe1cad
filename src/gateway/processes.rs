//! Gateways that are running, whoever started them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::unistd::Pid;

/// Titles that a gateway gives itself, over its arguments.
const TITLES: [&str; 3] = ["openclaw-gateway", "moltbot-gateway", "clawdbot-gateway"];
/// Names of the program before it has one.
const PROGRAMS: [&str; 6] = [
    "openclaw",
    "openclaw.mjs",
    "moltbot",
    "moltbot.mjs",
    "clawdbot",
    "clawdbot.mjs",
];

/// The gateways alive on a state directory.
pub fn gateways_on(state_dir: &Path) -> Vec<Pid> {
    let state_dir = resolved(state_dir);
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        is_gateway(&words(&read("cmdline")))
            && state_dir_of(&words(&read("environ"))).is_some_and(|dir| resolved(&dir) == state_dir)
    })
    .map(Pid::from_raw)
    .collect()
}

fn words(of_proc: &[u8]) -> Vec<String> {
    let words = of_proc.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn is_gateway(cmdline: &[String]) -> bool {
    let Some(first) = cmdline.first() else {
        return false;
    };
    // A title may be padded or have words after it.
    if TITLES.iter().any(|title| first.split(' ').next() == Some(title)) {
        return true;
    }
    let name = |word: &String| Path::new(word).file_name()?.to_str().map(str::to_owned);
    let program = cmdline
        .iter()
        .position(|word| name(word).is_some_and(|name| PROGRAMS.contains(&name.as_str())));
    program.is_some_and(|at| {
        let mut arguments = cmdline[at + 1..].iter().filter(|word| !word.starts_with('-'));
        arguments.next().is_some_and(|word| word == "gateway")
            && arguments
                .next()
                .is_none_or(|word| word == "run" || word.parse::<u16>().is_ok())
    })
}

fn state_dir_of(environ: &[String]) -> Option<PathBuf> {
    let get = |name: &str| {
        let value = environ
            .iter()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.filter(|value| !value.is_empty()).map(PathBuf::from)
    };
    get("OPENCLAW_STATE_DIR").or_else(|| Some(get("HOME")?.join(".openclaw")))
}

fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_is_known_by_its_title_or_its_command() {
        let is = |line: &[&str]| is_gateway(&line.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert!(is(&["openclaw-gateway"]));
        assert!(is(&["openclaw-gateway     "]));
        assert!(is(&[
            "node",
            "/usr/lib/node_modules/openclaw/openclaw.mjs",
            "gateway",
            "--port",
            "18789"
        ]));
        assert!(is(&["/bin/sh", "/usr/bin/clawdbot", "gateway", "run"]));
        assert!(!is(&["openclaw"]));
        assert!(!is(&["node", "openclaw.mjs", "gateway", "status"]));
        assert!(!is(&["node", "openclaw.mjs", "devices", "list"]));
        assert!(!is(&["vim", "gateway"]));
        assert!(!is(&[]));
    }

    #[test]
    fn its_state_directory_is_in_its_environment() {
        let of = |env: &[&str]| state_dir_of(&env.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["A=1", "HOME=/root"]), Some("/root/.openclaw".into()));
        assert_eq!(of(&["HOME=/root", "OPENCLAW_STATE_DIR=/s"]), Some("/s".into()));
        assert_eq!(
            of(&["OPENCLAW_STATE_DIR=", "HOME=/root"]),
            Some("/root/.openclaw".into())
        );
        assert_eq!(of(&[]), None);
    }
}
