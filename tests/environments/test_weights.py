"""`malmm weights` against an HTTP server on this machine that behaves well, badly, and worse."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows import weights
from flows.weights import WeightsFailed, fetch

BODY = bytes(range(256)) * 12_000  # 3 MB: several blocks
DIGEST = hashlib.sha256(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `body`; `cut` bytes at a time where set; honours Range if `ranges`; keeps what Ranges it saw."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.cut, self.ranges, self.status = BODY, None, True, 200
        self.requests: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.pth"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Server = self.server
        wanted = self.headers.get("Range")
        server.requests.append(wanted)
        if server.status != 200:
            return self.send_error(server.status)
        start = int(re.match(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        if start and start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            self.end_headers()
            return None
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        self.wfile.write(server.body[start:][: server.cut])
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "weights" / "weights.pth"


def part(to: Path) -> Path:
    return to.with_name(to.name + ".part")


def test_complete(server: Server, to: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert fetch(server.url, DIGEST.upper(), to, lambda *state: seen.append(state)) == to
    assert to.read_bytes() == BODY
    assert seen[0] == (0, len(BODY)) and seen[-1] == (len(BODY), len(BODY))
    assert [p.name for p in to.parent.iterdir()] == ["weights.pth"]
    fetch(server.url, DIGEST, to)
    assert server.requests == [None]  # the second call verified, and asked for nothing


def test_broken_connections_are_taken_up(server: Server, to: Path) -> None:
    server.cut = 1_300_000
    fetch(server.url, DIGEST, to, pause=0)
    assert to.read_bytes() == BODY
    assert server.requests == [None, "bytes=1300000-", "bytes=2600000-"]


def test_a_killed_run_is_taken_up(server: Server, to: Path) -> None:
    to.parent.mkdir()
    part(to).write_bytes(BODY[:1000])
    fetch(server.url, DIGEST, to)
    assert to.read_bytes() == BODY and server.requests == ["bytes=1000-"]


def test_killed_between_the_last_byte_and_the_rename(server: Server, to: Path) -> None:
    to.parent.mkdir()
    part(to).write_bytes(BODY)
    fetch(server.url, DIGEST, to)
    assert to.read_bytes() == BODY and not part(to).exists()


def test_server_without_ranges_starts_again(server: Server, to: Path) -> None:
    server.ranges = False
    to.parent.mkdir()
    part(to).write_bytes(b"x" * 5_000_000)  # longer than the file, and other bytes
    fetch(server.url, DIGEST, to)
    assert to.read_bytes() == BODY


def test_remains_longer_than_the_file_are_dropped(server: Server, to: Path) -> None:
    to.parent.mkdir()
    part(to).write_bytes(b"x" * (len(BODY) + 1))
    fetch(server.url, DIGEST, to, pause=0)
    assert to.read_bytes() == BODY


def test_wrong_digest_keeps_nothing(server: Server, to: Path) -> None:
    server.body = BODY[:-1] + b"!"
    with pytest.raises(WeightsFailed, match=r"not the expected .* Nothing was kept.*--sha256"):
        fetch(server.url, DIGEST, to)
    assert list(to.parent.iterdir()) == []


def test_resumed_from_wrong_bytes_keeps_nothing(server: Server, to: Path) -> None:
    to.parent.mkdir()
    part(to).write_bytes(b"x" * 1000)
    with pytest.raises(WeightsFailed, match="not the expected"):
        fetch(server.url, DIGEST, to)
    assert list(to.parent.iterdir()) == []


def test_wrong_file_in_place_is_left_alone(server: Server, to: Path) -> None:
    to.parent.mkdir()
    to.write_bytes(b"mine")
    with pytest.raises(WeightsFailed, match="left alone"):
        fetch(server.url, DIGEST, to)
    assert to.read_bytes() == b"mine" and server.requests == []


def test_404_is_final(server: Server, to: Path) -> None:
    server.status = 404
    with pytest.raises(WeightsFailed, match=r"404.*--url"):
        fetch(server.url, DIGEST, to, pause=0)
    assert len(server.requests) == 1 and list(to.parent.iterdir()) == []


def test_a_server_in_trouble_is_asked_again_and_the_part_kept(server: Server, to: Path) -> None:
    server.status = 503
    to.parent.mkdir()
    part(to).write_bytes(BODY[:1000])
    with pytest.raises(WeightsFailed, match=r"503.*1,000 bytes are kept"):
        fetch(server.url, DIGEST, to, pause=0)
    assert len(server.requests) == 5 and part(to).read_bytes() == BODY[:1000]


def test_full_disk_is_told_before_the_first_byte(server: Server, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(WeightsFailed, match="GiB free"):
        fetch(server.url, DIGEST, to)
    assert not to.exists() and not part(to).exists()


@pytest.mark.parametrize("url, digest", [("file:///etc/passwd", DIGEST), ("http://127.0.0.1/x", "abc")])
def test_bad_arguments(url: str, digest: str, to: Path) -> None:
    with pytest.raises(WeightsFailed):
        fetch(url, digest, to)


def test_the_command_shows_the_licence(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = weights.get("imagebind_huge", url=server.url, sha256=DIGEST, to=tmp_path)
    assert path == tmp_path / "imagebind_huge.pth"
    assert "CC-BY-NC-SA 4.0" in capsys.readouterr().out
    with pytest.raises(WeightsFailed, match="known: imagebind_huge"):
        weights.get("imagebind_tiny")
