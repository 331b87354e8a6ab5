"""The code bases that no package has: a ported model gives what the original once computed."""

import re

import numpy as np
import pytest
import recorded

from docs.tables import PAGES
from port.network import find_layout

TOLERANCE = 2e-5  # of the largest value: some hundred roundings, which a shallow network may have
ROUNDINGS = (
    10  # times what PyTorch in float32 is away from the file: deep random networks amplify it
)
SPREAD = 4  # between processors and versions of XLA, which sum in other orders


@pytest.mark.parametrize("name", recorded.NAMES)
def test_the_ported_model_gives_the_recorded_outputs_as_the_page_says(name):
    page = (PAGES / "exact.md").read_text()
    roundings = recorded.meta(name)["rounding"]
    for key, error in recorded.errors(name).items():
        assert error <= max(TOLERANCE, ROUNDINGS * roundings[key]), key
        row = re.search(rf"^\| `{name}` \| {key} \| (\S+) \| (\S+) \|$", page, re.M)
        assert row, "run `python -m docs.tables exactness`"
        assert 1 / SPREAD <= error / float(row[1]) <= SPREAD, (
            "run `python -m docs.tables exactness`"
        )
        assert row[2] == f"{roundings[key]:.0e}"


@pytest.mark.parametrize("name", recorded.NAMES)
def test_no_other_layout_takes_these_names_for_its_own(name):
    meta = recorded.meta(name)
    tensors = {
        key: np.broadcast_to(np.float32(0), shape)  # takes no memory
        for key, shape in meta["entries"]
        if not key.endswith("batches_tracked")
    }
    assert find_layout(tensors).name == meta["layout"]
