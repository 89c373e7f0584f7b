"""Resources in words."""

from __future__ import annotations

from ecloud.model.text import amounts


def test_cpus_and_memory_come_first_and_a_python_has_no_amount() -> None:
    offered = {
        "python3.11": 1000.0,
        "gpus": 1.0,
        "memory_mb": 4000.0,
        "cpus": 2.0,
        "python3.10": 1000.0,
        "licences": 3.0,
    }
    assert amounts(offered) == "2 cpus, 4 GB memory, 1 gpu, 3 licences, python3.10, python3.11"
    assert amounts({"python": 2.0}) == "2 python"
    assert amounts({}) == "nothing"
