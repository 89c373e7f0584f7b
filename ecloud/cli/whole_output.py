"""Whole outputs of tasks that keep them as files: read from the datastore, printed without a limit."""

from __future__ import annotations

import codecs
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TextIO

from datastore.port import NotThere, Reader
from ecloud.cli.task_output import TaskOutput
from ecloud.model.tasks import MERGED, output_path
from ecloud.queries.views import AttemptView, TaskDetail

PIECE_BYTES = 1 << 20


def kept_outputs(detail: TaskDetail, view: AttemptView) -> dict[str, str]:
    """Return the datastore paths of an attempt's whole outputs, by stream. Merged streams have only stdout."""
    definition = detail.definition
    published = {entry.path for entry in view.results}
    wanted = {"stdout": definition.stdout, "stderr": "" if definition.stderr == MERGED else definition.stderr}
    paths = {name: output_path(template, detail.id, view.number) for name, template in wanted.items() if template}
    return {name: path for name, path in paths.items() if path in published}


def print_whole(detail: TaskDetail, view: AttemptView, is_raw: bool = False) -> set[str]:
    """Print the kept outputs; returns the printed streams. `is_raw`: byte by byte without changes.

    Raises `DatastoreAway`.
    """
    outputs = kept_outputs(detail, view)
    if not outputs:
        return set()
    from ecloud.cli.files import own_datastore

    datastore = own_datastore()
    return {
        stream
        for stream, path in outputs.items()
        if _print(datastore, path, sys.stderr if stream == "stderr" else sys.stdout, is_raw)
    }


def _print(datastore: Reader, path: str, to: TextIO, is_raw: bool) -> bool:
    with tempfile.TemporaryDirectory(prefix="ecloud-logs-") as directory:
        local = Path(directory) / "output"
        try:
            datastore.fetch(path, local)
        except NotThere:
            return False
        if is_raw and hasattr(to, "buffer"):
            to.flush()
            with local.open("rb") as file:
                shutil.copyfileobj(file, to.buffer)
            to.buffer.flush()
            return True
        decoder, output = codecs.getincrementaldecoder("utf-8")(errors="replace"), TaskOutput(to, is_raw)
        with local.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                output.write(decoder.decode(piece))
        output.write(decoder.decode(b"", final=True))
        output.end()
    return True
