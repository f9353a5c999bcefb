"""One thread, one seed, and the right copy of the library for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Without a GPU the Triton kernels run in their interpreter, which has to be said before triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# What is installed beside the library has no part in its tests; `install` of plugin_cases allows everything again.
os.environ["HYPERCONN_PLUGINS"] = ""

import hyperconn
from plugin_cases import install, own_names, zoo  # noqa: F401 (fixtures)
from source_tree import ROOT

# The matrices are small: a second thread a test costs more than it brings, and pytest-xdist uses the other cores.
torch.set_num_threads(1)

# The same examples for everybody; `make laws` is the one that explores. No deadline: a busy machine is no defect.
settings.register_profile("fast", max_examples=25, deadline=None, derandomize=True, database=None, print_blob=True)
settings.load_profile("fast")


def pytest_configure(config: pytest.Config) -> None:
    tested = Path(hyperconn.__file__).resolve().parent
    if tested != ROOT / "hyperconn":
        raise pytest.UsageError(f"these tests are of {ROOT}, but `import hyperconn` gives {tested}: run `make setup`")


@pytest.fixture(autouse=True)
def _clean_torch_state() -> Iterator[None]:
    """Seed before each test, and refuse a test that leaves the process-wide defaults changed."""
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32, "this test left another default dtype behind"
    assert torch.is_grad_enabled(), "this test left autograd switched off"
