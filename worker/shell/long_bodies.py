"""Commands and variables that came as a file of the datastore, because they are too long for a message."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from datastore.problem import Problem
from ecloud.model.tasks import BODY_PREFIX, LongBody, TaskBody

_decoder = msgspec.json.Decoder(LongBody)


class BodyUnusable(Problem):
    """The file does not hold the commands that were pushed. The text says why."""


def with_long_body(body: TaskBody, directory: Path) -> TaskBody:
    """Return the body with the commands and variables of its file, and remove the file from the working directory.

    Raises `BodyUnusable`, and `OSError` if this machine cannot read it.
    """
    if not body.body_file:
        return body
    file = directory / body.body_file
    data = file.read_bytes()
    where = next((one.path for one in body.requirements if one.local == body.body_file), body.body_file)
    if hashlib.sha256(data).hexdigest() != body.body_file.removeprefix(BODY_PREFIX):
        raise BodyUnusable(f"its commands in {where} of the datastore were changed since the push: push it again")
    try:
        long = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise BodyUnusable(f"its commands in {where} of the datastore cannot be read: {error}") from None
    file.unlink()
    return msgspec.structs.replace(body, commands=long.commands, env=long.env, body_file="")
