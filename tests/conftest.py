"""Fixtures that every room uses."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real imagery beside the project, or a skip that says how to name another."""
    folder = Path(os.environ.get("RINGMOE_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "optical").is_dir():
        pytest.skip(f"no real imagery in {folder} (name another folder with RINGMOE_REAL_DATA)")
    return folder


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Small tensors: threads cost more than they give, and the workers of the test runner share the cores."""
    import torch

    torch.set_num_threads(1)
