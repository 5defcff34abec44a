"""Which tests the emulated device cannot pass, and which take too long there: the beginnings of their names.

Each of `CANNOT` must fail for the reason given: one that passes is an error, so that the list stays true.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

_GENERATOR = "torch-opencl has no random generator on the device (PrivateUse1HooksInterface.getNewGenerator)"

CANNOT = {
    "test_native.py::test_core_samplers[res_multistep]": _GENERATOR,
    "test_native.py::test_core_samplers[lcm]": _GENERATOR,
    "test_audio_shift.py::test_other_samplers[res_multistep]": _GENERATOR,
    "test_persons.py::test_ksampler_is_the_formula[0-0-res_multistep]": _GENERATOR,
    "test_persons.py::test_ksampler_is_the_formula[1-1-res_multistep]": _GENERATOR,
    "test_persons.py::test_ksampler_is_the_formula[2-2-res_multistep]": _GENERATOR,
    "test_persons.py::test_ksampler_is_the_formula[2-0-res_multistep]": _GENERATOR,
    "test_persons.py::test_ksampler_is_the_formula[0-1-res_multistep]": _GENERATOR,
}


def mark(items: Sequence[pytest.Item]) -> None:
    """Mark the tests that cannot pass."""
    for item in items:
        name = item.nodeid.rpartition("/")[2]
        if name in CANNOT:
            item.add_marker(pytest.mark.xfail(reason=CANNOT[name], strict=True))
