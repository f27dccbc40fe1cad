//! Processes that tests have beside themselves. They go by the spawner: other tests of the same program have its reaper
//! at work, which takes the status of every child.

use std::{
    ffi::OsString,
    fs::File,
    io::{BufRead, BufReader, Lines, Write},
    time::Duration,
};

use nix::{
    fcntl::OFlag,
    sys::signal::{Signal, killpg},
    unistd::pipe2,
};

use crate::pid1::{Child, Exit, Output, Spawn, Spawner, Stdio};

/// For a command to end.
const PATIENCE: Duration = Duration::from_secs(300);

/// That command with a variable of its environment set.
pub fn with_env(mut spawn: Spawn, name: &str, value: impl Into<OsString>) -> Spawn {
    spawn.env.retain(|(other, _)| other != name);
    spawn.env.push((name.into(), value.into()));
    spawn
}

/// Runs a command to its end.
pub fn run(spawn: Spawn) -> Output {
    wait_for(async { Spawner::start().unwrap().run(spawn, PATIENCE).await }).unwrap()
}

/// A process that is written to and read from. Killed when dropped.
pub struct Neighbour {
    child: Child,
    input: File,
    /// What it prints.
    pub lines: Lines<BufReader<File>>,
}

impl Neighbour {
    pub fn start(mut spawn: Spawn) -> Neighbour {
        let (stdin, input) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (output, stdout) = pipe2(OFlag::O_CLOEXEC).unwrap();
        (spawn.stdin, spawn.stdout) = (Stdio::Fd(stdin), Stdio::Fd(stdout));
        Neighbour {
            child: Spawner::start().unwrap().spawn(spawn).unwrap(),
            input: input.into(),
            lines: BufReader::new(File::from(output)).lines(),
        }
    }

    /// The next line that it prints.
    pub fn line(&mut self) -> String {
        self.lines.next().unwrap().unwrap()
    }

    /// Gives it a line to read.
    pub fn tell(&mut self) {
        self.input.write_all(b"\n").unwrap();
    }

    /// Kills it. Its end is that of its own accord if it was sooner.
    pub fn kill(&mut self) -> Exit {
        let _ = killpg(self.child.pid(), Signal::SIGKILL);
        wait_for(self.child.wait())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits on a thread of its own, as a test may be on a runtime's.
fn wait_for<T: Send>(future: impl Future<Output = T> + Send) -> T {
    let wait = || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(future)
    };
    std::thread::scope(|scope| scope.spawn(wait).join().unwrap())
}
