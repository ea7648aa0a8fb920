"""Two hosts on one machine: network, host names and ``/tmp`` of their own, and one folder that they share.

They are network, UTS and mount namespaces, joined by a pair of virtual network cards; root is needed to make them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.case import CannotBeTried

ROOT = Path(__file__).parents[2]
SHARED = Path("/mnt")
"""Where the hosts see the shared folder."""
_ENTER = """
hostname "$0" && mount --bind "$1" /mnt && mount --bind "$1/hosts" /etc/hosts || exit 99
[ -z "$2" ] || mount -t tmpfs none /tmp || exit 99
shift 2 && exec "$@"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A place for processes."""

    name: str
    address: str
    shared: Path
    """The shared folder, as this machine sees it."""

    @property
    def _namespace(self) -> str:
        return f"{self.name}-{os.getpid()}"

    def start(
        self, command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command; ``log`` gets what it prints. The process id is that of the command itself."""
        own_temporary = "" if ROOT.is_relative_to("/tmp") or sys.prefix.startswith("/tmp") else "yes"
        enter = ["ip", "netns", "exec", self._namespace, "unshare", "--uts", "--mount", "sh", "-c", _ENTER]
        whole = [*enter, self.name, str(self.shared), own_temporary, *command]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(variables or {})}
        with log.open("wb") as file:
            return subprocess.Popen(whole, env=environment, cwd="/", stdin=subprocess.DEVNULL, stdout=file, stderr=file)

    def cut_off(self) -> None:
        """Take the network card out, without a word to the other host."""
        _ip("-n", self._namespace, "link", "set", "card", "down")

    def connect(self) -> None:
        """Put the network card in again."""
        _ip("-n", self._namespace, "link", "set", "card", "up")

    def _make(self) -> None:
        _ip("netns", "add", self._namespace)
        _ip("-n", self._namespace, "link", "set", "lo", "up")

    def _join(self, other: Host) -> None:
        """Connect this host with another one."""
        ends = ["card", "netns", self._namespace, "type", "veth", "peer", "name", "card", "netns", other._namespace]
        _ip("link", "add", *ends)
        for host in (self, other):
            _ip("-n", host._namespace, "address", "add", f"{host.address}/24", "dev", "card")
            host.connect()

    def _remove(self) -> None:
        subprocess.run(["ip", "netns", "delete", self._namespace], check=False, capture_output=True)


@contextmanager
def two_hosts(shared: Path) -> Iterator[tuple[Host, Host]]:
    """Make two hosts that share a folder.

    Raises:
        CannotBeTried: the machine does not allow it.

    """
    hosts = (
        Host(name="host-a", address="10.99.0.1", shared=shared),
        Host(name="host-b", address="10.99.0.2", shared=shared),
    )
    (shared / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{one.address} {one.name}\n" for one in hosts))
    try:
        for host in hosts:
            host._make()
        hosts[0]._join(hosts[1])
        yield hosts
    finally:
        for host in hosts:
            host._remove()


def _ip(*arguments: str) -> None:
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
        raise CannotBeTried(f"two hosts: ip {' '.join(arguments)}: {reason}") from error
