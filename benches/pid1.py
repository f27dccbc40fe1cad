"""PID 1 and supervision, beside those who do it too."""

import pathlib, sys, textwrap

from bench import *

REAP = 10_000
STARTS = 100
RESTARTS = 20


def inits():
    """Name, the command that runs `argv` under it, and its version."""
    return [
        ("moltinit exec", lambda argv: [MOLTINIT, "exec", "--", *argv], version(MOLTINIT, "--version")),
        ("tini", lambda argv: ["tini", "--", *argv], version("tini", "--version")),
        ("dumb-init", lambda argv: ["dumb-init", "--", *argv], version("dumb-init", "--version")),
    ]


def in_namespace(argv):
    return ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", *argv]


def start_up(wrap):
    """From spawn to the end of `true`, beside `true` alone."""
    times = []
    for _ in range(STARTS):
        began = time.perf_counter()
        subprocess.run([str(arg) for arg in wrap(["/bin/true"])], stderr=subprocess.DEVNULL)
        times.append((time.perf_counter() - began) * 1e3)
    return times


ORPHANS = scratch / "orphans.c"


def orphan_maker():
    """A program that leaves REAP orphans which all end at once, says when the last did, and waits for none to be left."""
    ORPHANS.write_text(textwrap.dedent(r"""
        #include <dirent.h>
        #include <fcntl.h>
        #include <signal.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <string.h>
        #include <sys/wait.h>
        #include <time.h>
        #include <unistd.h>
        static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
        static int left(void) {
            DIR *proc = opendir("/proc"); struct dirent *entry; int count = 0;
            while ((entry = readdir(proc))) if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9') count++;
            closedir(proc); return count;
        }
        int main(int argc, char **argv) {
            int gate[2], number = atoi(argv[1]); pipe(gate);
            if (fork() == 0) {
                for (int i = 0; i < number; i++) if (fork() == 0) { char c; close(gate[1]); read(gate[0], &c, 1); _exit(0); }
                _exit(0);
            }
            wait(NULL); close(gate[0]);
            double began = now(); close(gate[1]);
            while (left() > 2) { struct timespec pause = {0, 1000000}; nanosleep(&pause, NULL); }
            printf("%f\n", (now() - began) * 1e3); return 0;
        }"""))
    program = scratch / "orphans"
    subprocess.run(["cc", "-O2", "-w", "-o", program, ORPHANS], check=True)
    return program


def reaping(program):
    """Each in turn, since the machine is not the same from one minute to the next."""
    times = {}
    for _ in range(9):
        for name, wrap, _ in inits():
            argv = in_namespace(wrap([program, REAP]))
            said = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True).stdout
            times.setdefault(name, []).append(float(said))
    return times


# --- supervisors -----------------------------------------------------------------------------------------------------

SERVICES = 3


def body(directory, number):
    """A service that says its pid and sleeps."""
    return f"echo $$ > {directory}/pid-{number}.new; mv {directory}/pid-{number}.new {directory}/pid-{number}; exec sleep 100000"


def moltinit(directory):
    services = "".join(
        f'[[service]]\nname = "{"gateway" if n == 0 else f"s{n}"}"\ncommand = ["sh", "-c", "{body(directory, n)}"]\n'
        'ready = { command = ["true"], every = "1h" }\nlive = { command = ["true"], every = "1h" }\n'
        # A restart is what is measured, not the crash loop's brake.
        'crash_loop = { restarts = 100000, within = "1s" }\n'
        'backoff = { first = "0s", base = "0s", max = "0s", reset_after = "1s" }\n'
        for n in range(SERVICES)
    )
    (directory / "moltinit.toml").write_text(services)
    (directory / "data").mkdir()  # as a gateway that has once been ready leaves it; without, it is looked out for
    env = {"PATH": os.environ["PATH"], "HOME": str(directory), "MOLTINIT_CONFIG": str(directory / "moltinit.toml"),
           "MOLTINIT_STORE": str(directory / "store"), "MOLTINIT_DATA_DIR": str(directory / "data"),
           "MOLTINIT_RUN_DIR": str(directory / "run"), "MOLTINIT_HTTP_ADDR": f"127.0.0.1:{free_port()}"}
    return [MOLTINIT, "run"], env


