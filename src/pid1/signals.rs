//! Signals by their numbers: as people write them, and as they are sent and awaited. A real-time signal has no name of
//! its own, and init systems use them: `STOPSIGNAL SIGRTMIN+3` is systemd's.

use std::{borrow::Cow, ptr};

use nix::{
    errno::Errno,
    libc,
    sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    unistd::Pid,
};

/// `TERM`, `SIGTERM`, `term`, `15`, `RTMIN+3` or `RTMAX-1`.
///
/// # Errors
/// A text that says what would have been right.
pub fn parse(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().or_else(|| named(&text.to_ascii_uppercase()));
    number
        .filter(|number| Signal::try_from(*number).is_ok() || real_time().contains(number))
        .ok_or_else(|| format!("`{text}` is not a signal; write it like TERM, SIGTERM, 15 or RTMIN+3"))
}

fn named(name: &str) -> Option<i32> {
    let name = name.strip_prefix("SIG").unwrap_or(name);
    for (base, at) in [("RTMIN", *real_time().start()), ("RTMAX", *real_time().end())] {
        match name.strip_prefix(base) {
            Some("") => return Some(at),
            Some(offset) => return at.checked_add(offset.parse().ok()?),
            None => {}
        }
    }
    format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32)
}

/// Those below are the C library's own.
fn real_time() -> std::ops::RangeInclusive<i32> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// `FROM:TO`: forward `TO` where `FROM` comes; a `TO` of 0 drops it.
///
/// # Errors
/// A text that says what would have been right.
pub fn parse_rewrite(text: &str) -> Result<(i32, Option<i32>), String> {
    let (from, to) = text
        .split_once(':')
        .ok_or_else(|| format!("`{text}` is not a rewrite; write it like TERM:QUIT or 15:3, or TERM:0 to drop it"))?;
    let to = if to == "0" { None } else { Some(parse(to)?) };
    Ok((parse(from)?, to))
}

/// `SIGTERM`, or `SIGRTMIN+3`.
pub fn name(signal: i32) -> Cow<'static, str> {
    match Signal::try_from(signal) {
        Ok(signal) => signal.as_str().into(),
        Err(_) => match signal - real_time().start() {
            0 => "SIGRTMIN".into(),
            above if real_time().contains(&signal) => format!("SIGRTMIN+{above}").into(),
            _ => format!("signal {signal}").into(),
        },
    }
}

/// Sends a signal to a process.
///
/// # Errors
/// Those of `kill`.
pub fn send(pid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: the call takes two integers.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// Sends a signal to a process group.
///
/// # Errors
/// Those of `killpg`.
pub fn send_group(group: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: the call takes two integers.
    Errno::result(unsafe { libc::killpg(group.as_raw(), signal) }).map(drop)
}

/// Asks for a signal when the parent of this process dies.
///
/// # Errors
/// Those of `prctl`.
pub(super) fn at_parents_death(signal: i32) -> nix::Result<()> {
    // SAFETY: the request takes one integer.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) }).map(drop)
}

/// Sleeps until one of these signals, which must be blocked, is pending, and takes it.
///
/// # Errors
/// `EINTR`.
pub(super) fn wait(signals: &SigSet) -> nix::Result<i32> {
    // SAFETY: a set that is there, and nothing to be told beyond the number.
    Errno::result(unsafe { libc::sigwaitinfo(signals.as_ref(), ptr::null_mut()) })
}

/// Takes back what a caller may have passed on, that our children's ends are nobody's business: the kernel would reap
/// them itself, and tell nobody how they ended.
pub(super) fn hear_of_children() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: no function of ours is installed.
    let _ = unsafe { sigaction(Signal::SIGCHLD, &default) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_signals() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(parse(text), Ok(libc::SIGTERM));
        }
        for text in ["RTMIN+3", "SIGRTMIN+3", "37", "rtmax-27"] {
            assert_eq!(parse(text), Ok(37), "{text}");
        }
        for text in [
            "", "0", "32", "65", "99", "SIGNOPE", "-1", "RTMIN-1", "RTMAX+1", "RTMINx",
        ] {
            assert!(parse(text).unwrap_err().contains("is not a signal"), "{text}");
        }
    }

    #[test]
    fn every_signal_has_a_name_that_it_is_known_by() {
        for signal in (1..=31).chain(34..=64) {
            assert_eq!(parse(&name(signal)), Ok(signal));
        }
        assert_eq!((&*name(37), &*name(99)), ("SIGRTMIN+3", "signal 99"));
    }

    #[test]
    fn a_rewrite_is_two_signals_or_a_drop() {
        assert_eq!(parse_rewrite("15:QUIT"), Ok((libc::SIGTERM, Some(libc::SIGQUIT))));
        assert_eq!(parse_rewrite("INT:0"), Ok((libc::SIGINT, None)));
        assert!(parse_rewrite("INT").is_err());
        assert!(parse_rewrite("INT:x").is_err());
    }
}
