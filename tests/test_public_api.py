"""What a published version offered is still there: names, methods and parameters.

To take something away, let it warn with a `FutureWarning` that names what to use instead for one release, test that,
and only then take it out of the fixture.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

import hf_tasksel

OFFERED = json.loads((Path(__file__).parent / "fixtures" / "public_api_0_1_0.json").read_text())


@pytest.mark.parametrize("name", OFFERED)
def test_what_0_1_0_offered_is_still_taken(name):
    part = getattr(hf_tasksel, name)
    for method, parameters in OFFERED[name].items():
        function = part if not method else getattr(part, method)
        assert set(parameters) <= set(inspect.signature(function).parameters), method
