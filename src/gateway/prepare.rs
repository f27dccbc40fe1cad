//! Everything that has to be right before a gateway starts, in a few milliseconds and without running it.

use std::{fs, io, path::PathBuf};

use serde_json::{Value, json};
use tracing::{info, warn};

use crate::config::{env::Env, secret::Secret};

use super::{
    choice::{Choice, choose},
    document::{self, DocumentError},
    lease, locks, migrate,
    patch::Change,
    places::Places,
    processes,
    record::{Digest, Record},
    rpc::Credentials,
    settings::GatewaySettings,
    version::{self, Generation, Version},
};

/// A gateway that can be started.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// `None` for a command that is no installed gateway.
    pub version: Option<Version>,
    pub generation: Generation,
    /// What the configuration was changed in.
    pub changes: Vec<Change>,
    /// How to reach it.
    pub credentials: Credentials,
    /// Where the agent works.
    pub workspace: PathBuf,
    /// What it was started with, as far as we chose it.
    pub digest: Digest,
    /// A configuration that was taken out of the way.
    pub rolled_back: Option<RolledBack>,
}

/// A configuration that did not let the gateway start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolledBack {
    pub reason: String,
    /// Where it is now.
    pub kept: PathBuf,
}

/// What is known of the configuration that failed first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failed {
    pub text: String,
    pub reason: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error(transparent)]
    Document(#[from] DocumentError),
    #[error("{path} cannot be moved to where the gateway looks today ({why}): move it by hand")]
    Migrate { path: PathBuf, why: io::Error },
    #[error("cannot make {path}: {why}")]
    Directory { path: PathBuf, why: io::Error },
    #[error("cannot write down what is written into the configuration: {0}")]
    Record(io::Error),
    #[error("the gateway refuses every configuration there is to try ({0}): correct {path} and start it again", path = .1.display())]
    AllRefused(String, PathBuf),
}

impl PrepareError {
    /// Trying again does not help, and doing otherwise than was asked might harm.
    pub fn is_for_a_person(&self) -> bool {
        match self {
            PrepareError::Document(error) => error.is_for_a_person(),
            PrepareError::AllRefused(..) => true,
            PrepareError::Migrate { .. } | PrepareError::Directory { .. } | PrepareError::Record(_) => false,
        }
    }
}

/// Prepares the state for a gateway that `command` will start in that environment.
///
/// Reads and writes local files only.
///
/// # Errors
/// Something stands in the way that only a person can judge. Nothing was overwritten.
pub fn prepare(
    places: &Places,
    settings: &GatewaySettings,
    command: &[String],
    env: &Env,
    record: &Record,
    mut failed: Option<Failed>,
) -> Result<Prepared, PrepareError> {
    move_older_state(places)?;
    let version = version::installed(command, env.get("PATH").unwrap_or_default());
    let generation = version.map_or(Generation::Current, Version::generation);

    for dir in [Some(places.state_dir.as_path()), places.config.parent()]
        .into_iter()
        .flatten()
    {
        fs::create_dir_all(dir).map_err(|why| PrepareError::Directory {
            path: dir.to_owned(),
            why,
        })?;
    }
    let good = record.good();
    let present = match document::read(&places.config) {
        Ok(found) => Some(found.map_or_else(|| json!({}), |document| document.value)),
        Err(error) if error.is_about_content() && good.is_some() => {
            failed.get_or_insert_with(|| Failed {
                text: fs::read_to_string(&places.config).unwrap_or_default(),
                reason: error.to_string(),
            });
            None
        }
        Err(error) => return Err(error.into()),
    };
    let is_refused = |value: &Value| record.is_refused(&Digest::of(value, version));
    let earlier = record.written();
    let chosen = choose(
        present.as_ref(),
        good.as_ref(),
        &earlier,
        settings,
        generation,
        is_refused,
    );
    let Some(Choice { patched, is_present }) = chosen else {
        let reason = failed.map(|failed| failed.reason).unwrap_or_default();
        return Err(PrepareError::AllRefused(reason, places.config.clone()));
    };
    let mut value = patched.value;
    let digest = Digest::of(&value, version);
    let auth = |key: &str| secret_in(&value["gateway"]["auth"][key], env);
    let password = env.get("OPENCLAW_GATEWAY_PASSWORD").map(str::to_owned).map(Secret::new);
    let password = password.or_else(|| auth("password"));
    let token = settings.token.clone().or_else(|| auth("token")).or_else(|| {
        wants_token(&value).then(|| {
            let token = fresh_token();
            value["gateway"]["auth"] = json!({ "mode": "token", "token": token.expose() });
            token
        })
    });
    let mut rolled_back = None;
    let is_new = document::read_text(&places.config)?.is_none();
    if patched.written != earlier {
        record.keep_written(&patched.written).map_err(PrepareError::Record)?;
    }
    if is_new || present.as_ref() != Some(&value) {
        if !is_present && !is_new {
            rolled_back = Some(keep_rejected(places, failed)?);
        }
        if let Err(error) = document::write(&places.config, &document::render(&value)) {
            // It is still in its place, and the next try would keep another copy.
            if let Some(back) = &rolled_back {
                let _ = fs::remove_file(&back.kept);
            }
            return Err(error.into());
        }
        for change in &patched.changes {
            info!("{}: {change}", places.config.display());
        }
    } else if !is_present {
        warn!("the environment's settings are not in the configuration: the gateway has refused them before");
    }
    clear_locks(places);
    Ok(Prepared {
        version,
        generation,
        changes: patched.changes,
        credentials: Credentials { token, password },
        workspace: places.named_in(&value).unwrap_or_else(|| places.default_workspace()),
        digest,
        rolled_back,
    })
}

