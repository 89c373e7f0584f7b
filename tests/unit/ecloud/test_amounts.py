"""Resources and sizes in words."""

from __future__ import annotations

from ecloud.model.text import amounts, byte_size, megabytes


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


def test_sizes_are_written_without_exponents() -> None:
    assert [megabytes(mb) for mb in (512, 999.4, 999.7, 7_600, 999_999, 2_500_000)] == [
        "512 MB", "999 MB", "1 GB", "7.6 GB", "1 TB", "2.5 TB",
    ]  # fmt: skip
    assert [byte_size(count) for count in (0, 312, 999_999, 4.2e9, 3e15)] == [
        "0 B",
        "312 B",
        "1 MB",
        "4.2 GB",
        "3,000 TB",
    ]
