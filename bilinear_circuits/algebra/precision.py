"""In which precision products are taken: the faster one here, and sums that are in float32 whatever is allowed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

Precision = Literal["bfloat16", "float32"]
UNIT = {"bfloat16": 2.0**-8, "float32": 2.0**-24}  # unit roundoff


@contextmanager
def exact_sums() -> Iterator[None]:
    """Products whose sums are in float32, whatever the process has allowed: the bounds on errors rest on it."""
    cuda = torch.backends.cuda.matmul
    reduced, cuda.allow_bf16_reduced_precision_reduction = cuda.allow_bf16_reduced_precision_reduction, False
    try:
        restore = _highest_precision()
        try:
            yield
        finally:
            restore()
    finally:
        cuda.allow_bf16_reduced_precision_reduction = reduced


def _highest_precision() -> Callable[[], None]:
    """Set products of float32 to full precision; returns what sets them back."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch has none to tell once it was set for a backend by itself
        backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
        own = [backend.fp32_precision for backend in backends]
        for backend in backends:
            backend.fp32_precision = "ieee"

        def restore() -> None:
            for backend, precision in zip(backends, own, strict=True):
                backend.fp32_precision = precision

        return restore
    torch.set_float32_matmul_precision("highest")
    return lambda: torch.set_float32_matmul_precision(before)


def fastest_precision(device: torch.device, size: int = 768) -> Precision:
    """The precision in which a matrix product is faster here, by trying both: processors differ by a factor of 7."""
    if device.type == "cuda":
        return "bfloat16"  # tensor cores
    seconds = {}
    for name in ("bfloat16", "float32"):
        factor = torch.ones(size, size, dtype=getattr(torch, name), device=device)
        timings = []
        for _ in range(4):
            started = time.perf_counter()
            factor @ factor
            timings.append(time.perf_counter() - started)
        seconds[name] = min(timings[1:])
    return "bfloat16" if seconds["bfloat16"] < seconds["float32"] else "float32"
