"""Texts that a cloud or a guest wrote: bounded, and cleaned of every secret that we sent there.

A cloud may echo what it was sent, in an error or in an attribute of a VM: oned's parser repeats a whole CONTEXT, with
the broker's password and the VM's key in it. Pure; knows no cloud.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator

MAX_CHARS = 600
"""Of a foreign text: the first `HEAD_CHARS` and the last of it, since parsers name the fault after the echo."""
HEAD_CHARS = 300
SHORT_SECRET_CHARS = 4
"""A secret that is shorter would be found in every text."""
GRAM_CHARS = 8
"""A piece of a secret of this length is cleaned away too: an echo may begin or end within one."""
ECHO_CHARS = 24
"""A piece of what was sent of this length is an echo, and tells nobody anything."""
SCANNED_CHARS = 200_000
"""What lies beyond is not looked at and not passed on."""
SECRET, ECHO = "[secret]", "[…]"


class Cleaner:
    """Cleans texts. `secrets`: what must never be shown, in any of the forms in which it travels; `sent`: whole texts
    that were sent along with them, whose repetition is left out."""

    def __init__(self, secrets: Iterable[str], sent: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if len(secret) >= SHORT_SECRET_CHARS for form in _forms(secret)}
        self._whole = sorted(forms, key=len, reverse=True)
        self._grams = {gram for form in forms if len(form) > GRAM_CHARS for gram in _grams(form, GRAM_CHARS)}
        self._echoes = {gram for text in sent for gram in _grams(text, ECHO_CHARS)}

    def __call__(self, text: str) -> str:
        """The text without secrets and echoes, on one line, of `MAX_CHARS` characters at most."""
        return bounded(self.clean(text))

    def clean(self, text: str) -> str:
        """The text without secrets and echoes, its lines kept."""
        text = text[:SCANNED_CHARS]
        # Echoes first: what is left of a secret between two of them is found afterwards.
        text = _without(text, self._echoes, ECHO_CHARS, ECHO)
        for form in self._whole:
            text = text.replace(form, SECRET)
        return _without(text, self._grams, GRAM_CHARS, SECRET)


def bounded(text: str) -> str:
    """Whitespace folded, the middle left out where it is long."""
    text = " ".join(text.split())
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[:HEAD_CHARS]} {ECHO} {text[-(MAX_CHARS - HEAD_CHARS) :]}"


def _forms(secret: str) -> Iterator[str]:
    """A secret as it may be written: as it is, with escaped quotes, and in Base64 at each of the three offsets at which
    it may lie in a longer text."""
    yield secret
    if '"' in secret or "\\" in secret:
        yield secret.replace("\\", "\\\\").replace('"', '\\"')
        yield secret.replace('"', '\\"')
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode()).decode().rstrip("=")
        # The first and the last characters depend on what stands beside the secret.
        inner = encoded[(offset * 8 + 5) // 6 : -1]
        if len(inner) >= SHORT_SECRET_CHARS * 2:
            yield inner


def _grams(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(len(text) - size + 1))


def _without(text: str, grams: set[str], size: int, mark: str) -> str:
    """The text with a mark in the place of each stretch that is made of `grams`."""
    if not grams:
        return text
    kept: list[str] = []
    covered_until = 0
    for at in range(len(text)):
        if text[at : at + size] in grams:
            if at >= covered_until:
                kept.append("\0")
            covered_until = at + size
        elif at >= covered_until:
            kept.append(text[at])
    return re.sub("\0+", mark, "".join(kept))
