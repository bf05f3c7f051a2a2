"""A throw-away SLURM cluster on this machine: munge, a controller and several nodes, all on 127.0.0.1.

By hand, from the root of the checkout:

    eval "$(python tests/servers/slurm.py up /tmp/my-cluster)"     # SLURM_CONF for this shell
    sinfo
    python tests/servers/slurm.py down /tmp/my-cluster

Needs Debian's packages, which root gets installed on the way, and nothing else of the system: no systemd, no
cgroups, no accounting, no open port. Several clusters may run at once. Nodes are processes on this machine
that claim cores which need not exist; what one of them "fails" with, the others survive.
"""

from __future__ import annotations

import argparse
import fcntl
import getpass
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from debian import Unavailable, install

PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
PREFIX = "lab-slurm-"
_CPUS, _GPUS, _MEMORY = 4, 2, 4000  # of a node, memory in MB; they need not exist
_SRUN_PORTS = 64
_PATIENCE = 60.0  # seconds for a daemon to come or go; a second or two unless the machine is busy

_SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SrunPortRange={srun_ports}
# a requeued job waits until its old credential has expired, two minutes by default
AuthInfo=socket={base}/munge/socket,cred_expire=5
# listen on the loopback interface alone
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={base}/controller
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld
SlurmdPidFile={base}/run/%n
SlurmctldLogFile={base}/log/slurmctld
SlurmdLogFile={base}/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={base}/task_prolog
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# jobs that must go get the signal that they asked for
SlurmctldParameters=preempt_send_user_signal
# folders of logs and receipts are named by job: ids of an earlier cluster must not come again
FirstJobId={first_job}
MaxArraySize=100
KillWait=5
# a lost node is noticed after half a minute
SlurmdTimeout=10
MessageTimeout=10
ReturnToService=2
DefMemPerCPU={memory_per_cpu}
GresTypes=gpu
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports} {size}
PartitionName=DEFAULT DefaultTime=10 MaxTime=INFINITE
PartitionName=batch Nodes={usual} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes={usual} PriorityTier=2 PreemptMode=OFF
"""
# Names of the nodes are no hosts: where the tasks of a job meet has to be said.
_TASK_PROLOG = "#!/bin/sh\necho export MASTER_ADDR=127.0.0.1\necho export GLOO_SOCKET_IFNAME=lo\n"


class Cluster:
    """A cluster in a folder.

    Args:
        base: the folder, short (sockets) and readable by all (munge has a user of its own).
        nodes: how many, in the partition `batch`, and `urgent`, which goes before it.
        spare: how many more, in the partition `spare`.
    """

    def __init__(self, base: Path, nodes: int = 2, spare: int = 0) -> None:
        self.base = base
        self.nodes = [f"node{number}" for number in range(1, nodes + spare + 1)]
        self._usual = nodes
        self.conf = base / "slurm.conf"
        self._environment = {**os.environ, "SLURM_CONF": str(self.conf)}

    def start(self) -> None:
        """Starts all and waits until every node is idle.

        Raises:
            Unavailable: it does not come up; says what its log says.
        """
        _install()
        _resolve_host()
        for name in ("controller", "spool", "run", "log", "munge"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        self.base.chmod(0o755)
        self._configure()
        self._start_munge()
        self.start_controller()
        for name in self.nodes:
            self.start_node(name)
        self.wait_idle()

    def wait_idle(self) -> None:
        """Waits until every node is up and without a job."""
        self._await(lambda: len(set(self._idle())) == len(self.nodes), "nodes")

    def _idle(self) -> list[str]:
        return self.run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").split()

    def run(self, *command: str) -> str:
        """Output of a client's command; "" where it failed."""
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else ""

    def start_controller(self) -> None:
        self._launch("slurmctld", "-f", str(self.conf))

    def stop_controller(self) -> None:
        """Ends the controller in order; with SIGKILL it may forget what was submitted last."""
        self._end(["slurmctld"])

    def start_node(self, name: str) -> None:
        (self.base / "spool" / name).mkdir(exist_ok=True)
        self._launch("slurmd", "-f", str(self.conf), "-N", name)

    def kill_node(self, name: str) -> None:
        """Kills a node's daemon at once. What runs on the node goes on, as it does when a network is cut."""
        if (pid := self._pid(name)) is not None:
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Ends all jobs and daemons; also what is left after a crash."""
        if self._pid("slurmctld") is not None:
            self.run("scancel", "--quiet", f"--user={getpass.getuser()}")
            with_patience(lambda: not self.run("squeue", "-h").strip(), seconds=10)
        self._end(["slurmctld", *self.nodes])
        self._sweep()
        self._end(["munged"])

    def _configure(self) -> None:
        port = _free_ports(1 + len(self.nodes) + _SRUN_PORTS)
        first, last = port + 1, port + len(self.nodes)
        values = {
            "base": self.base,
            "host": _host(),
            "user": getpass.getuser(),
            "port": port,
            "srun_ports": f"{last + 1}-{last + _SRUN_PORTS}",
            "nodes": f"node[1-{len(self.nodes)}]",
            "ports": f"[{first}-{last}]",
            "usual": f"node[1-{self._usual}]",
            "size": f"CPUs={_CPUS} RealMemory={_MEMORY} Gres=gpu:{_GPUS}",
            "memory_per_cpu": _MEMORY // _CPUS,
            "first_job": int(time.time()) // 8 % 50_000_000 + 1000,
        }
        conf = _SLURM_CONF.format(**values)
        if len(self.nodes) > self._usual:
            conf += f"PartitionName=spare Nodes=node[{self._usual + 1}-{len(self.nodes)}]\n"
        self.conf.write_text(conf)
        # slurmd fails where its cgroup plugin cannot start, although nothing here uses one. The first plugin
        # touches nothing when it starts; newer versions can do without.
        plugin = "disabled" if _version() >= (23, 2) else "cgroup/v1"
        (self.base / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
        gres = ""
        for number in range(_GPUS):  # a GPU must be a character device; a link to one is enough
            device = self.base / f"gpu{number}"
            device.unlink(missing_ok=True)
            device.symlink_to("/dev/null")
            gres += f"NodeName={values['nodes']} Name=gpu File={device}\n"
        (self.base / "gres.conf").write_text(gres)
        prolog = self.base / "task_prolog"
        prolog.write_text(_TASK_PROLOG)
        prolog.chmod(0o755)

    def _start_munge(self) -> None:
        folder = self.base / "munge"
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(random.randbytes(128))
        demote: dict[str, object] = {}
        if os.geteuid() == 0:  # it refuses to run with files of others
            user = pwd.getpwnam("munge")
            for path in (folder, key):
                os.chown(path, user.pw_uid, user.pw_gid)
            demote = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        names = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in (names | {"socket": "socket"}).items()]
        self._launch("munged", *options, **demote)
        (self.base / "run" / "munged").symlink_to(folder / "pid")
        self._await(lambda: bool(self.run("munge", "-S", str(folder / "socket"), "-n")), "munge")

    def _launch(self, program: str, *options: str, **settings: object) -> None:
        """Runs a daemon's program, which returns when the daemon is in the background."""
        done = subprocess.run(
            [_find(program) or program, *options],
            stdout=subprocess.DEVNULL,  # the daemon keeps it open
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env=self._environment,
            timeout=_PATIENCE,
            **settings,  # type: ignore[call-overload]
        )
        if done.returncode:
            raise Unavailable(f"{program} does not start: {self._log()}")

    def _await(self, ready: Callable[[], bool], what: str) -> None:
        if not with_patience(ready):
            raise Unavailable(f"{what} not ready after {_PATIENCE:.0f} s: {self._log()}")

    def _log(self) -> str:
        """The last lines of every daemon's log."""
        logs = [log for log in (*(self.base / "log").glob("*"), self.base / "munge" / "log") if log.exists()]
        return "; ".join(f"{log.name}: {' | '.join(log.read_text().splitlines()[-3:])}" for log in logs)

    def _pid(self, name: str) -> int | None:
        """The process of a daemon, None where it does not run."""
        try:
            pid = int((self.base / "run" / name).read_text())
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self.base).encode() in arguments and _alive(pid) else None  # ids come again

    def _end(self, names: list[str]) -> None:
        """Ends daemons, all at once: each takes its time."""
        pids = [pid for name in names if (pid := self._pid(name)) is not None]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        if not with_patience(lambda: not any(map(_alive, pids)), seconds=15):
            for pid in filter(_alive, pids):
                os.kill(pid, signal.SIGKILL)

    def _sweep(self) -> None:
        """Kills what a crashed node left: steps and tasks outlive their daemon. They name this cluster."""
        mark = f"SLURM_CONF={self.conf}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            in_job = any(item.startswith(b"SLURM_JOB_ID=") for item in environment)
            if mark in environment and (in_job or _command(folder) == "slurmstepd"):
                with suppress(ProcessLookupError):
                    os.kill(int(folder.name), signal.SIGKILL)


