"""Python calls of this worker: runs the call of a prepared attempt on a call host, in a container if requested.

Owns what all calls of a run share on this machine: the unpacked modules.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import zipfile
from pathlib import Path

import msgspec

from datastore.problem import Problem
from ecloud.model.calls import python_resource
from ecloud.model.tasks import Call, TaskBody
from worker.core.containers import CONTROL, SHARED, WORK, Place
from worker.shell.call_hosts import CallHosts, CallOrder, HostKind, Key
from worker.shell.container_runtimes import argv_in_container
from worker.shell.files import WorkingDirectories
from worker.shell.home import WorkerHome
from worker.shell.job import Job, value_name

UNUSED_S = 6 * 3600.0
"""A shared requirement that no call has used for this long is removed."""
PYTHON_INSIDE = "python3"
"""The Python inside a container."""
OWN = (b"ECLOUD_TASK", b"ECLOUD_RUN", b"ECLOUD_ATTEMPT")
"""Variables that differ from call to call: a host's environment does not contain them."""


class CallImpossible(Problem):
    """This machine cannot run the call; the text gives the reason."""


def without_kept(body: TaskBody, objects: Path) -> TaskBody:
    """The body of a call, without the shared requirements that are here already."""
    call = body.call
    if call is None or not call.shared:
        return body
    kept = {name for name in call.shared if (objects / name).exists()}
    for name in kept:
        os.utime(objects / name)  # used now
    return msgspec.structs.replace(
        body, requirements=tuple([one for one in body.requirements if one.local not in kept])
    )


def _missing(job: Job) -> list[str]:
    """The calls that this one needs and whose values its order lacks."""
    assert job.body.call is not None
    here = {value.id for value in job.order.values}
    return [id for id in job.body.call.needs if id not in here]


