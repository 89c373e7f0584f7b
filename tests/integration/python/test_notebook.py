"""Calls in a notebook, as a real kernel shows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from other_pythons import registry_answers
from services import ROOT

CELLS = [
    "from ecloud import ClusterExecutor\nexecutor = ClusterExecutor(max_workers=1, progress=True)",
    "sum(executor.map(abs, range(100), progress=True))",
    "executor.shutdown(); executor",
]
RUN = """
import nbclient, nbformat, sys
book = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(book, timeout=60).execute()
nbformat.write(book, sys.argv[1])
"""


@pytest.mark.long
@pytest.mark.timeout(300)
def test_progress_is_shown_in_a_notebook_without_ipywidgets(tmp_path: Path) -> None:
    if not registry_answers(tmp_path):
        pytest.skip("pip reaches no registry")
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    packages = ["nbclient", "ipykernel", f"{ROOT}[python]"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True, capture_output=True)
    cells = [
        {"cell_type": "code", "id": str(number), "source": text, "metadata": {}, "outputs": [], "execution_count": None}
        for number, text in enumerate(CELLS)
    ]
    book = tmp_path / "book.ipynb"
    book.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ECLOUD_")}
    subprocess.run(
        [python, "-c", RUN, book], check=True, cwd=tmp_path, env={**kept, "ECLOUD_HOME": str(tmp_path / "h")}
    )
    outputs = [cell["outputs"] for cell in json.loads(book.read_text())["cells"]]
    ((bar,), (of_map, value), (shown,)) = outputs
    assert "100/100" in "".join(of_map["data"]["text/html"])
    assert "".join(value["data"]["text/plain"]) == "4950"
    assert "0 pending" in "".join(shown["data"]["text/plain"])
    assert "━" in "".join(bar["data"]["text/html"])
