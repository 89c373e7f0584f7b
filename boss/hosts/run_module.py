"""`hosts run NAME`: runs a module of the project on the boss's machine, with its output in this terminal; then fetches
its files."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from boss.hosts import project as projects
from boss.hosts import scripts
from boss.hosts.fleet import Fleet
from boss.hosts.journal import Journal
from boss.hosts.master import bring_project
from boss.providers.ssh_hosts import LOCAL, REMEDIES, Shell
from datastore.problem import DONE, PART_AWAY, Problem
from ecloud.config.settings import ROOT, Settings, child_environment
from ecloud.model.machine_needs import MachineFacts, lacks
from ecloud.model.text import counted

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def run(
    journal: Journal, fleet: Fleet, settings: Settings, name: str, words: Sequence[str], fetch: Sequence[str], to: Path
) -> int:
    """Run the module; return its exit code. Raises `Problem`."""
    options = journal.file.options
    if not options.project:
        raise Problem("no project: name its directory with hosts up -d DIR")
    if not _MODULE.fullmatch(name):
        raise Problem(f"{name!r} is not a name of a Python module")
    masters = journal.hosts_of("boss")
    if not masters:
        raise Problem("no boss was started", "python admin.py hosts up", PART_AWAY)
    directory = Path(options.project)
    module = f"{directory.name}.{name}"
    if masters[0] == LOCAL:
        return _run_here(settings, directory, module, words)
    host, project = masters[0], projects.pack(directory)
    probe = fleet.probe(host)
    for lack in lacks(MachineFacts(probe.newest)):
        raise Problem(f"{host}: {lack.text}", REMEDIES[lack.need], PART_AWAY)
    bring_project(fleet, host, probe, project)
    place = fleet.place("boss")
    script = scripts.module_script(place, project.name, module, words)
    # With a terminal of its own, Ctrl-C ends the module. Without one, its two streams stay separate.
    tty = ("-tt",) if sys.stdin.isatty() and sys.stdout.isatty() else ("-T",)
    command = Shell(options.words).words(host, f"exec /bin/sh -c {shlex.quote(script.decode())}", *tty)
    code = subprocess.run(command, stdin=None if tty == ("-tt",) else subprocess.DEVNULL, check=False).returncode
    if code == 255:
        raise Problem(f"the connection to {host} ended", "the module may still run there", PART_AWAY)
    if fetch:
        script = scripts.fetch_script(place, project.name, project.package, fetch)
        count = _unpack(fleet.shell.run_bytes(host, script), to)
        print(f"fetched {counted(count, 'file')} to {to}", file=sys.stderr, flush=True)
    return code


def _run_here(settings: Settings, directory: Path, module: str, words: Sequence[str]) -> int:
    """Run the module on this machine, the boss's: in the project itself, so that its files are already there."""
    paths = [str(directory.parent), str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {
        **child_environment(),
        "PYTHONPATH": os.pathsep.join(paths),
        "ECLOUD_ACCESS": str(settings.home_directory.client_access),
        "PYTHONUNBUFFERED": "1",
    }
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, cwd=directory, env=environment, check=False).returncode or DONE


def _unpack(data: bytes, to: Path) -> int:
    """Write the files of an archive below a directory; return how many. Raises `Problem`."""
    count = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for entry in archive:
                parts = Path(entry.name).parts
                source = (
                    archive.extractfile(entry) if entry.isfile() and ".." not in parts and parts[0] != "/" else None
                )
                if source is None:
                    continue
                target = to / entry.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read())
                count += 1
    except (tarfile.TarError, OSError) as error:
        raise Problem(f"the files cannot be fetched to {to}: {error}") from None
    return count
