"""What a machine offers: control groups, Slurm and GPUs, each as small files or a program of the test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ecloud.config import this_host

MB = 1e6


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 CPUs whose files in /proc are below the test's directory."""
    real = this_host._read
    monkeypatch.setattr(
        this_host,
        "_read",
        lambda path: real(tmp_path / "proc.self" / Path(path).name if "/proc/self" in str(path) else path),
    )
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "proc.self").mkdir()
    return tmp_path


def group(tree: Path, path: str, **files: str) -> None:
    directory = tree / "cgroup" / path.strip("/")
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (directory / name.replace("__", ".")).write_text(text + "\n")


def in_v2(tree: Path, path: str, root: str = "/") -> None:
    (tree / "proc.self/cgroup").write_text(f"0::{path}\n")
    (tree / "proc.self/mountinfo").write_text(f"30 24 0:26 {root} {tree}/cgroup rw,nosuid - cgroup2 cgroup2 rw\n")


def in_v1(tree: Path, path: str, root: str = "/") -> None:
    (tree / "proc.self/cgroup").write_text(f"9:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:/\n0::/\n")
    lines = [
        f"31 24 0:27 {root} {tree}/cgroup rw - cgroup cgroup rw,cpu,cpuacct",
        f"32 24 0:28 {root} {tree}/cgroup rw - cgroup cgroup rw,memory",
    ]
    (tree / "proc.self/mountinfo").write_text("\n".join(lines) + "\n")


def test_no_control_group_means_the_whole_machine(tree: Path) -> None:
    assert this_host.cpus({}) == 64


@pytest.mark.parametrize("path", ["/job", "/job/step", "/job/step/task"])
def test_every_group_above_counts_in_v2(tree: Path, path: str) -> None:
    group(tree, "job", cpu__max="300000 100000", memory__max="2000000000")
    group(tree, "job/step", cpu__max="max 100000", memory__max="max")
    group(tree, "job/step/task", cpu__max="800000 100000", memory__max="9000000000")
    in_v2(tree, path)
    assert this_host.cpus({}) == 3
    assert this_host.memory_mb({}) == 2000


def test_every_group_above_counts_in_v1(tree: Path) -> None:
    group(tree, "job", cpu__cfs_quota_us="250000", cpu__cfs_period_us="100000", memory__limit_in_bytes="1500000000")
    group(
        tree, "job/task", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000", memory__limit_in_bytes=str(2**63 - 4096)
    )
    in_v1(tree, "/job/task")
    assert this_host.cpus({}) == 2.5
    assert this_host.memory_mb({}) == 1500


@pytest.mark.parametrize("enter", [in_v1, in_v2])
def test_a_container_sees_its_own_group_as_the_top(tree: Path, enter: object) -> None:
    group(tree, "", cpu__max="200000 100000", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    enter(tree, "/docker/abc", "/docker/abc")  # type: ignore[operator]
    assert this_host.cpus({}) == 2
    enter(tree, "/docker/abc")  # type: ignore[operator]
    assert this_host.cpus({}) == 2, "the directory of its own name is not shown there"


def test_less_than_a_cpu_offers_one(tree: Path) -> None:
    group(tree, "job", cpu__max="20000 100000")
    in_v2(tree, "/job")
    assert this_host.cpus({}) == 1


def test_a_slurm_allocation_and_an_affinity_mask_hold(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "6", "SLURM_MEM_PER_CPU": "100"}
    assert this_host.cpus(job) == 6
    assert this_host.memory_mb(job) == 629  # 600 MiB
    assert this_host.memory_mb({**job, "SLURM_MEM_PER_NODE": "512"}) == 536
    assert this_host.cpus({"SLURM_CPUS_ON_NODE": "6"}) == 64, "not in a job"
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5})
    assert this_host.cpus(job) == 2


# --- GPUs -------------------------------------------------------------------------------------------------


def program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program(tmp_path, "nvidia-smi", "for i in 0 1 2 3; do echo $i, GPU-aaaa-$i; done")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, ("0", "1", "2", "3")),
        ("2,3", ("2", "3")),
        ("3, 1", ("3", "1")),
        ("", ()),
        ("-1", ()),
        ("0,7,1", ("0",)),
        ("1,1", ("1",)),
        ("NoDevFiles", ()),
        ("GPU-aaaa-2", ("GPU-aaaa-2",)),
        ("GPU-aaaa-2,GPU-bbbb-9,0", ("GPU-aaaa-2",)),
        ("MIG-3f", ("MIG-3f",)),
    ],
)
def test_only_visible_gpus_are_offered(four: Path, visible: str | None, found: tuple[str, ...]) -> None:
    assert this_host.gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == found


@pytest.mark.parametrize("bad", ["[Unknown Error], GPU-x", "Unable to determine the device handle for GPU", ""])
def test_one_unreadable_line_hides_one_gpu(four: Path, bad: str) -> None:
    program(four, "nvidia-smi", f"echo '0, GPU-a'; echo '{bad}'; echo '2, GPU-c'; exit 15")
    assert this_host.gpus({}) == ("0", "2")


def test_instances_stand_in_place_of_their_gpu(four: Path) -> None:
    lines = [
        "GPU 0: NVIDIA A100 (UUID: GPU-a)",
        "  MIG 1g.5gb     Device  0: (UUID: MIG-1)",
        "  MIG 1g.5gb     Device  1: (UUID: MIG-2)",
        "GPU 1: NVIDIA A100 (UUID: GPU-b)",
    ]
    listed = "\n".join(lines)
    program(four, "nvidia-smi", f"if [ $1 = -L ]; then echo '{listed}'; else echo '0, GPU-a'; echo '1, GPU-b'; fi")
    assert this_host.gpus({}) == ("MIG-1", "MIG-2", "1")


def test_amd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(
        tmp_path,
        "rocm-smi",
        "printf 'GPU[0]\\t: Device Name: x\\nGPU[0]\\t: Device ID: y\\nGPU[1]\\t: Device Name: z\\n'",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert this_host.gpus({}) == ("0", "1")
    assert this_host.gpus({"ROCR_VISIBLE_DEVICES": "1"}) == ("1",)


def test_none_without_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert this_host.gpus({}) == ()
    assert this_host.gpus({"CUDA_VISIBLE_DEVICES": "0"}) == ()


@pytest.mark.parametrize(
    ("offered", "answer"),
    [(("0", "1", "3"), ("0", "3")), (("GPU-aaaa-1", "GPU-aaaa-3"), ("GPU-aaaa-3",)), (("GPU-aaaa",), ("GPU-aaaa",))],
)
def test_a_gpu_that_fell_off_the_bus_does_not_answer(
    four: Path, offered: tuple[str, ...], answer: tuple[str, ...]
) -> None:
    program(four, "nvidia-smi", "for i in 0 2 3; do echo $i, GPU-aaaa-$i; done; exit 15")
    assert this_host.gpus_that_answer(offered) == answer


def test_where_no_program_shows_gpus_nothing_is_known_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert this_host.gpus_that_answer(("0",)) is None
