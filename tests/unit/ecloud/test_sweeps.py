"""Sweep files as people write them: our own, mlframework's, those of Weights & Biases; and what is wrong with some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ecloud.formats import ReadOptions, TaskList, TaskListWrong, TooManyCombinations, read_task_list
from ecloud.formats.sweep.conditions import ConditionWrong, parse_condition

INPUTS = Path(__file__).resolve().parents[2] / "inputs"


def read(text: str, **options: Any) -> TaskList:
    return read_task_list(text.encode(), "run", ReadOptions(**options))


def ids(text: str, **options: Any) -> list[str]:
    return [task.id for task in read(text, **options).tasks]


def commands(text: str, **options: Any) -> list[str]:
    return [task.commands[0] for task in read(text, **options).tasks]


def refused(text: str, **options: Any) -> list[str]:
    with pytest.raises(TaskListWrong) as caught:
        read(text, **options)
    return caught.value.lines


def test_mlframeworks_own_file() -> None:
    found = read((INPUTS / "parameters.yml").read_text(), program="python train_mnist.py").tasks
    assert [task.id for task in found] == [
        f"gpu=-1,batchsize={size},epoch={epoch}" for size in (100, 500) for epoch in (5, 10, 15)
    ]
    assert found[0].commands == ("python train_mnist.py --gpu=-1 --batchsize=100 --epoch=5",)
    assert found[0].env["ECLOUD_PARAM_BATCHSIZE"] == "100"
    assert found[0].env["ECLOUD_PARAMETERS"] == '{"gpu": "-1", "batchsize": "100", "epoch": "5"}'


def test_bare_flags_and_scalars_as_they_are_written() -> None:
    text = "fast: true\nslow: false\nlr: 1e-3\nanswer: no\nzero: 007\nquoted: 'true'\nfloat: 0.10\n"
    assert commands(text, program="p") == ["p --fast --lr=1e-3 --answer=no --zero=007 --quoted=true --float=0.10"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ("!!python/tuple [5, 20, 5]", "5 10 15"),
        ("!!python/tuple [0, 3]", "0 1 2"),
        ("!!python/tuple [0.1, 0.5, 0.1]", "0.1 0.2 0.3 0.4"),
        ("!!python/tuple [3, 0, -1]", "3 2 1"),
        ("{range: [1, 2, 0.25]}", "1.00 1.25 1.50 1.75"),
        ("{range: [-1, 1]}", "-1 0"),
        ("{log: [1e-4, 1e-1, 4]}", "1e-4 0.001 0.01 1e-1"),
        ("{log: [1, 1024, 3]}", "1 32 1024"),
        ("{choice: [a, b]}", "a b"),
        ("{values: [a, b]}", "a b"),
        ("{value: a}", "a"),
        ("[a, b]", "a b"),
        ("a", "a"),
    ],
)
def test_the_forms_of_values(values: str, expected: str) -> None:
    assert ids(f"x: {values}", program="p") == [f"x={value}" for value in expected.split()]


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("equals", "p --lr=0.1 --name='a b' --deep"),
        ("space", "p --lr 0.1 --name 'a b' --deep"),
        ("hydra", "p lr=0.1 'name=a b' deep=true"),
        ("env", "p"),
    ],
)
def test_styles(style: str, expected: str) -> None:
    text = f"program: p\nstyle: {style}\nparameters: {{lr: 0.1, name: a b, deep: true}}"
    assert commands(text) == [expected]


def test_placeholders_in_program_files_and_directories_of_results() -> None:
    text = """
    program: "prog -i {data} ${data} {other}"
    parameters: {data: [a, b c], lr: 1}
    defaults:
      requirements: ["in/{data}"]
      results: [metrics.json, ["out", "o/{data}"]]
      resources: {cpus: 2}
    """
    first, last = read(text).tasks
    assert last.commands == ("prog -i 'b c' ${data} {other} --lr=1",)
    assert last.requirements[0].path == "in/b c"
    assert [result.path for result in last.results] == ["run/data=b c,lr=1/metrics.json", "o/b c"]
    assert first.asks == {"cpus": 2.0}


def test_zip_when_exclude_and_repeat() -> None:
    text = """
    program: p
    parameters: {opt: [sgd, adam], momentum: [0.1, 0.9], a: [1, 2], b: [x, y]}
    zip: [a, b]
    when: {momentum: opt == 'sgd'}
    exclude: [{opt: sgd, momentum: 0.1}, "a >= 2 and opt == 'adam'"]
    repeat: 2
    """
    expected = ["opt=sgd,momentum=0.9,a=1,b=x", "opt=sgd,momentum=0.9,a=2,b=y", "opt=adam,a=1,b=x"]
    assert ids(text) == [f"{name},repeat={number}" for name in expected for number in (1, 2)]


def test_random_draws_are_the_same_for_the_same_seed() -> None:
    text = (
        "program: p\nmethod: random\nsamples: 40\nseed: {}\nparameters:\n  lr: {{uniform: [0.1, 0.2]}}\n  n: [1, 2]\n"
    )
    first = ids(text.format(1))
    assert first == ids(text.format(1)) != ids(text.format(2))
    values = [name.split(",")[0].removeprefix("lr=") for name in first]
    assert all(0.1 <= float(value) <= 0.2 for value in values)
    assert len(set(values)) > 30
    assert {name.split(",")[1] for name in first} == {"n=1", "n=2"}


def test_a_wandb_grid() -> None:
    text = """
    program: train.py
    method: grid
    metric: {name: loss, goal: minimize}
    parameters:
      lr: {values: [1e-3, 0.01]}
      epochs: {value: 27}
      wide: {values: [true, false]}
    command:
      - ${env}
      - ${interpreter}
      - ${program}
      - ${args_no_boolean_flags}
      - --fixed=1
      - ${envvar:HOME}
    """
    found = read(text)
    assert found.tasks[0].commands == ('/usr/bin/env python3 train.py --lr=1e-3 --epochs=27 --wide --fixed=1 "$HOME"',)
    assert found.tasks[1].commands[0].count("--wide") == 0
    assert found.notes == ("ignored, it is for W&B's own service: metric",)


def test_a_wandb_random_search() -> None:
    text = """
    program: train.py
    method: random
    run_cap: 30
    parameters:
      lr: {distribution: log_uniform_values, min: 1e-5, max: 1e-1}
      units: {min: 8, max: 16}
      drop: {distribution: q_uniform, min: 0, max: 1, q: 0.25}
      opt: {values: [a, b], probabilities: [1, 0]}
      noise: {distribution: normal, mu: 0, sigma: 1}
    """
    found = read(text, samples=25).tasks
    assert len(found) == 25
    for task in found:
        assert 1e-5 <= float(task.env["ECLOUD_PARAM_LR"]) <= 1e-1
        assert int(task.env["ECLOUD_PARAM_UNITS"]) in range(8, 17)
        assert float(task.env["ECLOUD_PARAM_DROP"]) in (0, 0.25, 0.5, 0.75, 1)
        assert task.env["ECLOUD_PARAM_OPT"] == "a"
    assert found[0].commands[0].startswith("python3 train.py --lr=")


def test_every_problem_is_listed_with_its_place() -> None:
    text = """program: p
