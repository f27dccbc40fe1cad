//! Where the roots of a snapshot are on this disk.

use std::path::{Path, PathBuf};

use crate::{
    config::Config,
    gateway::workspace::Whereabouts,
    state::{fetch, head::Head, history::History, segment::reader::ReadError, walk::Root},
};

/// Names of the roots.
const STATE: &str = "state";
const WORKSPACE: &str = "workspace";
const OURS: &str = "moltinit";

/// The gateway's configuration in a snapshot, and the most bytes of it that are read.
const CONFIG: &[u8] = b"state/openclaw.json";
const MAX_CONFIG: u64 = 4 << 20;

/// Roots by name.
pub type Roots = Vec<(String, PathBuf)>;

/// The places by the configuration, looked up once. The agent's workspace is where the gateway's own configuration has it, in the
/// snapshot or on the disk, unless it is named to us.
#[derive(Clone)]
pub struct Layout {
    state: PathBuf,
    data: PathBuf,
    agent: Whereabouts,
}

impl Layout {
    pub fn new(config: &Config) -> Layout {
        Layout {
            state: config.state_dir.clone(),
            data: config.data_dir.clone(),
            agent: Whereabouts::of(config),
        }
    }

    /// Where the roots of a commit go.
    pub fn of(&self, history: &History, head: &Head) -> Result<Roots, ReadError> {
        let mut roots = self.fixed();
        if head.tree().contains_key(WORKSPACE.as_bytes()) {
            let config = fetch::file(history, head, CONFIG, MAX_CONFIG)?;
            roots.extend(self.workspace(self.agent.with(config.as_deref())));
        }
        Ok(roots)
    }

    /// The same without what is ours: events and what is undelivered are of now, whatever the state is.
    pub fn of_agent(&self, history: &History, head: &Head) -> Result<Roots, ReadError> {
        let roots = self.of(history, head)?;
        Ok(roots.into_iter().filter(|(name, _)| name != OURS).collect())
    }

    /// Whether the workspace of a gateway with such a configuration is a root of its own.
    pub fn has_workspace(&self, config: Option<&[u8]>) -> bool {
        self.workspace(self.agent.with(config)).is_some()
    }

    /// What is to be captured from now on: asked again and again, since the gateway's configuration changes, and is
    /// moved here from where older gateways had theirs.
    pub fn live(&self) -> impl FnMut() -> Vec<Root> + Send + use<> {
        let layout = self.clone();
        let mut workspace = self.agent.now();
        let mut refused = None;
        move || {
            // While it cannot be read, as in the middle of an edit, it stays where it was.
            if let Some(now) = layout.agent.configured() {
                workspace = now;
            }
            let mut roots = layout.fixed();
            if let Some(root) = layout.workspace(workspace.clone()) {
                roots.push(root);
            } else if layout.holds_a_root(&workspace) && refused.as_ref() != Some(&workspace) {
                tracing::error!(
                    workspace = %workspace.display(),
                    "the agent's workspace is not captured, since the gateway's state is inside of it: set \
                     agents.defaults.workspace to a directory of its own"
                );
                refused = Some(workspace.clone());
            }
            let root = |(name, path)| Root { name, path };
            roots.into_iter().map(root).collect()
        }
    }

    fn fixed(&self) -> Roots {
        vec![
            (STATE.to_owned(), self.state.clone()),
            (OURS.to_owned(), self.data.clone()),
        ]
    }

    /// The root that a workspace is. Inside of another root it is a part of that, and around one it cannot be put in
    /// place without it.
    fn workspace(&self, path: PathBuf) -> Option<(String, PathBuf)> {
        let inside = self.fixed().iter().any(|(_, root)| path.starts_with(root));
        (!inside && !self.holds_a_root(&path)).then(|| (WORKSPACE.to_owned(), path))
    }

    fn holds_a_root(&self, path: &Path) -> bool {
        self.fixed()
            .iter()
            .any(|(_, root)| root != path && root.starts_with(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Machine, Workspace, load};

    struct Disk(tempfile::TempDir);

    impl Disk {
        fn layout(&self, file: &str, workspace: Option<Workspace>) -> Layout {
            let home = self.0.path().to_owned();
            let machine = Machine {
                home,
                store_is_mounted: false,
                has_sandbox_server: false,
                has_legacy_workspace: false,
            };
            let mut config = load(Some(file), Default::default(), &machine).unwrap();
            config.workspace = workspace.or(config.workspace);
            Layout::new(&config)
        }

        fn configure(&self, text: &str) {
            let state = self.0.path().join(".openclaw");
            std::fs::create_dir_all(&state).unwrap();
            std::fs::write(state.join("openclaw.json"), text).unwrap();
        }
    }

    fn workspace(roots: &[Root]) -> Vec<&str> {
        let all = roots.iter().filter(|root| root.name == WORKSPACE);
        all.map(|root| root.path.to_str().unwrap()).collect()
    }

    #[test]
    fn there_is_one_workspace_and_it_is_where_the_gateway_has_it_now() {
        let disk = Disk(tempfile::tempdir().unwrap());
        let default = Some(Workspace::Default("/root/clawd".into()));
        let layout = disk.layout("", default);
        let mut live = layout.live();
        assert_eq!(workspace(&live()), ["/root/clawd"]);
        disk.configure(r#"{ agents: { defaults: { workspace: "/elsewhere" } } }"#);
        assert_eq!(workspace(&live()), ["/elsewhere"]);
        disk.configure("{ agents: { defaults: { work");
        assert_eq!(workspace(&live()), ["/elsewhere"]);
        let inside = format!(
            r#"{{ agents: {{ defaults: {{ workspace: "{}/.openclaw/w" }} }} }}"#,
            disk.0.path().display()
        );
        disk.configure(&inside);
        assert_eq!(workspace(&live()), Vec::<&str>::new());
        assert!(!layout.has_workspace(Some(inside.as_bytes())));
        assert!(layout.has_workspace(Some(b"{}")));
    }

    #[test]
    fn a_workspace_that_is_named_in_the_file_wins_over_the_gateways() {
        let disk = Disk(tempfile::tempdir().unwrap());
        disk.configure(r#"{ agents: { defaults: { workspace: "/elsewhere" } } }"#);
        let layout = disk.layout("workspace = \"/named\"", None);
        assert_eq!(workspace(&layout.live()()), ["/named"]);
    }

    #[test]
    fn a_workspace_around_the_state_is_no_root() {
        let disk = Disk(tempfile::tempdir().unwrap());
        let around = disk.0.path().to_owned();
        let layout = disk.layout("", Some(Workspace::Named(around)));
        assert_eq!(workspace(&layout.live()()), Vec::<&str>::new());
        assert!(!layout.has_workspace(None));
    }
}
