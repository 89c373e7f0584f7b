"""Texts that a cloud or a guest wrote: limited in length, and without the secrets that were sent there.

A cloud may echo what it was sent, in an error or in an attribute of a VM: oned's parser repeats a whole CONTEXT, with
the broker's password and the VM's key in it. Pure; knows no cloud.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator

MAX_CHARS = 600
"""Length of a foreign text: its first `HEAD_CHARS` and its end, since parsers name the fault after the echo."""
HEAD_CHARS = 300
SHORT_SECRET_CHARS = 4
"""Shorter secrets are not removed: they would match in every text."""
GRAM_CHARS = 8
"""A part of a secret of this length is removed, too: an echo may begin or end within a secret."""
ECHO_CHARS = 24
"""A part of a sent text of this length is an echo, which has no useful information."""
SCANNED_CHARS = 200_000
"""The rest of a longer text is neither checked nor shown."""
SECRET, ECHO = "[secret]", "[…]"


class Cleaner:
    """Cleans texts. `secrets`: never shown, in any of the forms in which they are sent; `sent`: whole texts that were
    sent with them, whose repetition is left out."""

    def __init__(self, secrets: Iterable[str], sent: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if len(secret) >= SHORT_SECRET_CHARS for form in _forms(secret)}
        self._whole = sorted(forms, key=len, reverse=True)
        self._grams = {gram for form in forms if len(form) > GRAM_CHARS for gram in _grams(form, GRAM_CHARS)}
        self._echoes = {gram for text in sent for gram in _grams(text, ECHO_CHARS)}

    def __call__(self, text: str) -> str:
        """Return the text without secrets and echoes, on one line, of `MAX_CHARS` characters at most."""
        return bounded(self.clean(text))

    def clean(self, text: str) -> str:
        """Return the text without secrets and echoes, with its lines kept."""
        text = text[:SCANNED_CHARS]
        # Echoes first: what remains of a secret between two echoes is removed afterwards.
        text = _without(text, self._echoes, ECHO_CHARS, ECHO)
        for form in self._whole:
            text = text.replace(form, SECRET)
        return _without(text, self._grams, GRAM_CHARS, SECRET)


def bounded(text: str) -> str:
    """Fold whitespace, and leave out the middle of a long text."""
    text = " ".join(text.split())
    if len(text) <= MAX_CHARS:
        return text
    return f"{text[:HEAD_CHARS]} {ECHO} {text[-(MAX_CHARS - HEAD_CHARS) :]}"


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret in all forms: as it is, with escaped quotes, and in Base64 at each of the three offsets at which
    it may lie in a longer text."""
    yield secret
    if '"' in secret or "\\" in secret:
        yield secret.replace("\\", "\\\\").replace('"', '\\"')
        yield secret.replace('"', '\\"')
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode()).decode().rstrip("=")
        # The first and the last characters depend on the text around the secret.
        inner = encoded[(offset * 8 + 5) // 6 : -1]
        if len(inner) >= SHORT_SECRET_CHARS * 2:
            yield inner


def _grams(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(len(text) - size + 1))


def _without(text: str, grams: set[str], size: int, mark: str) -> str:
    """Return the text with a mark in place of each part that consists of `grams`."""
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
