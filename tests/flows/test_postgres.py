"""`malmm up` with PostgreSQL as Prefect's database: one setting. Skipped where no PostgreSQL can be started."""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.pipeline import pipeline
from storage import Store, published
from tests.flows.laptop import Laptop, free_port

pytestmark = pytest.mark.slow


class Postgres:
    """A cluster of its own in `folder`, run by an ordinary user, as PostgreSQL demands."""

    def __init__(self, tools: Path, folder: Path, user: str | None):
        self.tools, self.folder, self.user, self.port = tools, folder, user, free_port()
        self.url = f"postgresql+asyncpg://malmm@127.0.0.1:{self.port}/postgres"

    def __call__(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self.tools / program), *arguments],
            user=self.user,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout


async def ask(url: str, query: str) -> object:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    found = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    if initdb := shutil.which("initdb"):
        found.append(Path(initdb).parent)
    if not found:
        pytest.skip("no PostgreSQL: initdb is neither on PATH nor below /usr/lib/postgresql")
    user = None
    if os.geteuid() == 0:
        user = next((entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody")), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")
    folder = Path(tempfile.mkdtemp(prefix="malmm-postgres-"))
    try:
        if user:
            shutil.chown(folder, user)
        cluster = Postgres(found[-1], folder, user)
        cluster("initdb", "-D", "data", "-U", "malmm", "--auth=trust", "--no-sync")
        options = f"-p {cluster.port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        cluster("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")
        try:
            yield cluster
        finally:
            cluster("pg_ctl", "-D", "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)


def test_a_run_is_kept_in_postgres(postgres, tmp_path, monkeypatch):
    laptop = Laptop(tmp_path)
    laptop.environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = postgres.url
    monkeypatch.setenv("MALMM_ENVS", laptop.environment["MALMM_ENVS"])
    try:
        code, said = laptop("flows", "up", f"--port={laptop.port}")
        assert code == 0, said
        with temporary_settings({PREFECT_API_URL: f"{laptop.url}/api"}):
            pipeline(str(laptop.config), stages=["ingest"])
        run, _ = laptop.newest()
    finally:
        laptop("flows", "down")
    kept = asyncio.run(ask(postgres.url, f"select state_name from flow_run where id = '{run.id}'"))
    assert kept == "Completed" and len(published(Store(laptop.store), "samples")) == 1
    assert not (tmp_path / ".malmm" / "prefect.db").exists()
