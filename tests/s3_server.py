"""An S3 server for tests: moto's, a process of its own on 127.0.0.1 that keeps everything in memory."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import fsspec

from flows import environments

BUCKET, SECRET = "bucket", "not-to-be-told"


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The variables that lead to a server with an empty bucket named BUCKET. Raises FileNotFoundError without moto."""
    packages = environments.root() / "moto"
    if not packages.exists():
        raise FileNotFoundError(f"no S3 server: {packages} is not there; `malmm env sync moto` makes it")
    process = subprocess.Popen(
        [sys.executable, "-S", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],  # -S: moto's packages and no others
        env={"PYTHONPATH": str(packages), "PATH": os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told = next((found for line in process.stderr if (found := re.search(r"http://127.0.0.1:\d+", line))), None)
        assert told is not None, f"moto's server ended with {process.wait()}"
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
        fsspec.filesystem("s3", endpoint_url=told[0], key="test", secret=SECRET).mkdir(BUCKET)
        yield {
            "AWS_ENDPOINT_URL": told[0],
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
    finally:
        process.kill()
        process.wait()
