//! `tcp`: a connection is accepted.

use tokio::net::TcpStream;

/// Connects to `host:port`.
///
/// # Errors
/// Why not.
pub async fn check(addr: &str) -> Result<(), String> {
    match TcpStream::connect(addr).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{addr}: {error}")),
    }
}
