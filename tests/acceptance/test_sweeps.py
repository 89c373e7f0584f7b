"""Sweeps and arrays as a person uses them: the page, mlframework's example with a stand-in for its program, a plot."""

from __future__ import annotations

import json

from doors import Doors
from pages import Page, type_all
from services import ROOT

TRAIN = """
import json, sys
given = dict(word.removeprefix("--").split("=") for word in sys.argv[1:])
print(json.dumps({"loss": float(given["epoch"]) / float(given["batchsize"]), "gpu": given["gpu"]}))
"""


def test_the_page_does_what_it_shows(doors: Doors) -> None:
    try:
        type_all(Page("docs/sweeps.md"), doors.place, doors.environment)
        assert (doors.place / "error.png").read_bytes().startswith(b"\x89PNG")
        assert (
            (doors.place / "sweep.csv").read_text().startswith("task,lr,momentum,batch,state,run_s,error,fit.w,fit.b\n")
        )
        assert Page("docs/sweeps.md").text.count((ROOT / "examples/sweep.yml").read_text()) == 1
    finally:
        doors.admin("stop", "--vms", code=None)


def test_mlframeworks_example_whole(cluster: Doors) -> None:
    (cluster.place / "data").mkdir()
    (cluster.place / "data/train_mnist.py").write_text(TRAIN)
    program = "python3 train_mnist.py"
    sweep = cluster.place / "parameters.yml"
    sweep.write_text(
        "program: python3 train_mnist.py\ndefaults: {requirements: [train_mnist.py]}\nparameters:\n"
        + "".join(f"  {line}\n" for line in (ROOT / "tests/inputs/parameters.yml").read_text().splitlines())
    )
    told = cluster.push(ROOT / "tests/inputs/parameters.yml", "--program", program, "--dry_run").out
    assert f"{program} --gpu=-1 --batchsize=100 --epoch=5" in told
    assert "6 succeeded" in cluster.push(sweep, "--upload", "data", "--wait").out
    rows = cluster.admin("sweep", "parameters", "--sort", "-loss", "--json").json
    assert [(row["batchsize"], row["epoch"], row["loss"]) for row in rows[:2]] == [
        ("100", "15", 0.15),
        ("100", "10", 0.1),
    ]
    assert "no column" in cluster.admin("sweep", "parameters", "--sort", "los", code=2).err
    assert "--plot X Y FILE.png" in cluster.admin("sweep", "parameters", "x.png", code=2).err


def test_standard_input_formats_and_dry_runs_of_every_kind(doors: Doors) -> None:
    wfformat = (ROOT / "tests/inputs/wf/helloworld-chain-5-chameleon.json").read_text()
    array = json.dumps([{"id": "a", "array": "1-5", "commands": "true"}])
    for kind, text, told in (
        ("tasks", array, "last: a[5]: true"),
        ("wfformat", wfformat, "levels: 5"),
        ("sweep", "{program: p, parameters: {a: [1, 2]}}", "last: a=2: p --a=2"),
        ("auto", "a: [1, 2]", "2 tasks"),
    ):
        arguments = ["--program", "p"] if kind == "auto" else []
        out = doors.run("push_tasks.py", "-", "--dry_run", "--format", kind, *arguments, stdin=text).out
        assert told in out
        assert "critical path" in out
    assert "expected" in doors.run("push_tasks.py", "-", "--format", "wfformat", stdin="[]", code=2).err
    assert "100 combinations" not in doors.run("push_tasks.py", "-", "--dry_run", stdin=array).out
    many = "{program: p, parameters: {a: {range: [0, 1100]}, b: {range: [0, 1100]}}}"
    assert (
        "1,210,000 combinations; --yes"
        in doors.run("push_tasks.py", "-", "--dry_run", "--format", "sweep", stdin=many, code=2).err
    )


def test_wrong_uses_of_arrays_end_with_a_sentence(doors: Doors) -> None:
    for arguments, told in (
        (["--array", "1-3"], "needs a command"),
        (["--array", "3-1", "--", "true"], "has no elements"),
        (["--array", "1", "--each-line", "x", "--", "true"], "one of them"),
        (["--each-file", "nothing*", "--", "true"], "no file matches"),
        (["--each-line", "nowhere", "--", "true"], "nowhere: No such file"),
        (["a.json", "b.json"], "only one file at a time can be pushed"),
        ([], "name a file with tasks"),
    ):
        assert told in doors.push(*arguments, code=2).err
