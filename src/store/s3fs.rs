//! The s3fs mount, where moltinit makes it itself (`MOLTINIT_MOUNT=s3fs`): a supervised service like any other, whose
//! keeper clears a dead mount away before each start and knows it ready when the kernel lists it.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
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

/// s3fs gives a hung request up after this many tries.
const RETRIES: u32 = 3;

/// Keeps a bucket mounted.
pub struct Mounter {
    bucket: Bucket,
    at: PathBuf,
}

impl Mounter {
    pub fn new(bucket: Bucket, at: PathBuf) -> Mounter {
        Mounter { bucket, at }
    }

    /// The service that the supervisor runs. Nothing secret is in its arguments.
    pub fn service(&self) -> Service {
        let options = format!(
            "url={},use_path_request_style,nomixupload,enable_noobj_cache,stat_cache_expire=60,multipart_size=5,retries={RETRIES}",
            self.bucket.endpoint
        );
        // The keeper's check stands in for both probes' answers; the addresses are never asked.
        let listed = Check::Http {
            url: String::new(),
            json: None,
        };
        Service {
            command: [
                "s3fs",
                &self.bucket.name,
                &self.at.to_string_lossy(),
                "-f",
                "-o",
                &options,
            ]
            .map(str::to_owned)
            .to_vec(),
            ready: Some(Probe {
                timeout: Duration::from_secs(60),
                ..Probe::ready(listed.clone())
            }),
            live: Some(Probe::live(listed)),
            // What it has taken it uploads before it ends.
            stop: Stop {
                timeout: Duration::from_secs(20),
                ..Service::named(SERVICE).stop
            },
            ..Service::named(SERVICE)
        }
    }
}

impl Care for Mounter {
    fn before_start(&self, _attempt: u32) -> BoxFuture<'_, Start> {
        async {
            let at = self.at.clone();
            let cleared = tokio::task::spawn_blocking(move || clear(&at)).await;
            if let Ok(Err(error)) | Err(error) = cleared.map_err(io::Error::other) {
                return Start::Hold(format!("{} cannot be mounted on: {error}", self.at.display()));
            }
            let secrets = [
                ("AWSACCESSKEYID", &self.bucket.access_key_id),
                ("AWSSECRETACCESSKEY", &self.bucket.secret_access_key),
            ];
            let env: BTreeMap<_, _> = secrets.map(|(name, value)| (name.into(), value.expose().into())).into();
            Start::Go(Launch {
                env,
                ..Launch::default()
            })
        }
        .boxed()
    }

    fn check(&self) -> Option<BoxFuture<'_, Result<(), String>>> {
        let at = self.at.clone();
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