/// Moves state that an older name of the gateway has left to where it is looked for today.
///
/// # Errors
/// Something cannot be moved; it is where it was.
pub fn move_older_state(places: &Places) -> Result<(), PrepareError> {
    let moved = migrate::migrate(&places.home, &places.state_dir);
    for path in moved.map_err(|(path, why)| PrepareError::Migrate { path, why })? {
        info!("moved {} to where the gateway looks today", path.display());
    }
    Ok(())
}

/// Puts the configuration that failed beside the one that is to replace it.
fn keep_rejected(places: &Places, failed: Option<Failed>) -> Result<RolledBack, PrepareError> {
    let failed = match failed {
        Some(failed) => failed,
        // Refused by an earlier run.
        None => Failed {
            text: document::read_text(&places.config)?.unwrap_or_default(),
            reason: "the gateway has refused it before".to_owned(),
        },
    };
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ");
    let mut kept = places.config.clone().into_os_string();
    kept.push(format!(".rejected-{time}"));
    let kept = PathBuf::from(kept);
    document::write(&kept, &failed.text)?;
    Ok(RolledBack {
        reason: failed.reason,
        kept,
    })
}

/// A secret as a configuration has it, or as it refers to the environment for it.
fn secret_in(value: &Value, env: &Env) -> Option<Secret> {
    let text = value.as_str()?;
    let name = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    let text = name.map_or(Some(text), |name| env.get(name))?;
    (!text.is_empty()).then(|| Secret::new(text.to_owned()))
}

/// Whether a gateway would not start, or be open to everyone, for want of a token.
fn wants_token(config: &Value) -> bool {
    let auth = &config["gateway"]["auth"];
    match auth["mode"].as_str() {
        Some("token") => auth["token"].is_null(),
        Some(_) => false,
        None => auth["token"].is_null() && auth["password"].is_null(),
    }
}