class CallRunner:
    """Hands calls to call hosts."""

    def __init__(self, hosts: CallHosts, home: WorkerHome, peer: str, directories: WorkingDirectories) -> None:
        self.hosts = hosts
        self._home = home
        self._peer = peer
        self._directories = directories
        self.objects = home.shared / "objects"
        """Shared requirements of calls, and unpacked modules, by their hashes."""
        shutil.rmtree(self.objects, ignore_errors=True)
        self.objects.mkdir()

    def run(self, job: Job, env: dict[bytes, bytes]) -> None:
        """Run the call of an attempt whose requirements are in its directory. Raises `OSError`, `CallImpossible`,
        `ContainerMissing`."""
        assert job.body.call is not None
        if missing := _missing(job):
            text = f"the call {job.body.call.name} needs the values of calls that were dropped: {', '.join(missing)}"
            raise CallImpossible(text, "submit them again, and this call with their futures")
        self._keep_shared(job, job.body.call)
        shared_env = {name: value for name, value in env.items() if name not in OWN}
        self.hosts.run(
            self._order(job, env),
            self._kind(job, shared_env),
            shared_env,
            job.directory if job.body.container is None else self._directories.top,
            lambda argv: self._argv(job, argv, shared_env),
            CONTROL if job.body.container else "",
        )

    def prefetch(self, job: Job, env: dict[bytes, bytes], behind: Key, begin_s: float) -> bool:
        """Let the call of an attempt wait at the host of the call `behind`; return whether this host takes it."""
        if job.body.requirements or _missing(job):
            return False  # a shared file was removed, or it cannot run
        shared_env = {name: value for name, value in env.items() if name not in OWN}
        return self.hosts.prefetch(self._order(job, env), self._kind(job, shared_env), behind, begin_s)

    def _kind(self, job: Job, shared_env: dict[bytes, bytes]) -> HostKind:
        call, body = job.body.call, job.body
        assert call is not None
        return HostKind(
            run_no=job.order.run_no,
            python=self._python(call, inside=body.container is not None),
            container=msgspec.json.encode(body.container).decode() if body.container else "",
            gpus=job.gpus,
            limit_bytes=int(job.order.asks.get("memory_mb", 0.0) * 1e6),
            env=tuple(sorted(shared_env.items())),
            setup=call.setup,
            project=call.project,
        )

    def _order(self, job: Job, env: dict[bytes, bytes]) -> CallOrder:
        call, body = job.body.call, job.body
        assert call is not None
        directory = self._inside(job.directory) if body.container else str(job.directory)
        objects = f"{SHARED}/objects" if body.container else str(self.objects)
        head = {
            "call": list(job.key),
            "name": call.name,
            "function": call.function,
            "function_file": f"{objects}/{call.function_file}" if call.function_file else "",
            "objects": objects,
            "arguments_file": call.arguments_file,
            "many": call.many,
            "directory": directory,
            "project": self._unpacked(job, call),
            "env": {os.fsdecode(name): os.fsdecode(env[name]) for name in OWN if name in env},
            "values": {value.id: len(value.value) for value in job.order.values if not value.path},
            "files": {value.id: value_name(number) for number, value in enumerate(job.order.values) if value.path},
            "code": len(call.code),
            "arguments": len(call.arguments),
            "setup": len(call.setup),
        }
        values = [value.value for value in job.order.values if not value.path]
        parts = (call.code, call.arguments, call.setup, *values)
        return CallOrder(job.key, head, parts, body.timeout_s, call.max_calls, call.python)

    def _keep_shared(self, job: Job, call: Call) -> None:
        """Move shared requirements that were fetched for this call to where others find them."""
        for name in call.shared:
            with contextlib.suppress(FileNotFoundError):
                os.rename(job.directory / name, self.objects / name)

    def sweep(self, now: float) -> None:
        """Remove what no call has used for long. Blocks."""
        for item in os.scandir(self.objects):
            with contextlib.suppress(OSError):
                if now - item.stat().st_mtime > UNUSED_S and item.is_file():
                    os.unlink(item.path)

    def _python(self, call: Call, inside: bool) -> str:
        if inside:
            return PYTHON_INSIDE
        program = self.hosts.pythons.of(call.python)
        if program is None:
            known = ", ".join(sorted(self.hosts.pythons.by_version))
            raise CallImpossible(
                f"the call {call.name} was pickled by Python {call.python} and this worker has {known}: install "
                f"{python_resource(call.python)} here, or set ECLOUD_PYTHON of the worker"
            )
        return program

    def _inside(self, directory: Path) -> str:
        return f"{WORK}/{directory.relative_to(self._directories.top)}"

    def _argv(self, job: Job, argv: list[str], env: dict[bytes, bytes]) -> list[str]:
        """Return the command that starts a host, in a container if the call asks for one: the container sees all
        working directories."""
        container = job.body.container
        if container is None:
            return argv
        env[b"ECLOUD_WORKER_DIR"] = SHARED.encode()
        env[b"ECLOUD_WORKER"] = os.fsencode(self._peer)
        if "USER" not in os.environ:  # charliecloud refuses to start without USER
            env.setdefault(b"USER", b"%d" % os.geteuid())
        place = Place(
            directory=str(self._directories.top),
            shared=str(self._home.shared),
            control=str(self._home.control),
            name=f"ecloud-{self._peer}-{job.order.task_no}-{job.order.number}",
            user=os.geteuid(),
            group=os.getegid(),
            variables=sorted(os.fsdecode(name) for name in env),
            gpus=job.gpus,
        )
        job.container_argv = argv_in_container(container, argv, place)
        job.container_name = place.name
        return job.container_argv

    def _unpacked(self, job: Job, call: Call) -> str:
        """Return the directory with the user's modules. Unpacks the archive once; its name is its hash."""
        if not call.project:
            return ""
        place = self.objects / f"{call.project}.modules"
        if not place.exists():
            aside = place.with_name(f"{call.project}.new")
            with zipfile.ZipFile(self.objects / call.project) as archive:
                archive.extractall(aside)
            os.rename(aside, place)
        return str(place) if job.body.container is None else f"{SHARED}/objects/{place.name}"