parameters:
  lr: [0.1, 0.1]
  lr: 3
  b: []
  u: {uniform: [0, 1]}
  c: [1, 2]
  d: [1, 2, 3]
zip: [c, d]
when: "lrr < 1"
exclude: ["c <"]
repeat: 0
styl: env
"""
    assert refused(text) == [
        "line 3, column 13, lr: 0.1 stands twice",
        "line 4, column 3: lr occurs twice, first at line 3, column 3",
        "line 5, column 6, b: the list is empty: the sweep would have no combinations",
        "line 11, column 15, condition: something is missing at the end",
        "line 12, column 9, repeat: a whole number from 1 to 100,000",
        "line 13, column 1, styl: a sweep has no such field; did you mean style?",
        "line 9, column 1, zip: as many values are needed of each: c has 2, d has 3",
        "line 10, column 8, condition: there is no parameter lrr; did you mean lr?",
        "line 6, column 3, u: values drawn at random need method: random, and samples: N",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1", "program: missing"),
        (
            "a: !!python/object/apply:os.system [echo]",
            "the tag tag:yaml.org,2002:python/object/apply:os.system is not known",
        ),
        ("a: [1, [2]]", "line 1, column 8, a: a value is a text or a number, not a list"),
        ("a: {b: 1}", "expected one of range, log"),
        ("a:", "the value is missing"),
        ("a: {log: [0, 1, 3]}", "numbers above 0"),
        ("a: !!python/tuple [5, 1]", "the interval is empty"),
        ("a-b: 1\na.b: 1", "would both be $ECLOUD_PARAM_A_B"),
        ("{program: p, method: bayes, parameters: {a: 1}}", "bayes"),
        ("{program: p, method: random, parameters: {a: 1}}", "samples"),
        ("{program: p, parameters: {a: x}, exclude: a < 1}", "a = x is not a number (at a=x)"),
        ("{program: p, parameters: {a: [1]}, exclude: a == 1}", "leave none"),
        ("{program: p, parameters: {a: 1}, defaults: {commands: x}}", "each task of a sweep has its own"),
        ("a: &x [*x]", "a value is a text or a number"),
        ("just words", "neither JSON nor YAML"),
        ("a: 1\n---\nb: 2", "line 2"),
        ("a: 'x", "not YAML"),
        ("a: \x07", "not YAML"),
        ("", "empty"),
    ],
)
def test_what_is_no_sweep(text: str, told: str) -> None:
    given: dict[str, Any] = {} if told == "program: missing" or "program" in text else {"program": "p"}
    if text.startswith("{"):
        given["format"] = "sweep"
    if told:
        assert told in "\n".join(refused(text, **given))
    else:
        assert read(text, **given).tasks


def test_a_million_combinations_are_confirmed_first() -> None:
    text = "program: p\nparameters:\n  a: {range: [0, 1001]}\n  b: {range: [0, 1001]}\nexclude: a > 0\n"
    with pytest.raises(TooManyCombinations, match="1,002,001 combinations"):
        read(text)
    assert len(read(text, confirmed=True).tasks) == 1001


def test_a_task_list_in_yaml() -> None:
    (task,) = read("tasks:\n- id: a\n  commands: [echo no, 'x']\n  resources: {cpus: 2}\n").tasks
    assert task.commands == ("echo no", "x")
    assert refused("- id: a\n  comands: x\n")[0].startswith("task a, comands: a task has no such field; did you mean")


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("a < b", True), ("a == 1.0", True), ("a == '1'", True), ("s == x", False), ("s == 'word'", True),
        ("a + b * 2 == 5", True), ("(a + b) * 2 == 6", True), ("not a > b and b >= 2", True), ("a in [1, 5]", True),
        ("s not in ['x', \"word\"]", False), ("b % 2 == 0 or false", True), ("-a < 0", True), ("f", False),
        ("not f", True), ("1e3 > 999", True), ("a/b == 0.5", True), ("s != 'y'", True),
    ],
)  # fmt: skip
def test_conditions(text: str, holds: bool) -> None:
    values = {"a": "1", "b": "2", "s": "word", "x": "y", "f": "false"}
    condition = parse_condition(text)
    assert condition.holds(values) is holds
    assert parse_condition(str(condition)).holds(values) is holds


@pytest.mark.parametrize(
    ("text", "column"),
    [("a <", 3), ("a b", 2), ("(a", 2), ("[1,", 3), ("a == == b", 5), ("import os; x", 9), ("'open", 0), ("", 0),
     ("(" * 60, 50), ("not " * 60 + "a", 196), ("__import__('os')", 10)],
)  # fmt: skip
def test_what_is_no_condition(text: str, column: int) -> None:
    with pytest.raises(ConditionWrong) as caught:
        parse_condition(text)
    assert caught.value.column == column


@pytest.mark.parametrize(
    "text", ["a / 0 == 1", "s > 1", "a in s", "a", "1e999999 * 1e999999 > 1", "1e99999999999999999999 > 1"]
)
def test_conditions_without_an_answer(text: str) -> None:
    with pytest.raises(ConditionWrong):
        parse_condition(text).holds({"a": "1", "s": "word"})
