"""How long the report of an outcome is, and what is reported instead of one that no message can carry. Pure."""

from __future__ import annotations

import msgspec

from ecloud.model.tasks import Cause, Outcome
from ecloud.model.wire import MAX_MESSAGE_BYTES

LARGE_BYTES = 900_000
"""A report that a broker may refuse: the smallest usual limit is 1 MB."""
CUT_OFF_TIMES = 3
"""Connections in a row that end while a large report is under way, before it is given up."""
MAX_REPORT_BYTES = MAX_MESSAGE_BYTES - 64 * 1024
"""The boss ignores longer messages; the rest is for the envelope."""
PLAIN_BYTES = 300
"""Size of a report that contains numbers only."""

_encoder = msgspec.json.Encoder()


def report_bytes(outcome: Outcome) -> int:
    """Size of an outcome in a message, not below the real one. Control characters take six bytes there."""
    texts = (outcome.stdout, outcome.stderr, outcome.error, outcome.command)
    if any(texts) or outcome.manifest or outcome.value or outcome.stamps:
        return len(_encoder.encode(outcome))
    return PLAIN_BYTES


def sendable(outcome: Outcome) -> tuple[Outcome, int]:
    """The outcome and the size of its report; a short outcome if the boss would ignore the report."""
    size = report_bytes(outcome)
    if size <= MAX_REPORT_BYTES:
        return outcome, size
    short = without_long_parts(outcome, size, f"is longer than the {MAX_REPORT_BYTES:,} that the boss reads")
    return short, report_bytes(short)


def without_long_parts(outcome: Outcome, size: int, why: str) -> Outcome:
    """A short outcome instead of one of `size` bytes that cannot be sent: a success becomes a failure of cause
    `result`, any other end keeps its cause."""
    parts = []
    if outcome.manifest:
        parts.append(f"the list of its {len(outcome.manifest):,} result files")
    if outcome.stdout or outcome.stderr:
        parts.append("its output")
    text = (
        f"its report of {size:,} bytes ({' and '.join(parts) or 'its error'}) {why}; "
        "pack many result files into an archive, or raise max_packet_size and message_size_limit of the broker"
    )
    is_success = outcome.cause is Cause.SUCCESS
    return msgspec.structs.replace(
        outcome,
        cause=Cause.RESULT if is_success else outcome.cause,
        error=text if is_success else f"{outcome.error[:500]} ({text})",
        command=outcome.command[:500],
        stdout="",
        stderr="",
        manifest=(),
        value=b"",
        stamps={},
    )
