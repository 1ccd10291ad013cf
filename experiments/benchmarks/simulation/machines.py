"""Several machines out of one: namespaces with an address, processes, a /dev/shm, a /run and a Ray folder of their own.

A bridge joins them. What a machine sends and receives is counted at its cable. A machine that is switched off says no
goodbye: its processes are killed and its cable is gone. Needs root, iproute2 and util-linux.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

RAY_FOLDER = Path("/tmp/ray")
PRIVATE_FOLDERS = ("/dev/shm", "/run", str(RAY_FOLDER))
PREFIX = f"fp{os.getpid() % 100_000}"
"""Of every interface's name, which has at most 15 characters."""


class Traffic(NamedTuple):
    """What went through a cable since its machine was switched on."""

    sent_bytes: int
    received_bytes: int
    sent_packets: int
    received_packets: int

    def since(self, before: "Traffic") -> "Traffic":
        return Traffic(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass(frozen=True)
class Machine:
    """One machine that runs."""

    name: str
    ip: str
    holder: "subprocess.Popen[bytes]"
    init_pid: int
    """Process 1 of the machine; with it, all others end."""

    @property
    def cable(self) -> str:
        return f"{PREFIX}{self.name}"

    def start(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        """Start a command on the machine; `options` are those of Popen."""
        enter = ["nsenter", f"--target={self.init_pid}", "--net", "--mount", "--pid", "--uts", "--wd=."]
        return subprocess.Popen([*enter, *command], text=True, **options)

    def traffic(self) -> Traffic:
        """Count at the bridge's end of the cable, where what the machine sends is received."""
        counters = Path(f"/sys/class/net/{self.cable}/statistics")
        names = ("rx_bytes", "tx_bytes", "rx_packets", "tx_packets")
        return Traffic(*(int((counters / name).read_text()) for name in names))

    def switch_off(self) -> None:
        """Pull the cable and kill everything on the machine."""
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.cable)
        self.holder.kill()
        self.holder.wait()


class Machines:
    """A context in which a number of machines run."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._bridge = f"{PREFIX}br"
        self._subnet = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self._machines: list[Machine] = []

    def __enter__(self) -> list[Machine]:
        RAY_FOLDER.mkdir(exist_ok=True)
        try:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("link", "set", self._bridge, "up")
            self._machines.extend(self._switch_on(number) for number in range(self._count))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self._machines

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for machine in self._machines:
            machine.switch_off()
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._bridge)

    def _switch_on(self, number: int) -> Machine:
        mounts = " && ".join(f"mount -t tmpfs tmpfs {folder}" for folder in PRIVATE_FOLDERS)
        boot = f"hostname node{number} && {mounts} && echo ready && exec sleep infinity"
        own = ["--net", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc"]
        last_will = ["setpriv", "--pdeathsig=KILL"]  # with this process, whatever ends it, the machine ends
        holder = subprocess.Popen([*last_will, "unshare", *own, "sh", "-c", boot], stdout=subprocess.PIPE)
        assert holder.stdout is not None
        if holder.stdout.readline() != b"ready\n":
            raise OSError("cannot make a machine out of namespaces; are you root?")
        init_pid = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text())
        machine = Machine(f"n{number}", f"{self._subnet}.{number + 1}", holder, init_pid)
        inner = f"{machine.cable}i"
        _ip("link", "add", machine.cable, "type", "veth", "peer", "name", inner)
        _ip("link", "set", machine.cable, "master", self._bridge, "up")
        _ip("link", "set", inner, "netns", str(init_pid))
        for words in (f"addr add {machine.ip}/24 dev {inner}", f"link set {inner} up", "link set lo up"):
            subprocess.run(["nsenter", f"--target={init_pid}", "--net", "ip", *words.split()], check=True)
        return machine


def why_impossible() -> str:
    """Return why this computer cannot play several machines; empty if it can."""
    missing = [tool for tool in ("ip", "unshare", "nsenter", "setpriv") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if os.geteuid() != 0:
        return "needs root"
    return ""


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Look every 50 ms until a condition holds.

    Raises:
        TimeoutError: it never did.

    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, stderr=subprocess.DEVNULL)
