"""A list of commands behaves as a script of the same lines does, but that it ends at the first command that fails."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ecloud.model.tasks import TaskBody
from worker.shell.commands import failed_step, shell_argv

SHELLS = ["dash", "bash"]


def run(directory: Path, *commands: str, shell: str = "/bin/sh", own: str = "") -> tuple[int, str, str, int]:
    """Exit code, both streams, and the number of the last command that began."""
    body = TaskBody(id="t", commands=commands, shell=own)
    control = str(directory / "control")
    argv = shell_argv(shell, body, control)
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr, failed_step(body, control)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "commands",
    [
        ("set -e\nfalse\necho reached", "echo second"),
        ("set -eu", "false\necho still here"),
        ("set -eu", "echo $not_set_at_all\necho still here"),
        ("set -eC", "echo a > file; echo b > file\necho still here"),
        ("trap 'exit 7' EXIT; set -e", "(exit 3)\necho still here"),
        ("f() { false; echo in f; }\nset -e", "f\necho after f"),
        ("set -e", "if false; then :; fi; (false; echo in a subshell)\necho after"),
    ],
)
def test_a_shell_option_holds_as_in_a_script(tmp_path: Path, shell: str, commands: tuple[str, ...]) -> None:
    code, out, _, _ = run(tmp_path, *commands, shell=shell)
    assert code != 0
    assert out.replace("\n", "") == ""
    script = subprocess.run([shell, "-c", "\n".join(commands)], cwd=tmp_path, capture_output=True, timeout=30)
    assert script.returncode == code


@pytest.mark.parametrize("command", ["false", "false # don't", "echo 'a b' | grep -q c"])
def test_an_err_trap_runs_once_with_its_line(tmp_path: Path, command: str) -> None:
    code, out, _, step = run(tmp_path, "trap 'echo failed' ERR", f"true\n{command}\necho went on", shell="bash")
    assert (code, out, step) == (0, "failed\nwent on\n", 2)


@pytest.mark.parametrize("shell", SHELLS)
def test_without_options_a_command_of_several_lines_continues(tmp_path: Path, shell: str) -> None:
    assert run(tmp_path, "cd /nonexistent-dir\necho went on", "echo second", shell=shell)[:2] == (
        0,
        "went on\nsecond\n",
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_a_list_ends_at_the_first_command_that_fails(tmp_path: Path, shell: str) -> None:
    assert run(tmp_path, "echo a", "(exit 9)", "echo b", shell=shell) == (9, "a\n", "", 2)
    assert run(tmp_path, "cd /; x=1", "export y=2", 'echo "$PWD $x $y"', shell=shell)[1] == "/ 1 2\n"
    assert run(tmp_path, "exit 0", "echo never", shell=shell)[:2] == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    "command",
    ["cat <<END\nhello", "echo 'it is open", 'echo "open', "echo `open",
     "echo $(echo open", "if true; then", "for i in 1", "( true", "{ true",
     "true &&", "false ||", "true |", "case x in"],
)  # fmt: skip
def test_a_command_that_is_not_complete_does_not_swallow_the_next(tmp_path: Path, shell: str, command: str) -> None:
    code, out, _, _ = run(tmp_path, command, "echo second", "exit 4", shell=shell)
    assert code != 0
    assert "echo second" not in out
    assert "eval" not in out


@pytest.mark.parametrize("shell", SHELLS)
def test_a_trailing_backslash_stays_with_its_command(tmp_path: Path, shell: str) -> None:
    assert run(tmp_path, "echo a\\", "echo b", shell=shell)[1].splitlines()[-1] == "b"


def test_a_trace_shows_the_users_commands(tmp_path: Path) -> None:
    _, _, err, _ = run(tmp_path, "set -x", "echo one", "echo two", shell="dash")
    assert err == "+ echo one\n+ echo two\n"


def test_a_task_has_its_own_shell(tmp_path: Path) -> None:
    strict = "bash -euo pipefail"
    assert run(tmp_path, "false | true\necho reached", own=strict)[:2] == (1, "")
    assert run(tmp_path, "true", "false | true\necho reached", own=strict)[:2] == (1, "")
    assert run(tmp_path, "true", "echo $((1+1)) ${BASH_VERSION:+bash}", own=strict)[:2] == (0, "2 bash\n")
    assert run(tmp_path, "false | true\necho reached", shell=strict)[:2] == (1, "")
    assert run(tmp_path, "x" * 200_000 + "=1", own=strict)[0] == 0, "a long script is a file"