fn fresh_token() -> Secret {
    let bytes: [u8; 24] = rand::random();
    Secret::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What gateways that are gone have left to say that they are here.
fn clear_locks(places: &Places) {
    if let Some(pid) = processes::gateways_on(&places.state_dir).first() {
        warn!("a gateway is alive (pid {pid}): its locks stay");
        return;
    }
    for lock in locks::found(&places.config, &places.state_dir, &places.temp_dir) {
        match fs::remove_file(&lock) {
            Ok(()) => info!("removed the stale lock {}", lock.display()),
            Err(error) => warn!("the stale lock {} stays: {error}", lock.display()),
        }
    }
    match lease::end(&places.state_dir) {
        Ok(true) => info!("ended the lease of a gateway that is gone"),
        Ok(false) => {}
        Err(error) => warn!("a lease of a gateway that is gone may stay, for minutes: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config::env::Env;

    struct Machine {
        _dir: tempfile::TempDir,
        places: Places,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let home = dir.path().to_str().unwrap();
            let env: Env = [("HOME", home), ("TMPDIR", home)].into_iter().collect();
            Machine {
                places: Places::new(&env, &dir.path().join(".openclaw"), &[]),
                _dir: dir,
            }
        }

        fn prepare(&self, env: &[(&str, &str)]) -> Result<Prepared, PrepareError> {
            self.prepare_with(env, &self.record(), None)
        }

        fn prepare_with(
            &self,
            env: &[(&str, &str)],
            record: &Record,
            failed: Option<Failed>,
        ) -> Result<Prepared, PrepareError> {
            let env = env.iter().copied().collect();
            let settings = GatewaySettings::of_env(&env).unwrap();
            prepare(&self.places, &settings, &[], &env, record, failed)
        }

        fn record(&self) -> Record {
            Record::open(&self.places.home.join("data"))
        }

        /// The present configuration becomes the last good one.
        fn keep_good(&self) {
            let document = document::read(&self.places.config).unwrap().unwrap();
            let digest = Digest::of(&document.value, None);
            self.record().keep_good(&document.text, &digest).unwrap();
        }

        fn text(&self) -> String {
            fs::read_to_string(&self.places.config).unwrap()
        }
    }

    #[test]
    fn a_first_boot_makes_a_configuration_and_a_second_leaves_it() {
        let machine = Machine::new();
        let env = [("OPENCLAW_GATEWAY_TOKEN", "t0k3n")];
        let first = machine.prepare(&env).unwrap();
        assert!(first.credentials.token.is_some_and(|token| token.expose() == "t0k3n"));
        assert_eq!(first.workspace, machine.places.state_dir.join("workspace"));
        let text = machine.text();
        assert!(!text.contains("t0k3n"));
        assert_eq!(
            fs::metadata(&machine.places.config).unwrap().permissions().mode() & 0o777,
            0o600
        );

        // A read-only file shows that nothing is written.
        fs::set_permissions(&machine.places.config, fs::Permissions::from_mode(0o444)).unwrap();
        assert!(machine.prepare(&env).unwrap().changes.is_empty());
        assert_eq!(machine.text(), text);
    }

    #[test]
    fn a_token_is_made_once_where_there_is_none() {
        let machine = Machine::new();
        let first = machine.prepare(&[]).unwrap().credentials.token.unwrap();
        assert_eq!(first.expose().len(), 48);
        assert_eq!(machine.prepare(&[]).unwrap().credentials.token, Some(first));
    }

    #[test]
    fn what_the_configuration_names_is_what_the_gateway_is_reached_with() {
        let machine = Machine::new();
        fs::create_dir_all(&machine.places.state_dir).unwrap();
        let credentials = |auth: &str| {
            fs::write(&machine.places.config, format!("{{ gateway: {{ auth: {auth} }} }}")).unwrap();
            let Credentials { token, password } = machine.prepare(&[("MINE", "from-mine")]).unwrap().credentials;
            [token, password].map(|secret| secret.map(|secret| secret.expose().clone()))
        };
        assert_eq!(
            credentials("{ mode: 'password', password: 'p' }"),
            [None, Some("p".to_owned())]
        );
        assert_eq!(
            credentials("{ token: '${MINE}' }"),
            [Some("from-mine".to_owned()), None]
        );
        assert_eq!(credentials("{ token: '${GONE}' }"), [None, None]);
    }

    #[test]
    fn what_cannot_be_read_stops_the_boot_and_stays() {
        let machine = Machine::new();
        fs::create_dir_all(&machine.places.state_dir).unwrap();
        fs::write(&machine.places.config, "{ my notes").unwrap();
        let error = machine.prepare(&[]).unwrap_err().to_string();
        assert!(error.contains("openclaw.json is not JSON5"), "{error}");
        assert_eq!(machine.text(), "{ my notes");
    }

    #[test]
    fn the_workspace_is_the_configurations() {
        let machine = Machine::new();
        fs::create_dir_all(&machine.places.state_dir).unwrap();
        for (setting, at) in [
            ("/root/clawd", PathBuf::from("/root/clawd")),
            ("~/w", machine.places.home.join("w")),
        ] {
            let config = json!({ "agents": { "defaults": { "workspace": setting } } });
            fs::write(&machine.places.config, config.to_string()).unwrap();
            assert_eq!(machine.prepare(&[]).unwrap().workspace, at);
        }
    }

    #[test]
    fn stale_locks_go() {
        let machine = Machine::new();
        let sessions = machine.places.state_dir.join("agents/main/sessions");
        fs::create_dir_all(&sessions).unwrap();
        fs::write(sessions.join("a.jsonl.lock"), "{}").unwrap();
        machine.prepare(&[]).unwrap();
        assert_eq!(fs::read_dir(sessions).unwrap().count(), 0);
    }

    #[test]
    fn a_refused_configuration_makes_way_for_the_last_that_worked() {
        let machine = Machine::new();
        machine.prepare(&[]).unwrap();
        machine.keep_good();
        let good = machine.text();
        let bad = good.replacen('{', r#"{ "bogus": 1, "#, 1);
        fs::write(&machine.places.config, &bad).unwrap();

        let mut record = machine.record();
        record.refuse(machine.prepare(&[]).unwrap().digest, true);
        let failed = Failed {
            text: bad.clone(),
            reason: "Unrecognized key".to_owned(),
        };
        let back = machine
            .prepare_with(&[], &record, Some(failed))
            .unwrap()
            .rolled_back
            .unwrap();
        assert_eq!(back.reason, "Unrecognized key");
        assert_eq!(fs::read_to_string(back.kept).unwrap(), bad);
        assert_eq!(machine.text(), good);
        assert_eq!(machine.prepare_with(&[], &record, None).unwrap().rolled_back, None);

        // The same bad file comes back in another container.
        fs::write(&machine.places.config, &bad).unwrap();
        assert!(machine.prepare(&[]).unwrap().rolled_back.is_some());
        assert_eq!(machine.text(), good);
    }

    #[test]
    fn an_edit_that_is_no_json_makes_way_too() {
        let machine = Machine::new();
        machine.prepare(&[]).unwrap();
        machine.keep_good();
        let good = machine.text();
        fs::write(&machine.places.config, "{ torn").unwrap();
        let back = machine.prepare(&[]).unwrap().rolled_back.unwrap();
        assert!(back.reason.contains("is not JSON5"), "{}", back.reason);
        assert_eq!(fs::read_to_string(back.kept).unwrap(), "{ torn");
        assert_eq!(machine.text(), good);
    }

    #[test]
    fn what_cannot_be_replaced_leaves_no_copies_and_is_tried_again() {
        let machine = Machine::new();
        machine.prepare(&[]).unwrap();
        machine.keep_good();
        fs::write(&machine.places.config, "{ torn").unwrap();
        // In the way of the file that is to be renamed to it.
        fs::create_dir(machine.places.state_dir.join("openclaw.json.moltinit.tmp")).unwrap();
        for _ in 0..3 {
            let error = machine.prepare(&[]).unwrap_err();
            assert!(!error.is_for_a_person(), "{error}");
        }
        let names = fs::read_dir(&machine.places.state_dir).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| name.contains("rejected")).count(), 0);
        assert_eq!(machine.text(), "{ torn");
    }

    #[test]
    fn there_is_an_end_when_everything_is_refused() {
        let machine = Machine::new();
        let mut record = machine.record();
        let mut tried = 0;
        let error = loop {
            match machine.prepare_with(&[("TELEGRAM_BOT_TOKEN", "t")], &record, None) {
                Ok(prepared) => record.refuse(prepared.digest, false),
                Err(error) => break error.to_string(),
            }
            tried += 1;
            assert!(tried < 10);
        };
        assert!(error.contains("refuses every configuration"), "{error}");
    }
}
