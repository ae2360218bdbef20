"""The `malmm` command. Heavy imports wait inside the commands, so that `--help` and `status` are quick.

running.py runs pipelines and stages, looking.py looks into videos and the store, setting_up.py readies the machine,
server.py is Prefect; here is what they make up, and what becomes of their errors.
"""

import signal
import sys

import typer

from flows.cli import looking, running, server, setting_up
from flows.cli.common import fail

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="An offline feature pipeline for memory-augmented multimodal models (MA-LMM with ImageBind).",
)
for command in (  # as `malmm --help` lists them
    running.run,
    running.status,
    running.stage,
    looking.probe,
    looking.ask,
    looking.memory,
    setting_up.doctor,
    setting_up.weights,
    running.demo,
    server.up,
    server.down,
    running.smoke,
):
    app.command()(command)
app.add_typer(looking.artifacts, name="artifacts")
app.add_typer(looking.export, name="export")
app.add_typer(setting_up.env, name="env")
app.add_typer(setting_up.images, name="images")


def main() -> None:
    """The entry point: errors made for people come as one message and an exit code, without a traceback."""
    from flows.config import ConfigError
    from flows.environments import EnvironmentFailed
    from flows.local import LocalFailed
    from flows.runners import StageFailed
    from flows.weights import WeightsFailed
    from stages.errors import StageError
    from storage import StorageError

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end children as Ctrl-C does
    try:
        code = app(standalone_mode=False)  # the value of typer.Exit; 130 after Ctrl-C
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except ConfigError as error:
        fail(str(error), 78)
    except StageFailed as failure:
        fail(str(failure), failure.code)
    except (StageError, StorageError) as error:
        fail(str(error), error.exit_code)
    except (EnvironmentFailed, LocalFailed, WeightsFailed, FileNotFoundError) as error:
        fail(str(error), 65)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of the command line's own
            raise
        fail(error.format_message(), 2)
    if code == 130:
        print("stopped; the next run takes up what was finished", file=sys.stderr)
    sys.exit(code)
