"""How `logs` prints what a task wrote: on a terminal, in a pipe, and as it is."""

from __future__ import annotations

import io

import pytest

from ecloud.cli.task_output import TaskOutput

WROTE = "10 %\r20 %\n\x1b[31mred\x1b[0m\n\x1b]0;title\x07\x1b[2J\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO, *pieces: str, is_raw: bool = False) -> str:
    output = TaskOutput(stream, is_raw)
    for piece in pieces:
        output.write(piece)
    output.end()
    return stream.getvalue()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_shows_colours_and_progress_and_nothing_that_moves_elsewhere() -> None:
    shown = written(Terminal(), WROTE)
    assert shown == "10 %\r20 %\n\x1b[31mred\x1b[0m\n\\x1b]0;title\\x07\\x1b[2J\n\x1b[0m"


def test_a_pipe_gets_control_characters_written_out() -> None:
    assert written(io.StringIO(), "10 %\r20 %\n\x1b[31mred\n") == "10 %\\r20 %\n\\x1b[31mred\n"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_raw_is_as_it_was(stream: type[io.StringIO]) -> None:
    assert written(stream(), WROTE, is_raw=True) == WROTE


def test_a_colour_that_two_pieces_share_is_one() -> None:
    for cut in range(len(WROTE)):
        assert written(Terminal(), WROTE[:cut], WROTE[cut:]) == written(Terminal(), WROTE), cut


def test_no_color_and_dumb_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert written(Terminal(), "\x1b[31mred\x1b[0m 1\r2\n") == "red 1\r2\n"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert written(Terminal(), "\x1b[31mred\n") == "\\x1b[31mred\n"
