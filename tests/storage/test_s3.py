"""A store on S3, beyond what every store does: other processes, kills, and what is said when it cannot be reached.

The server is moto's. Each fault has a process of its own, killed where it hurts.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from s3fs import S3FileSystem
from typer.testing import CliRunner

from flows.cli import app, main
from stages.contract import exit_code_of
from storage import Artifact, Draft, Ledger, StorageError, Store, is_published
from storage.errors import StoreRefused
from storage.features import FeatureBank, orphans

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = "ab" * 32
DIGEST = hashlib.sha256(b"an image").hexdigest()
HERE = f"""
import os, sys
import numpy as np
from storage import Draft, Ledger, Store
from storage.features import FeatureBank
store = Store(sys.argv[1])
rows, digest, key = np.ones((1, 8), np.float16), {DIGEST!r}, {KEY!r}
"""


def elsewhere(store: Store, code: str) -> subprocess.CompletedProcess:
    """Run code in another process, which has `store`, `rows`, `digest`, `key`."""
    command = [sys.executable, "-c", HERE + code, store.url]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_what_another_process_writes_is_seen_at_the_next_look(s3):
    """s3fs remembers listings, and what they lack."""
    bank = FeatureBank(s3, "encoder-1")
    draft = Draft(s3, "report", KEY)
    draft.write_bytes("begun", b"")
    assert draft.list() == ["begun"] and not draft.exists("a.bin") and bank.count("vision") == 0
    done = elsewhere(
        s3,
        'draft = Draft(store, "report", key)\n'
        'draft.write_bytes("a.bin", b"one")\n'
        "draft.publish(Ledger(), {})\n"
        'FeatureBank(store, "encoder-1").append("vision", [digest], rows)\n',
    )
    assert done.returncode == 0, done.stderr
    assert is_published(s3, "report", KEY) and draft.list() == ["a.bin", "begun", "ledger.parquet", "manifest.json"]
    assert Artifact(s3, "report", KEY).read_bytes("a.bin") == b"one"
    assert bank.missing("vision", [DIGEST]) == []
    assert np.array_equal(bank.gather("vision", [DIGEST]), np.ones((1, 8)))
    assert elsewhere(s3, 'Draft(store, "report", key).discard()').returncode == 0
    assert not is_published(s3, "report", KEY) and draft.list() == [] and s3.list("artifacts/report") == []


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_seen(s3):
    """Over 100 MB go in parts: it dies with the second."""
    done = elsewhere(
        s3,
        "from storage.s3 import S3\n"
        "call = S3._call_s3\n"
        "async def dies(self, method, *args, **more):\n"
        '    if more.get("PartNumber") == 2: os.kill(os.getpid(), 9)\n'
        "    return await call(self, method, *args, **more)\n"
        "S3._call_s3 = dies\n"
        'Draft(store, "report", key).write_bytes("big.bin", bytes(101 << 20))\n',
    )
    assert done.returncode == -9, done.stderr
    draft = Draft(s3, "report", KEY)
    assert draft.list() == [] and not draft.exists("big.bin")
    draft.write_bytes("big.bin", bytes(101 << 20))  # the next run
    assert s3.size(f"{draft.folder}/big.bin") == 101 << 20


def test_gc_takes_away_what_a_killed_writer_left_in_the_bank(s3):
    bank = FeatureBank(s3, "encoder-1")
    bank.append("vision", [DIGEST], np.ones((1, 8), np.float16))
    killed = elsewhere(
        s3,
        "Store.write_table = lambda *_: os.kill(os.getpid(), 9)\n"  # between the rows and their index part
        'FeatureBank(store, "encoder-1").append("vision", ["cd" * 32], rows)\n',
    )
    assert killed.returncode == -9, killed.stderr
    assert bank.missing("vision", ["cd" * 32]) == ["cd" * 32]
    [orphan] = orphans(s3)
    malmm = CliRunner().invoke(app, ["artifacts", "gc", "--store", s3.url, "--delete"])
    assert malmm.exit_code == 0 and malmm.output.startswith("deleted") and orphan in malmm.output
    assert orphans(s3) == [] and len(s3.list("features/encoder-1/shards")) == 1
    assert not FeatureBank(s3, "encoder-1").missing("vision", [DIGEST])


def test_artifacts_are_listed_and_shown(s3):
    draft = Draft(s3, "report", KEY)
    draft.write_bytes("a.bin", b"one")
    draft.publish(Ledger(), {"label": "visdial"})
    listed = CliRunner().invoke(app, ["artifacts", "ls", "--store", s3.url]).output
    assert listed.split()[:2] == ["report", KEY[:12]] and "visdial" in listed
    shown = CliRunner().invoke(app, ["artifacts", "show", KEY[:6], "--store", s3.url, "--verify"])
    assert shown.exit_code == 0 and KEY in shown.output and "every file is what the manifest says" in shown.output


def test_an_object_that_may_not_be_deleted_is_an_error(s3, monkeypatch):
    """The server answers 200 and lists what stays; s3fs passes over that."""
    s3.write_bytes("a.bin", b"one")
    call = S3FileSystem._call_s3

    async def refuses(self, method, *args, **more):
        if method == "delete_objects":
            return {"Errors": [{"Key": "a.bin", "Code": "AccessDenied"}]}
        return await call(self, method, *args, **more)

    monkeypatch.setattr(S3FileSystem, "_call_s3", refuses)
    with pytest.raises(StoreRefused, match="these credentials may not.*1 objects stay"):
        s3.delete("a.bin")


@pytest.mark.parametrize(
    "url, variables, code, said",
    [
        ("s3://nosuch/x", {}, 78, "s3://nosuch at {endpoint}: there is no such bucket"),
        ("{url}", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 78, "set AWS_ACCESS_KEY_ID"),
        ("{url}", {"AWS_PROFILE": "nobody"}, 78, "AWS_PROFILE names what the files of profiles do not have"),
        ("{url}", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 75, "http://127.0.0.1:9 does not answer"),
        ("{url}", {"AWS_ENDPOINT_URL": "nonsense"}, 78, "Invalid endpoint: nonsense"),
        ("s3://AKIA:hunter2/@bucket/x", {}, 78, "URL holds a password"),
    ],
    ids=["bucket", "credentials", "profile", "unreachable", "endpoint", "password"],
)
def test_a_store_that_cannot_be_used_is_one_message_and_an_exit_code(
    s3, tmp_path, monkeypatch, capfd, url, variables, code, said
):
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    # Without a home there are no profiles; without metadata the machine itself has no credentials.
    outside = {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1"}
    for name, value in (outside | variables).items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", ["malmm", "artifacts", "ls", "--store", url.format(url=s3.url)])
    monkeypatch.setattr("signal.signal", lambda *_: None)  # what the command would set for its process
    s3.fs.clear_instance_cache()
    with pytest.raises(SystemExit) as ended:
        main()
    s3.fs.clear_instance_cache()
    told = capfd.readouterr().err
    assert ended.value.code == code, told
    assert said.format(endpoint=endpoint) in told and told.count("\n") == 1, told
    assert "hunter2" not in told


def test_a_stage_says_of_a_store_out_of_reach_to_try_again(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3.fs.clear_instance_cache()
    with pytest.raises(StorageError) as failure:
        Store(s3.url).read_bytes("a")
    assert exit_code_of(failure.value) == 75
    with pytest.raises(StorageError) as failure:  # through Zarr, which opens the store for itself
        FeatureBank(Store(s3.url), "encoder-1").append("vision", [DIGEST], np.ones((1, 8), np.float16))
    assert exit_code_of(failure.value) == 75
    s3.fs.clear_instance_cache()


def test_a_store_that_is_lost_does_not_hide_why_a_stage_failed(s3, tmp_path):
    """What the stage would leave beside its draft cannot be left."""
    request = {"stage": "ingest", "config": {}, "store": s3.url}
    (tmp_path / "request.json").write_text(json.dumps(request))
    done = elsewhere(
        s3,
        "from typing import ClassVar\n"
        "from botocore.exceptions import EndpointConnectionError\n"
        "from s3fs import S3FileSystem\n"
        "from stages.contract import BadInput, StageConfig, main\n"
        "class Config(StageConfig):\n"
        '    STAGE: ClassVar[str] = "ingest"\n'
        "    VERSION: ClassVar[int] = 1\n"
        '    KIND: ClassVar[str] = "samples"\n'
        "async def away(*_, **__):\n"
        '    raise EndpointConnectionError(endpoint_url="http://s3.example")\n'
        "def run(job):\n"
        "    S3FileSystem._call_s3 = away\n"
        '    raise BadInput("the first cause")\n'
        f'main(Config, run, ["run", {str(tmp_path / "request.json")!r}])\n',
    )
    assert done.returncode == 65 and "Traceback" not in done.stderr, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["message"] == "the first cause"


def test_other_stores_do_not_pay_for_s3(tmp_path):
    code = "import sys; from storage import Store; [Store(url).list('') for url in sys.argv[1:]]; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "memory://x"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert {"storage.store"} == {"storage.store", "storage.s3", "s3fs", "botocore"} & set(done.stdout.split())
