//! `notify`: the service writes a newline to a file descriptor when it is ready, as s6 has it.
//!
//! <https://skarnet.org/software/s6/notifywhenup.html>

use std::{io, os::fd::OwnedFd};

use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver};

use crate::pid1;

/// Our end of the pipe on which a service says that it is ready.
#[derive(Debug)]
pub struct Notice(Receiver);

impl Notice {
    /// A pipe: where the notice comes out, and the service's end.
    ///
    /// # Errors
    /// Those of `pipe2`.
    pub fn pipe() -> io::Result<(Notice, OwnedFd)> {
        let (read, write) = pid1::pipe()?;
        Ok((Notice(read), write))
    }

    /// Waits for a newline; for ever if the service closes its end without one.
    pub async fn given(mut self) {
        let mut bytes = [0; 64];
        loop {
            match self.0.read(&mut bytes).await {
                Ok(0) | Err(_) => return std::future::pending().await,
                Ok(read) if bytes[..read].contains(&b'\n') => return,
                Ok(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_newline_is_the_notice_and_a_closed_pipe_is_none() {
        let (notice, write) = Notice::pipe().unwrap();
        std::fs::File::from(write).write_all(b"up\n").unwrap();
        timeout(Duration::from_secs(30), notice.given()).await.unwrap();
        let (notice, write) = Notice::pipe().unwrap();
        std::fs::File::from(write).write_all(b"up").unwrap();
        timeout(Duration::from_millis(100), notice.given()).await.unwrap_err();
    }
}
