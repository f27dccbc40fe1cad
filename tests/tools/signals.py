#!/usr/bin/env python3
"""Says which signals come: `ready` once it listens, then each signal's number on a line. TERM ends it."""
import os, signal, sys

CANNOT = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}
every = set(signal.valid_signals()) - CANNOT
signal.pthread_sigmask(signal.SIG_BLOCK, every)


def say(word):
    os.write(1, f"{sys.argv[1] if len(sys.argv) > 1 else ''}{word}\n".encode())


say("ready")
while True:
    got = signal.sigwait(every)
    say(int(got))
    if got == signal.SIGTERM:
        sys.exit(0)
