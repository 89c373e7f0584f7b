"""Live output of running calls: reads what their hosts write, for those who follow it.

A host writes the output of its call into two files, from their beginning, and empties them when the call ends.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable

from worker.shell.tail import Decoder

LOOK_EVERY_S = 0.25
STREAMS = ("stdout", "stderr")
PIECE_BYTES = 64 * 1024
Key = tuple[int, int]


class _Followed:
    def __init__(self, path: str, until: float) -> None:
        self.path = path
        self.until = until
        self.read: dict[str, int] = dict.fromkeys(STREAMS, 0)
        self.decoders: dict[str, Decoder] = defaultdict(Decoder)


class CallOutputs:
    """Calls whose output is followed. `publish(key, decoder, stream, start, piece, ended)` sends a piece of it."""

    def __init__(self) -> None:
        self.publish: Callable[[Key, Decoder, str, int, bytes, bool], None] = lambda *piece: None
        self._followed: dict[Key, _Followed] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no output is followed."""
        return not self._followed

    def follow(self, key: Key, path: str, until: float) -> None:
        """Follow the output of a call in `path`.stdout and `path`.stderr until that time, from its beginning."""
        if key in self._followed:
            self._followed[key].until = until
        else:
            self._followed[key] = _Followed(path, until)

    def look(self, now: float) -> None:
        """Publish new output."""
        for key, followed in tuple(self._followed.items()):
            if now >= followed.until:
                del self._followed[key]
                continue
            for stream in STREAMS:
                with contextlib.suppress(OSError), open(f"{followed.path}.{stream}", "rb") as file:
                    file.seek(followed.read[stream])
                    self._publish(key, followed, stream, file.read(PIECE_BYTES))

    def end(self, key: Key, stdout: str, stderr: str) -> None:
        """A call has ended. `stdout`, `stderr`: the end of its output."""
        followed = self._followed.pop(key, None)
        if followed is not None:
            for stream, text in zip(STREAMS, (stdout, stderr), strict=True):
                data = text.encode()
                # The beginning of a longer output was cut, so its published part is not known here.
                rest = data[followed.read[stream] :] if len(data) >= followed.read[stream] else b""
                self._publish(key, followed, stream, rest, ended=True)

    def _publish(self, key: Key, followed: _Followed, stream: str, piece: bytes, ended: bool = False) -> None:
        if piece or ended:
            start = followed.read[stream]
            followed.read[stream] += len(piece)
            self.publish(key, followed.decoders[stream], stream, start, piece, ended)
