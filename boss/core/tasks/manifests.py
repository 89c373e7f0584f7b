"""Which parts of an outcome the boss keeps: files that its attempt declares, under declared names only, and a small
value.

Owns these two rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ecloud.formats.paths import fixed_part, is_glob, matches_pattern, pattern_of
from ecloud.model.tasks import INLINE_BYTES, MERGED, Cause, ManifestEntry, Outcome, Result, output_path

KEEP_NUMBER = "\0"
"""Placeholder for the attempt's number in a path, where it cannot occur otherwise."""


class _Call(msgspec.Struct):
    value: str = ""


class _Declared(msgspec.Struct):
    """The fields of a definition that this module reads."""

    id: str = ""
    results: tuple[Result, ...] = ()
    stdout: str = ""
    stderr: str = ""
    call: _Call | None = None


_DEFINITIONS = msgspec.json.Decoder(_Declared)


def declared_results(definition: bytes) -> tuple[Result, ...]:
    """The results in a stored definition, which is JSON. Results without a local name are whole outputs: in their path
    `%a` means the attempt's number."""
    found = _DEFINITIONS.decode(definition)
    outputs = [path for path in (found.stdout, found.stderr) if path and path != MERGED]
    if found.call is not None and found.call.value:
        outputs.append(found.call.value)  # staged only if it is large
    return (*found.results, *(Result("", output_path(path, found.id, KEEP_NUMBER)) for path in outputs))


def publishable(results: Iterable[Result], number: int, is_success: bool) -> list[Result]:
    """What attempt `number` may publish: its outputs, whether it succeeded or not, and its results if it succeeded."""
    return [
        result if result.local else Result("", result.path.replace(KEEP_NUMBER, str(number)))
        for result in results
        if is_success or not result.local
    ]


ENTRY_BYTES = 160
"""Approximate size of a manifest entry as JSON without its path: kind, size, mode, hash."""


def manifest_bytes(manifest: Sequence[ManifestEntry]) -> int:
    """Approximate size of the manifest in the database, rounded up."""
    return sum([len(entry.path) for entry in manifest]) * 2 + ENTRY_BYTES * len(manifest)


def without_large_value(outcome: Outcome) -> tuple[Outcome, str | None]:
    """Reject a large value in an outcome: it should travel as a file, because the database refuses such a row. Returns
    the outcome without it, and, for a success, why it counts as a failure."""
    size = len(outcome.value)
    if size <= INLINE_BYTES:
        return outcome, None
    text = f"its worker reported a value of {size:,} bytes in its outcome: at most {INLINE_BYTES:,} are allowed"
    return msgspec.structs.replace(outcome, value=b""), text if outcome.cause is Cause.SUCCESS else None


def undeclared(manifest: Iterable[ManifestEntry], results: Iterable[Result]) -> str | None:
    """A sentence about the first entry that no declared result covers; None if results cover all.

    A result covers its path and, if that is a directory, everything below it. A glob covers what it may match below the
    directory that its matches go to, and everything below those, and also a file whose name is the pattern itself.
    """
    plain: set[str] = set()
    renamed: set[str] = set()
    """Targets of files whose names look like globs and which the task renames."""
    globs: list[tuple[tuple[str, ...], list[str]]] = []
    for result in results:
        if is_glob(result.local):
            top = () if result.path == "." else tuple(result.path.split("/"))
            globs.append((top, pattern_of(result.local)))
            if result.path != fixed_part(result.local):
                renamed.add(result.path)
        else:
            plain.add(result.path)
    for entry in manifest:
        parts = tuple(entry.path.split("/"))
        if ".." in parts or not (
            (entry.path in renamed and entry.kind != "directory") or _is_explained(parts, plain, globs)
        ):
            return f"its worker staged {entry.path!r}, which is not a result that the task declares"
    return None


def not_staged(manifest: Iterable[ManifestEntry], results: Iterable[Result]) -> str | None:
    """A sentence about the first declared result that is missing from the manifest; None if none is missing.

    A directory whose files are merged into others' may be empty, and is not listed itself.
    """
    paths = [tuple(entry.path.split("/")) for entry in manifest]
    for result in results:
        if result.merge:
            continue
        top = () if result.path == "." else tuple(result.path.split("/"))
        below = [parts[len(top) :] for parts in paths if parts[: len(top)] == top]
        pattern = pattern_of(result.local) if is_glob(result.local) else None
        # A file whose name looks like a pattern may be renamed: then it is under the result's path.
        if not any(pattern is None or not rest or matches_pattern(rest, pattern) for rest in below):
            return f"its worker reported success without result {result.local!r}, which the task declares"
    return None


def _is_explained(parts: tuple[str, ...], plain: set[str], globs: list[tuple[tuple[str, ...], list[str]]]) -> bool:
    if any("/".join(parts[:count]) in plain for count in range(len(parts), 0, -1)):
        return True
    return any(parts[: len(top)] == top and matches_pattern(parts[len(top) :], pattern) for top, pattern in globs)
