//! How much memory there is, how much is used, and whether the kernel has killed for want of it.

use std::{fs, path::PathBuf};

/// Where this container's memory is accounted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accounts {
    dir: PathBuf,
    kind: Kind,
    /// Of the machine, for where the container itself has no limit; `/` but for tests.
    root: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    CgroupV2,
    CgroupV1,
    /// No limit but the machine's own memory.
    Machine,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub used: u64,
    pub limit: u64,
}

impl Accounts {
    /// Finds them below `root`, which is `/` but for tests.
    pub fn find(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
        let path = |controller: &str| {
            own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                let found = controllers.split(',').any(|name| name == controller);
                found.then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let fs_root = root.join("sys/fs/cgroup");
        // Inside a container the path may be the one outside, while what is mounted starts at the container's own.
        let candidates = [
            (Kind::CgroupV2, fs_root.join(path("").unwrap_or_default())),
            (Kind::CgroupV2, fs_root.clone()),
            (
                Kind::CgroupV1,
                fs_root.join("memory").join(path("memory").unwrap_or_default()),
            ),
            (Kind::CgroupV1, fs_root.join("memory")),
        ];
        let found = candidates.into_iter().find(|(kind, dir)| match kind {
            Kind::CgroupV2 => dir.join("memory.max").exists(),
            Kind::CgroupV1 => dir.join("memory.limit_in_bytes").exists(),
            Kind::Machine => false,
        });
        let (kind, dir) = found.unwrap_or((Kind::Machine, root.clone()));
        Accounts { dir, kind, root }
    }

    /// What is used of what there may be; without what the kernel can take back. A container without a limit of its own
    /// has the machine's. `None` if the kernel does not say.
    pub fn usage(&self) -> Option<Usage> {
        self.usage_of(self.kind).or_else(|| {
            let machine = Accounts {
                dir: self.root.clone(),
                ..self.clone()
            };
            machine.usage_of(Kind::Machine)
        })
    }

    fn usage_of(&self, kind: Kind) -> Option<Usage> {
        match kind {
            Kind::CgroupV2 => {
                let limit = self.number("memory.max")?;
                let reclaimable = self.keyed("memory.stat", "inactive_file").unwrap_or(0);
                let used = self.number("memory.current")?.saturating_sub(reclaimable);
                Some(Usage { used, limit })
            }
            Kind::CgroupV1 => {
                // Without a limit it says the largest number of whole pages.
                let limit = self.number("memory.limit_in_bytes").filter(|limit| *limit < 1 << 60)?;
                let reclaimable = self.keyed("memory.stat", "total_inactive_file").unwrap_or(0);
                let used = self.number("memory.usage_in_bytes")?.saturating_sub(reclaimable);
                Some(Usage { used, limit })
            }
            Kind::Machine => {
                let limit = self.keyed("proc/meminfo", "MemTotal:")? * 1024;
                let available = self.keyed("proc/meminfo", "MemAvailable:")? * 1024;
                Some(Usage {
                    used: limit.saturating_sub(available),
                    limit,
                })
            }
        }
    }

    /// How many processes the kernel has killed for want of memory so far.
    pub fn oom_kills(&self) -> u64 {
        let count = match self.kind {
            Kind::CgroupV2 => self.keyed("memory.events", "oom_kill"),
            Kind::CgroupV1 => self.keyed("memory.oom_control", "oom_kill"),
            Kind::Machine => self.keyed("proc/vmstat", "oom_kill"),
        };
        count.unwrap_or(0)
    }

    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.dir.join(file)).ok()?.trim().parse().ok()
    }

    fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        let text = fs::read_to_string(self.dir.join(file)).ok()?;
        text.lines().find_map(|line| {
            let (name, value) = line.split_once(char::is_whitespace)?;
            let value = value.split_ascii_whitespace().next()?;
            value.parse().ok().filter(|_| name == key)
        })
    }
}

/// Tells when memory gets tight, once each time it does.
#[derive(Debug, Default)]
pub struct Pressure {
    told: bool,
}

impl Pressure {
    /// Whether to tell now: above nine tenths of the limit, and not again before it was below eight.
    pub fn is_news(&mut self, usage: Usage) -> bool {
        let tenths = u128::from(usage.used) * 10 / u128::from(usage.limit.max(1));
        let told = self.told;
        self.told = tenths >= 9 || (told && tenths >= 8);
        self.told && !told
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn usage(root: &Path) -> (Option<(u64, u64)>, u64) {
        let accounts = Accounts::find(root);
        let usage = accounts.usage().map(|usage| (usage.used, usage.limit));
        (usage, accounts.oom_kills())
    }

    #[test]
    fn cgroup_v2_as_a_container_sees_it() {
        let dir = machine(&[
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "1000\n"),
            ("sys/fs/cgroup/memory.current", "900\n"),
            ("sys/fs/cgroup/memory.stat", "anon 1\ninactive_file 200\n"),
            ("sys/fs/cgroup/memory.events", "low 0\noom 5\noom_kill 3\n"),
            ("proc/meminfo", "MemTotal: 100 kB\nMemAvailable: 40 kB\n"),
        ]);
        assert_eq!(usage(dir.path()), (Some((700, 1000)), 3));
        fs::write(dir.path().join("sys/fs/cgroup/memory.max"), "max\n").unwrap();
        let machines = Some((60 * 1024, 100 * 1024));
        assert_eq!(usage(dir.path()), (machines, 3), "there is no other limit");
    }

    #[test]
    fn cgroup_v1_with_the_path_from_outside() {
        let dir = machine(&[
            ("proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "900\n"),
            ("sys/fs/cgroup/memory/memory.stat", "total_inactive_file 100\n"),
            (
                "sys/fs/cgroup/memory/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
            ),
        ]);
        assert_eq!(usage(dir.path()), (Some((800, 1000)), 2));
    }

    #[test]
    fn without_a_cgroup_the_machine_is_the_limit() {
        let dir = machine(&[
            (
                "proc/meminfo",
                "MemTotal:       100 kB\nMemFree: 1 kB\nMemAvailable:   40 kB\n",
            ),
            ("proc/vmstat", "pgfault 7\noom_kill 1\n"),
        ]);
        assert_eq!(usage(dir.path()), (Some((60 * 1024, 100 * 1024)), 1));
        assert_eq!(usage(Path::new("/nowhere")), (None, 0));
    }

    #[test]
    fn pressure_is_told_once_until_it_is_over() {
        let mut pressure = Pressure::default();
        let told: Vec<bool> = [50, 91, 95, 85, 92, 79, 90]
            .map(|used| pressure.is_news(Usage { used, limit: 100 }))
            .to_vec();
        assert_eq!(told, [false, true, false, false, false, false, true]);
    }
}
