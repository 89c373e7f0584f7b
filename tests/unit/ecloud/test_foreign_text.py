"""What clouds and guests write is shown without secrets, in any form and any part of them, and never at length."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecloud.model.foreign_text import GRAM_CHARS, MAX_CHARS, Cleaner, bounded

PASSWORD = 'Wq7-"broker-zP3x'
KEY = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


@pytest.mark.parametrize(
    "form",
    [
        PASSWORD,
        PASSWORD.replace('"', '\\"'),
        KEY,
        *(base64.b64encode(b"x" * offset + KEY.encode() + b'","next":1').decode() for offset in range(6)),
        KEY[:20],
        KEY[-20:],
    ],
)
def test_no_form_and_no_half_of_a_secret_is_passed_on(form: str) -> None:
    cleaned = Cleaner([PASSWORD, KEY])(f'syntax error at ACCESS="{form}" in line 3')
    assert form not in cleaned
    assert cleaned.startswith("syntax error at ACCESS=")
    assert cleaned.endswith("in line 3")


@given(st.text(max_size=60), st.integers(0, 64), st.integers(0, 64), st.text(max_size=60))
def test_whatever_stands_beside_it_no_piece_of_a_secret_is_left(before: str, start: int, end: int, after: str) -> None:
    cleaned = Cleaner([KEY])(before + KEY[start:end] + after)
    pieces = {KEY[at : at + GRAM_CHARS] for at in range(len(KEY) - GRAM_CHARS + 1)}
    assert not any(piece in cleaned for piece in pieces)


def test_an_echo_is_left_out_and_what_the_cloud_says_of_it_stays() -> None:
    sent = 'SSH_PUBLIC_KEY="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 boss",START_SCRIPT_BASE64="' + "QUJD" * 3000 + '"'
    cleaned = Cleaner([], [sent])(f"Error parsing: {sent}. syntax error, unexpected VARIABLE, expecting EOA")
    assert cleaned == "Error parsing: […]. syntax error, unexpected VARIABLE, expecting EOA"


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = bounded("first " + "x" * 100_000 + " last")
    assert text.startswith("first")
    assert text.endswith("last")
    assert len(text) <= MAX_CHARS + 10
