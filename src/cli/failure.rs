//! A command that failed: what is said, and the exit code.

use crate::{
    config::Problems,
    state::{legacy::LegacyError, restore::RestoreError, segment::reader::ReadError},
    store::StoreError,
};

/// The store is not available.
pub const UNAVAILABLE: i32 = 69;
/// The configuration is wrong.
pub const CONFIG: i32 = 78;

pub struct Failure {
    pub code: i32,
    pub error: anyhow::Error,
}

impl Failure {
    pub fn new(code: i32, error: impl Into<anyhow::Error>) -> Failure {
        Failure {
            code,
            error: error.into(),
        }
    }
}

/// An error with its causes, but for those that it quotes itself.
pub fn whole(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::new(1, error)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        // Whoever reads what is said has heard enough.
        let code = i32::from(error.kind() != std::io::ErrorKind::BrokenPipe);
        Failure::new(code, error)
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Failure {
        Failure::new(CONFIG, problems)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::new(UNAVAILABLE, error)
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Failure {
        let code = if matches!(error, ReadError::Store(_)) {
            UNAVAILABLE
        } else {
            1
        };
        Failure::new(code, error)
    }
}

impl From<LegacyError> for Failure {
    fn from(error: LegacyError) -> Failure {
        match error {
            LegacyError::Store(error) => error.into(),
            LegacyError::Read(error) => error.into(),
            other => Failure::new(1, other),
        }
    }
}

impl From<RestoreError> for Failure {
    fn from(error: RestoreError) -> Failure {
        match error {
            RestoreError::Read(error) => error.into(),
            other => Failure::new(1, other),
        }
    }
}
