"""Prefect from the command line: `malmm up` and `malmm down`, and a server beside a run where none is up."""

import os
import signal
from typing import Annotated

import typer

from flows.cli.common import fail


def up(
    port: Annotated[int | None, typer.Option(help="of the server, on 127.0.0.1; else 4200")] = None,
) -> None:
    """Start Prefect on this machine - server, worker, deployments - for the folder it is called in."""
    from flows import local

    url = local.up(port, typer.echo)
    typer.echo(
        f"Prefect is up: {url}\n  prefect deployment run 'visdial/local' --watch    runs a pipeline; so does the UI\n"
        "  malmm down                                        stops it all; the database stays"
    )


def down() -> None:
    """Stop what `malmm up` started, and the runs it had; the next run takes up what was finished."""
    from flows import local

    local.down(typer.echo)


def start_prefect() -> None:
    """Prefect as a laptop needs it: nothing reaches outside, and its own lines leave the terminal to ours."""
    from flows.local import EVERYWHERE, START_SECONDS

    os.environ.setdefault("DO_NOT_TRACK", "1")
    beside_us = {
        "server.ephemeral.startup_timeout_seconds": START_SECONDS,
        "logging.handlers.console.level": "CRITICAL",
    }
    for name, value in (EVERYWHERE | beside_us).items():
        os.environ.setdefault(f"PREFECT_{name.upper().replace('.', '_')}", str(value))
    from prefect.client.orchestration import get_client

    # Where neither prefect.toml nor PREFECT_API_URL names a server, Prefect starts one beside us. Ctrl-C goes to the
    # whole terminal group: a server that inherits a blocked SIGINT lives on to be told how the run ended, and is ended
    # by Prefect with us.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with get_client(sync_client=True) as client:
            silent = client.api_healthcheck()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if silent:
        fail(f"Prefect's server at {client.api_url} gives no answer ({silent}): `malmm up` starts it", 75)
