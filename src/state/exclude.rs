//! What a snapshot leaves out: the documented list, by root and path.
//!
//! Only what a gateway makes again by itself, or what would harm it when it came back on another machine (locks),
//! is on it. A workspace is a person's work: next to nothing is left out of one, and nothing by a guess about names.
//!
//! By kind rather than by name, and so not in this list: sockets, pipes and devices, and the sidecars (`-wal`,
//! `-shm`, `-journal`) of a database that is captured through SQLite. A file that merely ends in `-journal` stays.

/// One line of the list.
pub struct Rule {
    /// The root it is about; `*` for each of them.
    pub root: &'static str,
    /// A path below the root. `*` is any run of characters within a part, `**` any number of parts, and a trailing
    /// slash means a directory with all that is in it.
    pub pattern: &'static str,
    pub why: &'static str,
}

const fn rule(root: &'static str, pattern: &'static str, why: &'static str) -> Rule {
    Rule { root, pattern, why }
}

const TEMPORARY: &str = "temporary files, thousands in one run";
const LOCK: &str = "a lock names a process of a machine that is gone";
const REBUILT: &str = "regenerated or installed again by the gateway";
const RESTORE: &str = "what a restore is staging, or has moved aside";
const BROWSER: &str = "the local browser's caches and locks; its cookies and logins stay";

/// The list, in the order in which `docs/store-format.md` shows it.
pub const RULES: &[Rule] = &[
    rule("state", "tmp/", TEMPORARY),
    rule("state", "**/*.tmp", TEMPORARY),
    rule("state", "cache/", REBUILT),
    rule("state", "npm/", REBUILT),
    rule("state", "plugin-skills/", REBUILT),
    rule("state", "**/*.generation-*.sqlite", REBUILT),
    // `sessions.json.lock`, `<uuid>.jsonl.lock`, but not a `Cargo.lock`.
    rule("state", "**/*.*.lock", LOCK),
    rule("state", "**/*lock.sqlite", LOCK),
    rule("state", "browser/*/user-data/**/*Cache/", BROWSER),
    rule("state", "browser/*/user-data/Singleton*", BROWSER),
    rule(
        "*",
        "**/node_modules/",
        "installed again from its lock file, which stays",
    ),
    rule("*", "**/.git/**/*.lock", LOCK),
    rule("*", "**/.moltinit-restoring-*/", RESTORE),
    rule("*", "*.before-restore-*/", RESTORE),
    // In what is a mount of its own.
    rule("*", "**/.before-restore-*/", RESTORE),
];

/// Below these of the `state` root the rules of `state` do not hold: they are workspaces, or hold what plugins and
/// people put there, and there nobody installs `node_modules` again either.
const KEPT_WHOLE: &[&str] = &["workspace*/**", "extensions/**", "hooks/**", "skills/**"];

/// The rule by which the path `rel` below `root` is left out. `dir` says that it is a directory.
pub fn excluded(root: &str, rel: &[u8], dir: bool) -> Option<&'static Rule> {
    let parts: Vec<&[u8]> = rel.split(|byte| *byte == b'/').collect();
    let whole = root == "state" && KEPT_WHOLE.iter().any(|kept| matches(&pattern_parts(kept), &parts));
    let plugin = root == "state" && parts[0] == b"extensions";
    RULES.iter().find(|rule| {
        let applies = match rule.root {
            "*" => !plugin || rule.why == RESTORE,
            name => name == root && !whole,
        };
        applies && rule_covers(rule, &parts, dir)
    })
}

fn rule_covers(rule: &Rule, parts: &[&[u8]], dir: bool) -> bool {
    match rule.pattern.strip_suffix('/') {
        None => matches(&pattern_parts(rule.pattern), parts),
        Some(pattern) => {
            let pattern = pattern_parts(pattern);
            // The path itself when it is a directory, or any directory above it.
            let last = if dir { parts.len() } else { parts.len() - 1 };
            (1..=last).any(|depth| matches(&pattern, &parts[..depth]))
        }
    }
}

