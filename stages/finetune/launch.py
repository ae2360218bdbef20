"""Which processes train: this one, several that it starts, or (where torchrun started it) it and its like.

Torch's elastic agent starts and watches the processes, as in torchrun: when one ends badly, all do.
"""

import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stages.contract import BadInput, Job, StageError, TryAgain, WrongConfig, exit_code_of

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

MEETING = "MALMM_MEETING"  # the file through which processes of one machine find each other
GRACE = 10  # seconds to end in; runners give a stage 15


def is_rank() -> bool:
    """Whether torchrun, or `launch`, started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def rank() -> int | None:
    """The number of this process among those that train together; None for one that trains alone, or starts them."""
    return int(os.environ["RANK"]) if is_rank() else None


def run(job: Job) -> None:
    """The stage; see stages.finetune.run for what it writes and raises."""
    if is_rank():
        run_as_rank(job)
    elif job.config.processes > 1 and job.config.max_steps != 0:
        launch(job)
    else:
        from stages.finetune.run import run

        run(job)


def launch(job: Job) -> None:
    """Run the stage in `processes` processes; rank 0 speaks and publishes. Raises what the one that broke raised."""
    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    processes = job.config.processes
    if job.device == "cuda" and processes > torch.cuda.device_count():
        raise WrongConfig(
            f"finetune.processes is {processes}, but {torch.cuda.device_count()} GPUs are seen, and each takes one "
            "process: set it lower"
        )
    # The draft has been opened, and the outside bytes have been hashed.
    request = job.request.model_copy(update={"force": False, "retry_failed": False, "sources": job.sources})
    with tempfile.TemporaryDirectory(prefix="malmm-finetune-") as folder:
        file = Path(folder, "request.json")
        file.write_text(request.model_dump_json())
        os.environ |= {
            "MALMM_PARENT": str(os.getpid()),
            # Torch's TCPStore listens on every interface and unpickles what it is sent: a file needs no port.
            MEETING: f"{folder}/ranks",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=job.key[:12],
            rdzv_backend="c10d",
            rdzv_endpoint=f"{folder}/nodes",
            rdzv_configs={"store_type": "file"},
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            shutdown_timeout=GRACE,
        )
        job.hand_over()
        try:
            elastic_launch(config, sys.executable)("-m", "stages.finetune", "run", str(file))
        except ChildFailedError as error:
            raise cause_of(error.failures) from None
        except SignalException:
            raise KeyboardInterrupt from None


def cause_of(failures: Mapping[int, "ProcessFailure"]) -> StageError:
    """The end that brought the others about: of a rank that neither lost another nor was ended by the agent."""

    def follows(failure: "ProcessFailure") -> bool:
        return failure.exitcode == -signal.SIGTERM or said(failure).startswith("Disconnected: ")

    rank, first = min(failures.items(), key=lambda item: (follows(item[1]), item[1].timestamp))
    if words := said(first):
        kind = {65: BadInput, 75: TryAgain, 78: WrongConfig}.get(first.exitcode)
        return StageError(words) if kind is None else kind(words.partition(": ")[2])
    how = f"was killed by {first.signal_name()}" if first.exitcode < 0 else f"ended with exit code {first.exitcode}"
    return TryAgain(
        f"process {rank} (PID {first.pid}) {how}, and the others were ended; what was saved is taken up by the next run"
    )


def said(failure: "ProcessFailure") -> str:
    """What a rank raised, as "Type: message"; nothing where it had no time to say."""
    return failure.message["message"] if isinstance(failure.message, dict) else ""


def run_as_rank(job: Job) -> None:
    """Run the stage as one of several processes. What it raises goes to the agent by a file, and ends the process."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    from stages.finetune.run import run

    for number in (signal.SIGTERM, signal.SIGINT):  # a rank that waits for others in C++ would not run our handler
        signal.signal(number, signal.SIG_DFL)
    try:
        run(job)
    except Exception as error:
        get_error_handler().record_exception(error)
        code = exit_code_of(error)
        if code == 70:
            traceback.print_exc()
        os._exit(code)  # at once: to leave the group in order is to wait for the others
