"""The kept end of an output stream: whole lines, whole characters, and how much is missing."""

from __future__ import annotations

import re

import pytest

from ecloud.model.tasks import FAILURE_TAIL_BYTES
from worker.shell.tail import Decoder, Tail

TEXT = "grüße ☃ 你好 🦉\n" * 3
NOTICE = re.compile(r"\[ECLOUD kept the end only: ([\d,]+) bytes are missing before this line\]\n")


def kept(data: bytes, limit: int = FAILURE_TAIL_BYTES, piece: int = 1_000) -> str:
    tail = Tail()
    for start in range(0, len(data), piece):
        tail.add(data[start : start + piece])
    return tail.text(limit)


def test_what_fits_is_kept_unchanged() -> None:
    assert kept(TEXT.encode()) == TEXT
    assert kept(b"x" * FAILURE_TAIL_BYTES) == "x" * FAILURE_TAIL_BYTES


@pytest.mark.parametrize(
    ("lines", "piece"), [(9_000, 1), (9_000, 10_000_000), (30_000, 7), (100_000, 4_096), (100_000, 10_000_000)]
)
def test_a_long_stream_begins_at_a_line_and_says_how_much_is_missing(lines: int, piece: int) -> None:
    whole = "".join(f"line {number} ☃\n" for number in range(lines))
    text = kept(whole.encode(), piece=piece)
    notice = NOTICE.match(text)
    assert notice
    rest = text[notice.end() :]
    assert rest.startswith("line ")
    assert whole.endswith(rest)
    assert int(notice[1].replace(",", "")) == len(whole.encode()) - len(rest.encode())
    assert FAILURE_TAIL_BYTES - 200 < len(text.encode()) <= FAILURE_TAIL_BYTES


def test_one_endless_line_begins_at_a_character() -> None:
    for shift in range(4):
        text = kept(b"x" * shift + "🦉".encode() * 30_000)
        assert "\ufffd" not in text
        assert text.endswith("🦉")


@pytest.mark.parametrize("piece", range(1, 12))
def test_characters_survive_the_borders_of_pieces(piece: int) -> None:
    data, decoder, found, at = TEXT.encode(), Decoder(), "", 0
    for start in range(0, len(data), piece):
        before, text = decoder.add(data[start : start + piece], is_last=start + piece >= len(data))
        assert start - before == at
        at += len(text.encode())
        found += text
    assert found == TEXT


def test_bytes_that_are_no_characters_are_not_held_back() -> None:
    decoder = Decoder()
    assert decoder.add(b"a\xff") == (0, "a\ufffd")
    assert decoder.add(b"\x80\x80\x80\x80")[1] == "\ufffd" * 4
    assert decoder.add("☃".encode()[:2]) == (0, "")
    assert decoder.add(b"", is_last=True) == (2, "\ufffd")
