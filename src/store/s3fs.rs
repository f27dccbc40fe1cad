//! The s3fs mount, where moltinit makes it itself (`MOLTINIT_MOUNT=s3fs`): a supervised service like any other, whose
//! keeper clears a dead mount away before each start and knows it ready when the kernel lists it.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use nix::mount::{MntFlags, umount2};

use super::mounts;
use crate::{
    config::{
        Bucket,
        service::{Check, Probe, Service, Stop},
    },
    supervise::{Care, Launch, Start},
};

/// The service's name.
pub const SERVICE: &str = "mount";

const PROGRAM: &str = "s3fs";

/// Bytes of a part; what is longer is written in parts.
const PART: u64 = 5 << 20;

/// Operations of class A that a new object of `len` bytes takes: it is looked for (LIST; once, where s3fs remembers what
/// is not there) and written (PUT; in parts a POST to begin, a PUT each and a POST to end).
pub fn operations(len: u64) -> u64 {
    match len.div_ceil(PART) {
        0 | 1 => 2,
        parts => 3 + parts,
    }
}

/// s3fs gives a hung request up after this many tries.
const RETRIES: u32 = 3;

/// Keeps a bucket mounted, once it is known which and where.
#[derive(Default)]
pub struct Mounter(OnceLock<(Bucket, PathBuf)>);

impl Mounter {
    /// This bucket from now on, there. Only the first one counts.
    pub fn mount(&self, bucket: Bucket, at: PathBuf) {
        let _ = self.0.set((bucket, at));
    }
}

/// The service that the supervisor runs, by what its [keeper](Mounter) knows.
pub fn service() -> Service {
    Service {
        command: vec![PROGRAM.to_owned()],
        ready: Some(Probe {
            timeout: Duration::from_secs(60),
            ..Probe::ready(Check::Keeper)
        }),
        live: Some(Probe::live(Check::Keeper)),
        // What it has taken it uploads before it ends.
        stop: Stop {
            timeout: Duration::from_secs(20),
            ..Service::named(SERVICE).stop
        },
        ..Service::named(SERVICE)
    }
}

/// Nothing secret is in it.
fn command(bucket: &Bucket, at: &Path) -> Vec<String> {
    let options = format!(
        "url={},use_path_request_style,nomixupload,stat_cache_expire=60,enable_noobj_cache,multipart_size={},retries={RETRIES}",
        bucket.endpoint,
        PART >> 20
    );
    [PROGRAM, &bucket.name, &at.to_string_lossy(), "-f", "-o", &options]
        .map(str::to_owned)
        .to_vec()
}

impl Care for Mounter {
    fn before_start(&self, _attempt: u32) -> BoxFuture<'_, Start> {
        async {
            let Some((bucket, at)) = self.0.get() else {
                return Start::Hold("no bucket's keys have been brought".to_owned());
            };
            let cleared = tokio::task::spawn_blocking({
                let at = at.clone();
                move || clear(&at)
            });
            if let Ok(Err(error)) | Err(error) = cleared.await.map_err(io::Error::other) {
                return Start::Hold(format!("{} cannot be mounted on: {error}", at.display()));
            }
            let secrets = [
                ("AWSACCESSKEYID", &bucket.access_key_id),
                ("AWSSECRETACCESSKEY", &bucket.secret_access_key),
            ];
            let env: BTreeMap<_, _> = secrets.map(|(name, value)| (name.into(), value.expose().into())).into();
            Start::Go(Launch {
                argv: Some(command(bucket, at)),
                env,
                ..Launch::default()
            })
        }
        .boxed()
    }

    fn check(&self) -> Option<BoxFuture<'_, Result<(), String>>> {
        let (_, at) = self.0.get()?.clone();
        let asked = async move {
            // Opening a mount's root by path alone asks nothing of its server.
            let found = tokio::task::spawn_blocking(move || {
                mounts::covering(&at).map(|mount| (mount.is_fuse(), mount.point == at))
            });
            match found.await {
                Ok(Ok((true, true))) => Ok(()),
                Ok(Ok(_)) => Err("it is not mounted".to_owned()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        };
        Some(asked.boxed())
    }
}

/// Makes the mount point, and takes away what an s3fs that died left on it. Lazily, since nothing answers there.
fn clear(at: &Path) -> io::Result<()> {
    while mounts::covering(at).is_ok_and(|mount| mount.is_fuse() && mount.point == at) {
        umount2(at, MntFlags::MNT_DETACH)?;
    }
    std::fs::create_dir_all(at)
}
