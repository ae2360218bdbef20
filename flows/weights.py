"""`malmm weights`: fetches weights that the user must bring, and keeps them only if their SHA-256 is the
pinned one.

The download goes to `<name>.part` and takes up where it stopped (HTTP Range, RFC 9110 section 14). The final
name appears by a rename, after the digest was checked: a file under that name is whole and right.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows import environments
from storage.digests import sha256_of

FOLDER = environments.REPO / "weights"  # the default place, ignored by git
_BLOCK = 1 << 20
_TRIES = 5  # failures in a row, with not one byte between them
_TIMEOUT = 60  # seconds without a byte

Progress = Callable[[int, int | None], None]  # bytes present, bytes in all where the server says


class WeightsFailed(Exception):
    """Weights could not be had. The message names the file or URL and what to do."""


@dataclass(frozen=True)
class Weights:
    """Weights this project knows: where they are published, their digest, and the terms they come under."""

    file: str
    url: str
    sha256: str
    size: int
    notice: str


KNOWN = {
    # The publisher states no digest. This one is what tzuo5/rag_favorite at 21f8a66
    # (examples/prepare_video_models.py) checks the file from the same URL against; the size is stated there
    # and, independently, by another project. Nobody has downloaded the file for this project. Where the
    # publisher's file differs, --sha256 overrules the pin.
    "imagebind_huge": Weights(
        file="imagebind_huge.pth",
        url="https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth",
        sha256="d6f6c22bedcc90708448d5d2fbb7b2db9c73f505dc89bd0b2e09b23af1b62157",
        size=4_803_584_173,
        notice=(
            "ImageBind's weights are by Meta Platforms, Inc., under CC-BY-NC-SA 4.0: no commercial use; "
            "attribution; share alike.\nhttps://creativecommons.org/licenses/by-nc-sa/4.0/\n"
            "They are not part of malmm, whose code is under Apache-2.0."
        ),
    ),
}


def known(name: str) -> Weights:
    """The entry for `name`. Raises WeightsFailed that lists the known names."""
    if name not in KNOWN:
        raise WeightsFailed(f"no weights are known as {name!r}; known: {', '.join(KNOWN)}")
    return KNOWN[name]


def fetch(url: str, sha256: str, to: Path, progress: Progress = lambda done, total: None, pause: float = 1.0) -> Path:
    """Downloads `url` to the file `to`, verified against `sha256`; returns `to`.

    A file already there is verified and not fetched again. A broken connection is tried again, `pause`
    seconds later and then twice as long each time; what had arrived stays in `<to>.part`, for this call and
    the next. Raises WeightsFailed for a wrong digest (then nothing is kept), an HTTP error, a full disk, or a
    connection that stays broken.
    """
    sha256 = sha256.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise WeightsFailed(f"{sha256!r} is not a SHA-256: 64 hexadecimal digits are expected")
    if not url.startswith(("https://", "http://")):
        raise WeightsFailed(f"{url}: only http and https are fetched; a local file needs no fetching")
    if to.exists():
        found = sha256_of(to)
        if found == sha256:
            return to
        raise WeightsFailed(
            f"{to} exists with SHA-256 {found}, not the expected {sha256}. It was left alone: move it away "
            "and run this again, or choose another place with --to"
        )
    part = to.with_name(to.name + ".part")
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        _download_all(url, part, progress, pause)
        found = sha256_of(part)
    except OSError as error:
        raise WeightsFailed(f"{part} could not be written: {error}") from error
    if found != sha256:
        part.unlink()
        raise WeightsFailed(
            f"{url} has SHA-256 {found}, not the expected {sha256}. Nothing was kept. If you know from its "
            f"publisher that this is the file, state its digest: --sha256 {found}"
        )
    part.replace(to)
    return to


def _download_all(url: str, part: Path, progress: Progress, pause: float) -> None:
    """Requests until the part file is complete, or _TRIES requests in a row brought nothing."""
    barren = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _download_some(url, part, progress):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise WeightsFailed(f"{url}: the server answers {error.code} {error.reason}. Check --url") from error
            reason = f"the server answers {error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        present = part.stat().st_size if part.exists() else 0
        barren = 0 if present > before else barren + 1
        if barren == _TRIES:
            raise WeightsFailed(
                f"{url}: {reason}, {_TRIES} times in a row. {present:,} bytes are kept in {part}; the same "
                "command takes it up from there"
            )
        time.sleep(pause * 2**barren)


def _download_some(url: str, part: Path, progress: Progress) -> bool:
    """One request for what is missing. Returns whether the part file is complete."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if start and error.code == 416:  # nothing lies beyond what is here: complete, or another file's remains
            size = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if size and int(size[1]) == start:
                return True
            part.unlink()
            return False
        raise
    with response:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status == 206 and not (span and int(span[1]) == start):
            raise WeightsFailed(f"{url}: the server sent another part of the file than was asked for")
        if response.status != 206:
            start = 0  # it ignores Range and sends the whole file
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        _need_room(part, total, start)
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            done = start
            progress(done, total)
            while block := response.read(_BLOCK):
                file.write(block)
                done += len(block)
                progress(done, total)
            file.flush()
            os.fsync(file.fileno())
    return total is None or done == total


def _need_room(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise WeightsFailed(
            f"{part.parent} has {free / 2**30:.1f} GiB free and {(total - start) / 2**30:.1f} are to come: "
            "make room, or choose another place with --to"
        )


def get(name: str, url: str | None = None, sha256: str | None = None, to: Path | None = None) -> Path:
    """What `malmm weights NAME` does: the notice, the download with a progress bar, the verified path.

    `to` is a file, or a folder that exists, and by default weights/ in the repository. Another `url` is held
    to the pinned digest as well, unless `sha256` is given.
    """
    from tqdm import tqdm

    weights = known(name)
    print(weights.notice)
    target = to or FOLDER / weights.file
    if target.is_dir():
        target = target / weights.file
    with tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc=weights.file, mininterval=1.0, disable=None) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        path = fetch(url or weights.url, sha256 or weights.sha256, target, progress)
    print(f"SHA-256 verified: {path.stat().st_size:,} bytes")
    return path
