//! Where snapshots go, and how that comes to be there.

use std::time::Duration;

use super::{
    super::{
        Bucket, DEFAULT_INSTANCE, Store,
        env::{Env, Problem},
        secret::Secret,
        settings::Settings,
    },
    machine::{MOUNTED_STORE, Machine},
};

/// moltworker's bucket, if it is not named.
const MOLTWORKERS_BUCKET: &str = "moltbot-data";
const LOCAL_STORE: &str = "/var/lib/moltinit/store";

pub(super) fn store(settings: &mut Settings<'_>, machine: &Machine) -> Store {
    let env = settings.env;
    let named = settings.absolute("store");
    let mount = match settings.text("mount").map(str::to_owned) {
        None => None,
        Some(how) if how == "s3fs" => bucket(settings),
        Some(other) => {
            settings.problem(
                "mount",
                format!("`{other}` is not known; `s3fs` is the one way to mount"),
            );
            None
        }
    };
    let has_bucket = env.get("R2_BUCKET_NAME").is_some() && env.get("R2_ACCESS_KEY_ID").is_some();
    let mounted = machine.store_is_mounted || mount.is_some() || has_bucket;
    let durable = named.is_some() || mounted;
    let dir = named
        .clone()
        .unwrap_or_else(|| if mounted { MOUNTED_STORE } else { LOCAL_STORE }.into());
    let instance = settings.text("instance").unwrap_or(DEFAULT_INSTANCE).to_owned();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if instance.is_empty() || !instance.chars().all(fits) || instance.starts_with('.') {
        settings.problem(
            "instance",
            format!("`{instance}` must be letters, digits, `-`, `_` and `.`, not starting with `.`"),
        );
    }
    Store {
        // Naming the place where the platform mounts the bucket, or one in it, is as good as not naming one: before the
        // mount is there, it is a directory that vanishes with the container.
        must_be_mount: mount.is_some() || (named.is_none() && mounted) || dir.starts_with(MOUNTED_STORE),
        durable,
        dir,
        wait: settings.duration("store_wait", Duration::from_secs(60)),
        required: settings
            .boolean("store_required")
            .unwrap_or(named.is_some() || has_bucket),
        mount,
        instance,
        key: settings.secret("key"),
    }
}

/// Who brings a bucket's keys late mounts nothing, so moltinit has to: a moltworker's Worker gives them to its start
/// script, and names the bucket only if it is not the usual one. Unless the Worker has mounted it.
pub fn bringing_a_bucket(mut env: Env, machine: &Machine) -> Env {
    let brought = ["R2_BUCKET_NAME", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"];
    if env.first(&brought).is_some() && env.get("MOLTINIT_MOUNT").is_none() && !machine.store_is_mounted {
        env = env.overlaid(&[("MOLTINIT_MOUNT", "s3fs")].into_iter().collect());
        if env.get("R2_BUCKET_NAME").is_none() {
            env = env.overlaid(&[("R2_BUCKET_NAME", MOLTWORKERS_BUCKET)].into_iter().collect());
        }
    }
    env
}

fn bucket(settings: &mut Settings<'_>) -> Option<Bucket> {
    let env = settings.env;
    for name in ["R2_BUCKET_NAME", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"] {
        if env.get(name).is_none() {
            settings
                .problems
                .push(Problem::new(name, "must be set when MOLTINIT_MOUNT is s3fs"));
        }
    }
    let of_account = |account| format!("https://{account}.r2.cloudflarestorage.com");
    let endpoint = env.get("R2_ENDPOINT").map(str::to_owned);
    let endpoint = endpoint.or_else(|| env.get("CF_ACCOUNT_ID").map(of_account));
    if endpoint.is_none() {
        let what = "must be set when MOLTINIT_MOUNT is s3fs (or R2_ENDPOINT, for another S3 server)";
        settings.problems.push(Problem::new("CF_ACCOUNT_ID", what));
    }
    Some(Bucket {
        name: env.get("R2_BUCKET_NAME")?.to_owned(),
        endpoint: endpoint?,
        access_key_id: Secret::new(env.get("R2_ACCESS_KEY_ID")?.to_owned()),
        secret_access_key: Secret::new(env.get("R2_SECRET_ACCESS_KEY")?.to_owned()),
    })
}
