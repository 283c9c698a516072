"""Shape annotations are checked at test time: the package is imported under a jaxtyping hook."""

import os

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # as the command line does, before torch is imported
if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread per worker: torch's own threads would only fight over the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

collect_ignore = ["conftest.py"]  # no doctests here: there is a second file of this name

# The hook wraps functions as their modules are first imported, so it has to stay for the whole session.
_hook = install_import_hook("bilinear_circuits", "beartype.beartype")


@pytest.fixture
def seeded():
    """A fixed state of torch's global generator, restored afterwards."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
