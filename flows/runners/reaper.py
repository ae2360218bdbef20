"""Containers that must not outlive the process that started them.

    python flows/runners/reaper.py SOCKET CONTAINER

removes the container when the other end of its standard input is gone, as it is when its owner was killed. Where
this process was killed too, the next container runner on this machine finds the container by its label.
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the process that waits is small: it imports docker when it has something to remove
    from docker import DockerClient

OWNER = "malmm.owner"  # the label: machine, pid, and the time that process was started, in ticks since boot


def owner() -> str:
    """This process, as a label's value."""
    return f"{_machine()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(label: str) -> bool:
    """Whether a label names a process of this machine that has ended."""
    machine, pid, started = label.rsplit("/", 2)
    return machine == _machine() and _started(int(pid)) != started


def reap(client: "DockerClient") -> list[str]:
    """Remove the containers whose owners are gone; returns their names."""
    found = client.api.containers(all=True, filters={"label": OWNER})
    orphans = [container for container in found if is_gone(container["Labels"][OWNER])]
    for container in orphans:
        remove(client, container["Id"])
    return [container["Names"][0].lstrip("/") for container in orphans]


def remove(client: "DockerClient", container: str) -> None:
    """Remove a container, running or not; it may be gone already, or going."""
    from docker.errors import APIError

    try:
        client.api.remove_container(container, force=True, v=True)
    except APIError as error:
        if error.status_code not in (404, 409):
            raise


@contextlib.contextmanager
def lifeline(url: str, container: str) -> Iterator[None]:
    """While the block runs, a process beside us that removes the container should we be killed."""
    command = [sys.executable, "-P", __file__, url, container]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


def _machine() -> str:
    """Where a pid means the same: the host, and in it the namespace, for a flow may run in a container itself."""
    return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"


def _started(pid: int) -> str:
    """When a process was started; "" where it has ended. proc(5): state, starttime."""
    try:
        state, *about = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if state == "Z" else about[18]


def main(url: str, container: str) -> None:
    """Wait for the end of standard input, then remove the container."""
    sys.stdin.buffer.read()
    from docker import DockerClient

    remove(DockerClient(base_url=url), container)


if __name__ == "__main__":
    main(*sys.argv[1:])
