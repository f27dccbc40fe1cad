//! The lease by which the current generation says that a gateway owns a state: a row of its database with the host, good
//! for five minutes.
//!
//! A gateway on the same host sees for itself that the owner is dead. One in the next container has another host's name,
//! and would refuse to start until the lease of the one that was killed, which came with the snapshot, has run out.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, OpenFlags, Result};

/// Ends the lease on that state. Only for when no gateway is alive on it. Gives whether there was one.
///
/// # Errors
/// The database cannot be opened or written to.
pub fn end(state_dir: &Path) -> Result<bool> {
    let path = state_dir.join("state/openclaw.sqlite");
    if !path.exists() {
        return Ok(false);
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags)?;
    database.busy_timeout(Duration::from_secs(1))?;
    if !database.table_exists(None, "state_leases")? {
        return Ok(false);
    }
    let ended = database.execute("DELETE FROM state_leases WHERE scope = 'gateway-owner'", [])?;
    Ok(ended > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateways_lease_is_ended_and_no_other() {
        let state = tempfile::tempdir().unwrap();
        assert!(!end(state.path()).unwrap(), "no database");
        std::fs::create_dir(state.path().join("state")).unwrap();
        let database = Connection::open(state.path().join("state/openclaw.sqlite")).unwrap();
        assert!(!end(state.path()).unwrap(), "no table");
        database
            .execute_batch(
                "PRAGMA journal_mode = WAL;
                 CREATE TABLE state_leases (scope TEXT, lease_key TEXT, PRIMARY KEY (scope, lease_key));
                 INSERT INTO state_leases VALUES ('gateway-owner', 'global'), ('another', 'global');",
            )
            .unwrap();
        assert!(end(state.path()).unwrap());
        assert!(!end(state.path()).unwrap(), "once");
        let left: String = database
            .query_row("SELECT group_concat(scope) FROM state_leases", [], |row| row.get(0))
            .unwrap();
        assert_eq!(left, "another");
    }
}
