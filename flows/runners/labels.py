"""What the runners label a container or a Job with, so that it can be found."""

import sys


def flow_run() -> str:
    """The id of Prefect's flow run that this is part of; by hand there is none, and no need to import Prefect."""
    if "prefect" not in sys.modules:
        return ""
    from prefect.runtime import flow_run

    return flow_run.id or ""
