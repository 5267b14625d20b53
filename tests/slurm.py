"""A real Slurm on this machine: munged, slurmctld and two slurmd in a folder of their own, ended with the test."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import time

import psutil

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")
SBIN = "/usr/sbin:/sbin"


def path():
    return f"{os.environ['PATH']}:{SBIN}"


def missing():
    return [name for name in DAEMONS if shutil.which(name, path=path()) is None]


def why_not():
    """Installs Debian's packages where it may; what keeps Slurm from running here, or None."""
    if not missing():
        return None
    lacks = f"Slurm is not installed (no {', '.join(missing())})"
    if os.environ.get("QLLAVA_INSTALL") != "1":
        return f"{lacks}; QLLAVA_INSTALL=1 lets this test install slurm-wlm and munge"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"{lacks}, and installing it takes root and apt-get"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = [
        "apt-get",
        "-o",
        "DPkg::Lock::Timeout=200",
        "install",
        "-y",
        "--no-install-recommends",
        "slurm-wlm",
        "munge",
    ]
    try:
        for command in (["apt-get", "update"], install):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            if done.returncode:
                return f"{lacks}, and `{' '.join(command)}` failed: {done.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired as error:
        return f"{lacks}, and `{' '.join(error.cmd)}` took more than {error.timeout:.0f} s"
    return f"{lacks}, and what was installed has none either" if missing() else None


CONF = """
ClusterName=qllava
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""  # cred_expire is also how long a job that was queued again waits


class Slurm:
    """Two nodes, n1 and n2, with four processors each (of those that this machine has)."""

    def __init__(self, folder):
        self.folder, self.daemons = folder, []
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path()}

    def start(self):
        folder = self.folder
        folder.chmod(0o755)  # munged wants its socket to be within everyone's reach
        for name in ("state", "n1", "n2"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for free in sockets:
                free.bind(("127.0.0.1", 0))
            ports = [free.getsockname()[1] for free in sockets]
        (folder / "slurm.conf").write_text(CONF.format(ports=ports, user=getpass.getuser(), folder=folder))
        places = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._daemon("munged", "--foreground", f"--socket={folder}/munge.socket", *places)
        self._daemon("slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self._daemon("slurmd", "-D", "-N", node)
        self.until(lambda: self.says("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"], 60)

    def _daemon(self, *words):
        with (self.folder / f"{words[0]}.out").open("a") as out:
            self.daemons.append(subprocess.Popen(words, env=self.environment, stdout=out, stderr=out))

    def says(self, *words, cwd=None, **variables):
        """What a command of Slurm prints; it may fail."""
        done = subprocess.run(
            words, env=self.environment | variables, cwd=cwd, capture_output=True, text=True, timeout=60
        )
        return (done.stdout or done.stderr).strip()

    def state(self, job):
        """State, and times that it was queued again."""
        shown = dict(w.split("=", 1) for w in self.says("scontrol", "-o", "show", "job", job).split() if "=" in w)
        return shown.get("JobState"), int(shown.get("Restarts", -1))

    def until(self, holds, seconds):
        """Waits until something holds, while the daemons live."""
        end = time.monotonic() + seconds
        while not holds():
            dead = [d.args[0] for d in self.daemons if d.poll() is not None]
            assert not dead and time.monotonic() < end, f"{dead or 'too late'}\n{self.logs()}"
            time.sleep(0.5)

    def logs(self):
        queue = self.says("squeue", "-a", "-o", "%i %j %T %r")
        return "\n".join([queue, *(f"== {f}\n{f.read_text()[-1500:]}" for f in self.folder.glob("*.log"))])

    def stop(self):
        """Ends the jobs, then the daemons, and whatever they have left."""
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            end = time.monotonic() + 20
            while self.says("squeue", "-h") and time.monotonic() < end:
                self.says("scancel", "--user", getpass.getuser())
                self.says("scancel", "--full", "--signal=KILL", "--user", getpass.getuser())
                time.sleep(1)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()
        for process in psutil.process_iter():  # what slurmd started lives on without it
            with contextlib.suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    parent = process.parent()
                    for found in (process, *([parent] if parent and parent.name() == "slurmstepd" else ())):
                        found.kill()