fn pattern_parts(pattern: &'static str) -> Vec<&'static [u8]> {
    pattern.split('/').map(str::as_bytes).collect()
}

fn matches(pattern: &[&[u8]], path: &[&[u8]]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b"**", rest @ ..] => (0..=path.len()).any(|skip| matches(rest, &path[skip..])),
        [part, rest @ ..] => path.first().is_some_and(|name| part_matches(part, name)) && matches(rest, &path[1..]),
    }
}

fn part_matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', rest @ ..] => (0..=name.len()).any(|skip| part_matches(rest, &name[skip..])),
        [byte, rest @ ..] => name.first() == Some(byte) && part_matches(rest, &name[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::restore;

    fn out(root: &str, path: &str) -> bool {
        excluded(root, path.as_bytes(), false).is_some()
    }

    fn dir_out(root: &str, path: &str) -> bool {
        excluded(root, path.as_bytes(), true).is_some()
    }

    #[test]
    fn the_list_is_documented() {
        let documented: Vec<&str> = include_str!("../../docs/store-format.md")
            .lines()
            .skip_while(|line| *line != "## What is left out")
            .skip_while(|line| !line.starts_with("| --- "))
            .skip(1)
            .take_while(|line| line.starts_with('|'))
            .collect();
        let rules = RULES
            .iter()
            .map(|rule| format!("| `{}` | `{}` | {} |", rule.root, rule.pattern, rule.why));
        assert_eq!(documented, rules.collect::<Vec<_>>());
    }

    #[test]
    fn what_the_gateway_makes_again_is_left_out() {
        assert!(dir_out("state", "tmp") && out("state", "tmp/openclaw-0/gateway.1.lock.sqlite"));
        assert!(dir_out("state", "cache") && out("state", "npm/a/b/c"));
        assert!(out("state", "agents/main/sessions/1.jsonl.lock"));
        assert!(out("state", "devices/paired.json.77.tmp"));
        assert!(out("state", "state/x.reindex-lock.sqlite") && out("state", "memory/a.generation-3.sqlite"));
        assert!(dir_out("state", "browser/p/user-data/Default/Code Cache"));
        assert!(out("workspace", "site/node_modules/left-pad/index.js"));
        assert!(out("workspace", ".git/index.lock"));
        assert!(dir_out("workspace", &format!("{}workspace", restore::STAGED)));
        assert!(dir_out("state", &format!("{}20260102T030405Z", restore::ASIDE)));
        for mount in ["workspace", "extensions/mine"] {
            assert!(dir_out(
                "state",
                &format!("{mount}/{}20260102T030405Z-unsaved", restore::ASIDE)
            ));
            assert!(dir_out("state", &format!("{mount}/{}", restore::STAGED)));
        }
    }

    #[test]
    fn what_a_person_would_miss_stays() {
        for path in [
            "openclaw.json",
            "state/openclaw.sqlite",
            "agents/main/sessions/1.jsonl",
            "media/a.png",
        ] {
            assert!(!out("state", path), "{path}");
        }
        for path in [
            "workspace/a/b.tmp",
            "workspace/tmp/x",
            "workspace-2/yarn.lock",
            "skills/x/poetry.dev.lock",
        ] {
            assert!(!out("state", path), "{path}");
        }
        for path in [
            "tmp/notes",
            "cache/x",
            "Cargo.lock",
            "my-journal",
            "a.tmp",
            "node_modules",
        ] {
            assert!(!out("workspace", path), "{path}");
        }
        assert!(!out("state", "extensions/voice/node_modules/ws/index.js"));
        assert!(dir_out("state", "workspace/site/node_modules"));
        assert!(!out("state", "browser/p/user-data/Default/Cookies"));
        assert!(!out("state", "tmpfile") && !out("state", "a/tmp/b"));
    }
}
