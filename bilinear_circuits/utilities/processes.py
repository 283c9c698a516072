"""The processes of one run: one alone, or several that torchrun or accelerate started, one for each device.

They share the folder of the run. The first one alone writes there and says what is going on.
"""

import os
import sys
from datetime import timedelta
from typing import Any

# The first process may tokenize a large corpus for longer than the ten minutes after which NCCL gives up.
_PATIENCE = timedelta(hours=12)


def n_processes() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Tell the first process, or a lone one, from the others."""
    return int(os.environ.get("RANK", "0")) == 0


def on_gpu(device: str | None) -> bool:
    """Decide on GPUs: used where there are any, unless the device asked for is the CPU."""
    import torch

    return torch.cuda.is_available() and device != "cpu"


def join(device: str | None, patience: timedelta = _PATIENCE) -> None:
    """Meet the other processes, which has to be before the first `wait`. A process alone does nothing.

    Args:
        device: The device asked for.
        patience: How long any `wait` may take before one that did not come counts as stopped.
    """
    if n_processes() > 1:
        _state(cpu=not on_gpu(device), timeout=patience)


def wait() -> None:
    """Go on when every process is here.

    Raises:
        ConnectionError: If one of them stopped.
    """
    if n_processes() > 1:
        try:
            _state().wait_for_everyone()
        except RuntimeError as error:
            raise ConnectionError("another process of this run stopped; look for what it said.") from error


def leave() -> None:
    """Part from the other processes when every one is here. All but the first end in this call."""
    if n_processes() > 1:
        wait()
        _state().destroy_process_group()
        if not is_first():
            # Threads of gloo outlive the group, and now and then one aborts Python's own exit ("terminate called
            # without an active exception"). torchrun would then end the first process before it is done.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)


def _state(**options: Any) -> Any:
    """What accelerate knows of the processes; it is made on the first call, and by the Trainer."""
    from accelerate import PartialState  # type: ignore[import-untyped]

    return PartialState(**options)