def with_patience(ready: Callable[[], bool], seconds: float = _PATIENCE) -> bool:
    """Waits for something; whether it came."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def temporary_cluster(nodes: int, spare: int) -> Cluster:
    """A cluster in a fresh folder, which ends with this process at the latest when the next one is made."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            owner = int((left / "owner").read_text())
        except (OSError, ValueError):
            continue
        if not _alive(owner) and os.access(left, os.W_OK):
            remove(Cluster(left, nodes=len(list((left / "spool").glob("node*")))))
    base = Path(tempfile.mkdtemp(prefix=PREFIX))
    (base / "owner").write_text(str(os.getpid()))
    return Cluster(base, nodes, spare)


def remove(cluster: Cluster) -> None:
    """Stops a cluster and deletes its folder."""
    cluster.stop()
    shutil.rmtree(cluster.base, ignore_errors=True)


def _install() -> None:
    """Makes sure that SLURM and munge are there.

    Raises:
        Unavailable: they are not, and cannot be installed here.
    """
    missing = [package for program, package in PROGRAMS.items() if _find(program) is None]
    if missing:
        install(f"SLURM ({', '.join(missing)})", missing)


def _resolve_host() -> None:
    """Makes sure that the machine's name has an address: srun listens on it."""
    try:
        socket.gethostbyname(_host())
    except OSError:
        line = f"127.0.0.1 {_host()}"
        if os.geteuid() != 0:
            raise Unavailable(f"the name of this machine has no address; add to /etc/hosts: {line}") from None
        with Path("/etc/hosts").open("a") as hosts:
            hosts.write(f"\n{line}\n")


