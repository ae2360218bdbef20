"""The flows that prefect.yaml deploys: `flows.deployments.visdial` is the pipeline of configs/visdial.yaml, named so.

One flow object a config, because Prefect calls a deployment FLOW/NAME: `prefect deployment run 'visdial/local'`. Which
config it reads is a parameter that the deployment sets, and that the form in the UI shows.
"""

from pathlib import Path

from prefect import Flow

from flows.pipeline import pipeline
from flows.smoke import smoke

__all__ = ["smoke"]


def __getattr__(name: str) -> Flow:
    """The flow of a config, described by the first line of its header."""
    config = Path("configs", f"{name}.yaml")
    if not config.is_file():
        raise AttributeError(f"no flow {name}: there is no {config} in {Path.cwd()}")
    return pipeline.with_options(name=name, description=config.read_text().splitlines()[0].removeprefix("# "))
