//! Signals as people write them.

use nix::sys::signal::Signal;

/// `TERM`, `SIGTERM`, `term` or `15`.
///
/// # Errors
/// A text that says what would have been right.
pub fn parse(text: &str) -> Result<Signal, String> {
    let bad = || format!("`{text}` is not a signal; write it like TERM, SIGTERM or 15");
    if let Ok(number) = text.parse::<i32>() {
        return Signal::try_from(number).map_err(|_| bad());
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    name.parse().map_err(|_| bad())
}

/// `FROM:TO`: forward `TO` where `FROM` comes; a `TO` of 0 drops it.
///
/// # Errors
/// A text that says what would have been right.
pub fn parse_rewrite(text: &str) -> Result<(Signal, Option<Signal>), String> {
    let (from, to) = text
        .split_once(':')
        .ok_or_else(|| format!("`{text}` is not a rewrite; write it like TERM:QUIT or 15:3, or TERM:0 to drop it"))?;
    let to = if to == "0" { None } else { Some(parse(to)?) };
    Ok((parse(from)?, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_signals() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(parse(text), Ok(Signal::SIGTERM));
        }
        for text in ["", "0", "99", "SIGNOPE", "-1"] {
            assert!(parse(text).unwrap_err().contains("is not a signal"), "{text}");
        }
    }

    #[test]
    fn a_rewrite_is_two_signals_or_a_drop() {
        assert_eq!(parse_rewrite("15:QUIT"), Ok((Signal::SIGTERM, Some(Signal::SIGQUIT))));
        assert_eq!(parse_rewrite("INT:0"), Ok((Signal::SIGINT, None)));
        assert!(parse_rewrite("INT").is_err());
        assert!(parse_rewrite("INT:x").is_err());
    }
}