def _free_ports(count: int) -> int:
    """The first of so many adjacent ports that nobody uses; they are this process's as long as it lives."""
    for start in random.SystemRandom().sample(range(20_000, 32_000, 100), 100):
        try:
            lock = os.open(f"{tempfile.gettempdir()}/{PREFIX}ports-{start}.lock", os.O_RDWR | os.O_CREAT)
            # the lock stays till this process ends: srun binds its ports late
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for port in range(start, start + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return start
    raise Unavailable(f"no {count} adjacent ports are free on 127.0.0.1")


def _version() -> tuple[int, ...]:
    text = subprocess.run([_find("slurmd") or "slurmd", "-V"], capture_output=True, text=True).stdout
    return tuple(int(number) for number in re.findall(r"\d+", text)[:2])


def _host() -> str:
    return socket.gethostname().split(".")[0]


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _alive(pid: int) -> bool:
    """Whether a process works; one that only waits for its parent to take note does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _command(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return ""


def main() -> None:
    parser = argparse.ArgumentParser(description="A throw-away SLURM cluster on this machine")
    parser.add_argument("action", choices=["up", "down"])
    parser.add_argument("folder", type=Path, help="its folder; give a short path")
    parser.add_argument("--nodes", type=int, default=2)
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    if arguments.action == "down":
        if not (folder / "slurm.conf").exists():
            raise SystemExit(f"{folder}: no cluster")
        remove(Cluster(folder, nodes=len(list((folder / "spool").glob("node*")))))
        return
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder}: not empty; `down` deletes the folder of a cluster, so it gets its own")
    cluster = Cluster(folder, arguments.nodes)
    try:
        cluster.start()
    except Unavailable as error:
        cluster.stop()
        raise SystemExit(f"no cluster: {error}") from None
    print(f"export SLURM_CONF={cluster.conf}")


if __name__ == "__main__":
    main()
