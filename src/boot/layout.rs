//! Where the roots of a snapshot are on this disk.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::{
    config::Config,
    gateway::workspace::Whereabouts,
    paths::{is_within, resolve, resolve_by},
    state::{
        fetch,
        head::Head,
        history::History,
        model::{Kind, Tree},
        restore::ASIDE,
        segment::reader::ReadError,
        walk::Root,
    },
};

/// Names of the roots.
const STATE: &str = "state";
const WORKSPACE: &str = "workspace";
const OURS: &str = "moltinit";

/// In our own data, where the agent's workspace leads to if that is a link from outside into another root: so the link is in
/// the snapshot, and a fresh container gets it.
const LINK: &str = "workspace";

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
            let path = self.agent.with(config.as_deref());
            let link = self.link(head.tree(), &resolve(&self.data).join(LINK));
            let path = link.unwrap_or_else(|| resolve_by(&path, |path| self.link(head.tree(), path)));
            roots.extend(self.root_at(path).ok());
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
        self.root_at(resolve(&self.agent.with(config))).is_ok()
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
            if let Err(error) = layout.note_link(&workspace) {
                tracing::warn!(%error, "that the agent's workspace is a link cannot be noted");
            }
            // By where it leads now: if that changes, other directories have to be watched.
            match layout.root_at(resolve(&workspace)) {
                Ok(root) => roots.push(root),
                Err(Part::Around) if refused.as_ref() != Some(&workspace) => {
                    tracing::error!(
                        workspace = %workspace.display(),
                        "the agent's workspace is not captured, since the gateway's state is inside of it: set \
                         agents.defaults.workspace to a directory of its own"
                    );
                    refused = Some(workspace.clone());
                }
                Err(_) => {}
            }
            let root = |(name, path)| Root { name, path };
            roots.into_iter().map(root).collect()
        }
    }

    /// Keeps in our data where a workspace that is a link into another root leads to.
    fn note_link(&self, workspace: &Path) -> io::Result<()> {
        let (note, leads_to) = (self.data.join(LINK), resolve(workspace));
        let link = (!self.is_of_a_root(workspace) && self.is_of_a_root(&leads_to)).then_some(leads_to);
        if fs::read_link(&note).ok() == link {
            return Ok(());
        }
        let _ = fs::remove_file(&note);
        match link {
            Some(leads_to) => {
                fs::create_dir_all(&self.data)?;
                symlink(leads_to, note)
            }
            None => Ok(()),
        }
    }

    /// Makes the workspace lead to where it did when what has been restored was committed. Something else in its place,
    /// such as an image brings, moves aside.
    pub fn link_workspace(&self) {
        let workspace = self.agent.now();
        let Ok(leads_to) = fs::read_link(self.data.join(LINK)) else {
            return;
        };
        // What is in a snapshot is not to be trusted: nothing else is linked to, and nothing of ours moves.
        let is_around = matches!(self.root_at(resolve(&workspace)), Err(Part::Around));
        if resolve(&workspace) == leads_to || !self.is_of_a_root(&leads_to) || is_around {
            return;
        }
        let link = || {
            if fs::symlink_metadata(&workspace).is_ok() && fs::remove_dir(&workspace).is_err() {
                let date = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
                let aside = format!("{}{ASIDE}{date}", workspace.display());
                tracing::warn!(
                    path = aside,
                    "what was in the place of the agent's workspace was moved aside"
                );
                fs::rename(&workspace, aside)?;
            }
            fs::create_dir_all(workspace.parent().unwrap_or(&workspace))?;
            symlink(&leads_to, &workspace)
        };
        match link() {
            Ok(()) => {
                tracing::info!(workspace = %workspace.display(), leads_to = %leads_to.display(), "the agent's workspace is a link again")
            }
            Err(error) => tracing::error!(
                %error, workspace = %workspace.display(), leads_to = %leads_to.display(),
                "the agent's workspace was a link, which cannot be made: what it had is where that led to"
            ),
        }
    }

    /// By name.
    fn is_of_a_root(&self, path: &Path) -> bool {
        let mut roots = self.fixed().into_iter();
        roots.any(|(_, root)| path.starts_with(&root) || path.starts_with(resolve(&root)))
    }

    fn fixed(&self) -> Roots {
        vec![
            (STATE.to_owned(), self.state.clone()),
            (OURS.to_owned(), self.data.clone()),
        ]
    }

    /// The root that a workspace is, by its [resolved](resolve) path. Inside of another root it is a part of that, and
    /// around one it cannot be put in place without it. Two names of one directory cannot both be watched, nor restored.
    fn root_at(&self, path: PathBuf) -> Result<(String, PathBuf), Part> {
        let fixed: Vec<PathBuf> = self.fixed().iter().map(|(_, root)| resolve(root)).collect();
        if fixed.iter().any(|root| is_within(&path, root)) {
            return Err(Part::Within);
        }
        if fixed.iter().any(|root| is_within(root, &path)) {
            return Err(Part::Around);
        }
        Ok((WORKSPACE.to_owned(), path))
    }

    /// Where a link leads once a commit is in place: below a root it is the commit's, and elsewhere the disk's.
    fn link(&self, tree: &Tree, path: &Path) -> Option<PathBuf> {
        let within = self.fixed().into_iter().find_map(|(name, root)| {
            let below = path.strip_prefix(resolve(&root)).ok()?.to_owned();
            (!below.as_os_str().is_empty()).then(|| Path::new(&name).join(below))
        });
        let Some(path_in_tree) = within else {
            return fs::read_link(path).ok();
        };
        match &tree.get(path_in_tree.as_os_str().as_bytes())?.kind {
            Kind::Symlink { target } => Some(OsStr::from_bytes(target).into()),
            _ => None,
        }
    }
}

/// Why a workspace is no root of its own.
#[derive(Debug)]
enum Part {
    Within,
    Around,
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
            config.data_dir = self.0.path().join("data");
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
    fn a_workspace_is_where_its_name_leads() {
        let disk = Disk(tempfile::tempdir().unwrap());
        let at = |name: &str| disk.0.path().join(name);
        let [link, elsewhere] = ["clawd", "elsewhere"].map(at);
        disk.configure(&format!(
            r#"{{ agents: {{ defaults: {{ workspace: "{}" }} }} }}"#,
            link.display()
        ));
        let layout = disk.layout("", None);
        let mut live = layout.live();
        fs::create_dir(&link).unwrap();
        assert_eq!(workspace(&live()), [link.to_str().unwrap()]);
        // Moved into the state, there or not; around it; and to a place of its own.
        for (target, leads_to) in [
            (at(".openclaw/workspace"), None),
            (at(".openclaw"), None),
            (disk.0.path().to_owned(), None),
            (elsewhere.clone(), Some(elsewhere.to_str().unwrap())),
        ] {
            let _ = fs::remove_dir(&link).or_else(|_| fs::remove_file(&link));
            symlink(&target, &link).unwrap();
            assert_eq!(workspace(&live()), Vec::from_iter(leads_to));
            let is_noted = fs::read_link(at("data/workspace")).is_ok_and(|noted| noted == target);
            assert_eq!(is_noted, target.starts_with(at(".openclaw")));
            let text = fs::read(at(".openclaw/openclaw.json")).unwrap();
            assert_eq!(layout.has_workspace(Some(&text)), leads_to.is_some());
        }
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
