"""Shape annotations are checked at test time: the package is imported under a jaxtyping hook."""

import os
import shutil

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


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hub in the library's own layout; puts folders in as repositories, and says of which commit."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(repository, folder):
        place, commit = tmp_path / "hub" / f"models--{repository.replace('/', '--')}", "0" * 40
        shutil.copytree(folder, place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs/main").write_text(commit)
        return commit

    return put
