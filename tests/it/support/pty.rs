//! A person at a terminal.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command},
    sync::{Arc, Mutex},
};

use nix::{libc, pty::openpty};

use super::{PATIENCE, eventually, process};

/// A program that leads the session of a terminal, and what was seen there.
pub struct Terminal {
    program: Child,
    keyboard: File,
    screen: Arc<Mutex<String>>,
    /// How much of the screen has been looked at.
    looked: usize,
}

impl Terminal {
    pub fn run(argv: &[&str]) -> Terminal {
        let pty = openpty(None, None).unwrap();
        let mut command = Command::new(argv[0]);
        command.args(&argv[1..]).env("PS1", "$ ").env("TERM", "dumb");
        command.stdin(pty.slave.try_clone().unwrap());
        command.stdout(pty.slave.try_clone().unwrap()).stderr(pty.slave);
        // SAFETY: two system calls, nothing else, between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::setsid();
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let program = command.spawn().unwrap();
        drop(command);
        let keyboard = File::from(pty.master);
        let mut shown = keyboard.try_clone().unwrap();
        let screen = Arc::new(Mutex::new(String::new()));
        let to = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // The end of the session is an error here (EIO).
            while let Ok(count @ 1..) = shown.read(&mut piece) {
                to.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..count]));
            }
        });
        Terminal {
            program,
            keyboard,
            screen,
            looked: 0,
        }
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    pub fn type_line(&mut self, line: &str) {
        self.type_keys(line);
        self.type_keys("\r");
    }

    /// Waits until `text` appears after what was expected before.
    pub fn expect(&mut self, text: &str) {
        let what = format!("`{}` at the terminal", text.escape_debug());
        let (screen, looked) = (&self.screen, self.looked);
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&what, PATIENCE, || screen.lock().unwrap()[looked..].find(text))
        }));
        match found {
            Ok(at) => self.looked += at + text.len(),
            Err(_) => panic!("no {what}:\n{}", self.seen()),
        }
    }

    pub fn seen(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    /// Waits until a process of that name runs somewhere below and is in that state.
    pub fn wait_for_state_of(&self, name: &str, state: char) {
        eventually(name, PATIENCE, || {
            process::tree(self.program.id() as i32)
                .into_iter()
                .find(|pid| process::name(*pid) == name && process::is_in_state(*pid, state))
        });
    }

    pub fn end(&mut self) -> i32 {
        let status = eventually("the end of the session", PATIENCE, || self.program.try_wait().unwrap());
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        process::kill_tree(self.program.id() as i32);
        let _ = self.program.wait();
    }
}