def s6(directory):
    for n in range(SERVICES):
        service = directory / f"scan/s{n}"
        service.mkdir(parents=True)
        (service / "run").write_text(f"#!/bin/sh\n{body(directory, n)}\n")
        (service / "run").chmod(0o755)
    return ["s6-svscan", directory / "scan"], None


def supervisord(directory):
    text = f"[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\npidfile={directory}/pid\n"
    for n in range(SERVICES):
        script = directory / f"s{n}"
        script.write_text(f"#!/bin/sh\n{body(directory, n)}\n")
        script.chmod(0o755)
        text += f"[program:s{n}]\ncommand={script}\nstartsecs=0\nautorestart=true\nstdout_logfile=/dev/null\n"
    (directory / "supervisord.conf").write_text(text)
    return ["supervisord", "-c", directory / "supervisord.conf"], None


def horust(directory):
    services = directory / "services"
    services.mkdir()
    for n in range(SERVICES):
        script = directory / f"s{n}"
        script.write_text(f"#!/bin/sh\n{body(directory, n)}\n")
        script.chmod(0o755)
        (services / f"s{n}.toml").write_text(f'command = "{script}"\n[restart]\nstrategy = "always"\nbackoff = "0s"\nattempts = 0\n')
    return ["horust", "--services-path", services], None


def descendants(pid):
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in descendants(child))]


def is_service(pid):
    return pathlib.Path(f"/proc/{pid}/comm").read_text().strip() in ("sleep", "sh")


def switches(pid):
    """Times that each thread of the process has gone to sleep by itself."""
    counts = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                counts[task.name] = int(line.split()[1])
    return counts


def supervising(name, make):
    directory = scratch / name
    directory.mkdir()
    argv, env = make(directory)
    process = start(argv, env=env)
    pids = [directory / f"pid-{n}" for n in range(SERVICES)]
    wait(f"{name}'s services", lambda: all(pid.exists() for pid in pids), every=0.01)
    time.sleep(20)  # until the threads that were needed at the start are gone: their count goes with them
    own = [pid for pid in descendants(process.pid) if not is_service(pid)]
    resident = sum(memory(pid) for pid in own)
    before = {task: count for pid in own for task, count in switches(pid).items()}
    time.sleep(20)
    after = {task: count for pid in own for task, count in switches(pid).items()}
    wakeups = sum(count - before.get(task, 0) for task, count in after.items()) / 20
    times = []
    for _ in range(RESTARTS):
        time.sleep(1.2)  # supervisors slow down for what dies young
        pid = int(pids[1].read_text())
        pids[1].unlink()
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        wait("the restart", pids[1].exists, every=0.0002)
        times.append((time.perf_counter() - began) * 1e3)
    end(process)
    return times, resident, wakeups


print("## PID 1\n")
print(f"`./scripts/bench pid1`. Start-up is from spawn to the end of `/bin/true`; reaping is from the death of {REAP:,} orphans "
      "at once, as PID 1 of a namespace, until none is left.\n")
program = orphan_maker()
alone = start_up(lambda argv: argv)
reaped = reaping(program)
rows = [["`/bin/true` alone", spread(alone, "ms", 2), ""]]
for name, wrap, which in inits():
    rows.append([f"{name} ({which})", spread(start_up(wrap), "ms", 2), spread(reaped[name], "ms", 0)])
print(table(["init", "start-up", f"reaping {REAP:,}"], rows))

print(f"\n## Supervision\n\nThree services that sleep. A restart is from SIGKILL until the new process has said its pid; memory is "
      "resident, of the supervisor and its helpers; wake-ups are voluntary context switches a second, over 20 s.\n")
rows = []
for name, make, program in [("moltinit", moltinit, MOLTINIT), ("s6-svscan", s6, "s6-svscan"),
                            ("supervisord", supervisord, "supervisord"), ("horust", horust, "horust")]:
    if not shutil.which(str(program)):
        rows.append([name, "not installed here", "", ""])
        continue
    times, resident, wakeups = supervising(name, make)
    rows.append([name, spread(times, "ms"), f"{resident / 2**20:.1f} MiB", f"{wakeups:.1f}"])
print(table(["supervisor", "restart", "memory", "wake-ups/s"], rows))
print()
