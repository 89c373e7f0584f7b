"""Builds the archive that a worker's machine needs: the code that a worker imports and the packages for its Python.

Owns HOME/bundles: one `.tar.gz` per content and kind of Python, made once. A package comes from the boss's own
environment if that fits the machine (pure ones always do), so both sides have the same versions and no internet is
needed; else pip downloads its wheel, which is kept in HOME/wheels. Never contacts a worker's machine.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.metadata
import io
import os
import platform
import re
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from datastore.problem import Problem
from ecloud.model.machine_needs import LEAST_PYTHON

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("click", "msgspec", "paho-mqtt", "psutil")
"""Packages that a worker imports; each works without further packages."""
BOSS_PACKAGES = (
    "alembic", "click", "fabric", "iotcore", "msgspec", "networkx", "paho-mqtt", "paramiko", "psutil",
    "pymysql", "pyyaml", "rich", "sqlalchemy",
)  # fmt: skip
"""Packages that a boss and its commands import; their requirements are added."""
BOSS_PARTS = ("boss", "worker", "ecloud", "datastore", "migrations")
BOSS_FILES = ("admin.py", "push_tasks.py", "settings.example.py", "pyproject.toml")
STARTS = ("worker.__main__", "worker.debug")
WHOLE = ("worker", "datastore")
PIP_S = 60.0
ASK_AGAIN_S = 60.0
"""A failed download is not tried again before this time has passed, however many machines need it."""
LEVEL = 1
"""Level of gzip: a boss's bundle takes 10 s of CPU at the default level, 2 s at this one."""
KEPT = 8
"""Number of archives with earlier code that are kept."""
OLDEST_GLIBC = 5
_TAG = re.compile(r"(many|musl)linux_(\d+)_(\d+)_(.+)\Z")
_OLD_NAMES = {"manylinux1": "manylinux_2_5", "manylinux2010": "manylinux_2_12", "manylinux2014": "manylinux_2_17"}


class NoBundle(Problem):
    """A machine for which no bundle can be made; the text names what is missing and what to do."""


class Machine(msgspec.Struct, frozen=True):
    """The facts that decide which packages fit. `python`: (3, 11); `libc`: glibc or musl; `libc_version`: (2, 36)."""

    python: tuple[int, int]
    architecture: str
    libc: str
    libc_version: tuple[int, int]

    def __str__(self) -> str:
        version = ".".join(map(str, self.python))
        return f"Python {version} on {self.architecture}, {self.libc} {'.'.join(map(str, self.libc_version))}"


class Bundle(msgspec.Struct, frozen=True):
    """`name`: from the content, so that a bundle on the machine is not sent again; `archive`: its .tar.gz."""

    name: str
    archive: Path


def this_machine() -> Machine:
    """Describe the boss's machine."""
    libc, version = platform.libc_ver()
    return Machine(
        (sys.version_info[0], sys.version_info[1]), platform.machine(), libc or "musl", _pair(version or "1.2")
    )


class Bundles:
    """Makes and keeps bundles. Thread-safe; makes one at a time."""

    def __init__(self, home: Path, root: Path = ROOT, own: Machine | None = None) -> None:
        self._archives = home / "bundles"
        self._wheels = home / "wheels"
        self._root = root
        self._own = own or this_machine()
        self._lock = threading.Lock()
        self._made: dict[tuple[Machine, bool], Bundle] = {}
        self._cant: dict[tuple[Machine, bool], tuple[float, str]] = {}

    def get(self, machine: Machine, for_boss: bool = False) -> Bundle:
        """Return what that machine needs to be a worker; `for_boss`: all that a boss and its commands need.

        Raises `NoBundle`.
        """
        with self._lock:
            made = self._made.get((machine, for_boss))
            if made is not None and made.archive.exists():
                return made
            since, why = self._cant.get((machine, for_boss), (0.0, ""))
            if why and time.monotonic() - since < ASK_AGAIN_S:
                raise NoBundle(why)
            try:
                made = self._made[machine, for_boss] = self._make(machine, for_boss)
            except NoBundle as error:
                self._cant[machine, for_boss] = (time.monotonic(), str(error))
                raise
            return made

    def _make(self, machine: Machine, for_boss: bool) -> Bundle:
        if machine.python < LEAST_PYTHON:
            raise NoBundle(f"{machine}: 3.10 or later is needed; use an image that has it")
        paths = all_files(self._root) if for_boss else code_files(self._root)
        files = {str(path): (self._root / path).read_bytes() for path in paths}
        for package in with_requirements(BOSS_PACKAGES) if for_boss else PACKAGES:
            for path, data in self._package(package, machine):
                files[f"packages/{path}"] = data
        digest = hashlib.sha256()
        for path in sorted(files):
            digest.update(f"{path}\0{len(files[path])}\0".encode() + files[path])
        name = digest.hexdigest()[:16]
        archive = self._archives / f"{name}.tar.gz"
        try:
            self._archives.mkdir(mode=0o700, parents=True, exist_ok=True)
            if archive.exists():
                archive.touch()
            else:
                aside = archive.with_suffix(f".{os.getpid()}.new")
                aside.write_bytes(_packed(files))
                aside.replace(archive)
            every = sorted(self._archives.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime, reverse=True)
            for old in every[KEPT:]:
                old.unlink()
        except OSError as error:
            raise NoBundle(f"{archive} cannot be written: {error.strerror}; make room there") from None
        return Bundle(name, archive)

    # --- packages -------------------------------------------------------------------------------------

    def _package(self, package: str, machine: Machine) -> Iterator[tuple[str, bytes]]:
        own = importlib.metadata.distribution(package)
        tags = [line.partition(":")[2].strip() for line in (own.read_text("WHEEL") or "").splitlines() if "Tag" in line]
        if any(fits(tag, machine, self._own) for tag in tags):
            return _installed(own)
        return _unzipped(self._wheel(package, own.version, machine))

    def _wheel(self, package: str, version: str, machine: Machine) -> Path:
        directory = self._wheels / "-".join(map(str, (*machine.python, machine.architecture, machine.libc)))
        if (there := self._there(directory, package, version, machine)) is not None:
            return there
        words = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        words += ["--no-input", "--only-binary=:all:", "--dest", str(directory), *pip_target(machine)]
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            done = subprocess.run(
                [*words, f"{package}=={version}"],
                capture_output=True,
                text=True,
                timeout=PIP_S,
                stdin=subprocess.DEVNULL,
            )
            said = (done.stderr or done.stdout).strip().splitlines()
        except (OSError, subprocess.TimeoutExpired) as error:
            said = [str(error)]
        if (there := self._there(directory, package, version, machine)) is not None:
            return there
        raise NoBundle(
            f"no {package} {version} is available for {machine} ({said[-1] if said else 'no output from pip'}): "
            f"put its wheel into {directory}, or use an image with the boss's own {_version(self._own.python)}"
        )

    def _there(self, directory: Path, package: str, version: str, machine: Machine) -> Path | None:
        stem = f"{package.replace('-', '_')}-{version}-"
        for path in sorted(directory.glob(f"{stem}*.whl")):
            pythons, abis, platforms = path.stem.removeprefix(stem).split("-")[-3:]
            tags = [f"{pythons}-{abis}-{one}" for one in platforms.split(".")]
            if any(fits(tag, machine, machine) for tag in tags) and zipfile.is_zipfile(path):
                return path
        return None


def fits(tag: str, machine: Machine, made_on: Machine) -> bool:
    """Return whether a package built as `tag` (`cp311-cp311-manylinux_2_17_x86_64`, PEP 425 and 600) runs on a machine.
    `made_on`: the machine that built a package whose tag is only `linux`."""
    pythons, abi, where = tag.split("-")
    version = f"{machine.python[0]}{machine.python[1]}"
    if abi == "none" and where == "any":
        return any(python in ("py3", f"py{version}", f"cp{version}") for python in pythons.split("."))
    if not pythons.startswith("cp3") or not pythons[3:].isdecimal():
        return False
    minor = int(pythons[3:])
    if not ((abi == f"cp{version}" and minor == machine.python[1]) or (abi == "abi3" and minor <= machine.python[1])):
        return False
    for old, new in _OLD_NAMES.items():
        where = re.sub(rf"\A{old}_", f"{new}_", where)
    found = _TAG.match(where)
    if found is None:
        same = (machine.architecture, machine.libc) == (made_on.architecture, made_on.libc)
        return where == f"linux_{machine.architecture}" and same and machine.libc_version >= made_on.libc_version
    kind, major, least, architecture = found.groups()
    libc = "glibc" if kind == "many" else "musl"
    return (libc, architecture) == (machine.libc, machine.architecture) and machine.libc_version >= (
        int(major),
        int(least),
    )


def pip_target(machine: Machine) -> list[str]:
    """Return the options with which pip downloads wheels for another machine."""
    major, minor = machine.libc_version
    kind, oldest = ("manylinux", OLDEST_GLIBC) if machine.libc == "glibc" else ("musllinux", 0)
    words = ["--implementation", "cp", "--python-version", _version(machine.python)]
    for abi in (f"cp{machine.python[0]}{machine.python[1]}", "abi3", "none"):
        words += ["--abi", abi]
    for least in range(minor, oldest - 1, -1):
        words += ["--platform", f"{kind}_{major}_{least}_{machine.architecture}"]
    if machine.libc == "glibc":
        words += ["--platform", f"manylinux2014_{machine.architecture}"]
    return words


def _installed(own: importlib.metadata.Distribution) -> Iterator[tuple[str, bytes]]:
    """Yield a package's files as they are installed here, without programs and Python's compiled files."""
    for path in own.files or ():
        if ".." in path.parts or "__pycache__" in path.parts or path.name in ("RECORD", "INSTALLER", "direct_url.json"):
            continue
        yield str(PurePosixPath(*path.parts)), Path(str(own.locate_file(path))).read_bytes()


def _unzipped(wheel: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            parts = PurePosixPath(item.filename).parts
            if not item.is_dir() and ".." not in parts and not item.filename.startswith("/") and parts[-1] != "RECORD":
                yield item.filename, archive.read(item)


# --- code -----------------------------------------------------------------------------------------


def code_files(root: Path = ROOT) -> list[Path]:
    """List our own files that a worker needs, relative to the checkout: its scripts, and every module it may import."""
    found = {
        path.relative_to(root) for name in WHOLE for path in (root / name).rglob("*") if path.suffix in (".py", ".sh")
    }
    todo, seen = list(STARTS), set(STARTS)
    while todo:
        path = _file_of(todo.pop(), root)
        if path is None:
            continue
        found.add(path.relative_to(root))
        for name in _imports(path):
            if name.partition(".")[0] in ("ecloud", *WHOLE) and name not in seen:
                seen.add(name)
                todo.append(name)
    return sorted(found)


def all_files(root: Path = ROOT) -> list[Path]:
    """List all our files that a boss and its commands may need, relative to the checkout."""
    found = [path for part in BOSS_PARTS for path in (root / part).rglob("*") if path.is_file()]
    found += [path for name in BOSS_FILES if (path := root / name).is_file()]
    return sorted(path.relative_to(root) for path in found if "__pycache__" not in path.parts)


def with_requirements(names: Sequence[str]) -> list[str]:
    """Return packages and their installed requirements, without those of extras."""
    todo, found = list(names), dict[str, None]()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in found:
            continue
        try:
            needs = importlib.metadata.distribution(name).requires or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = None
        for line in needs:
            needed = re.match(r"[A-Za-z0-9._-]+", line)
            if needed and "extra" not in line.partition(";")[2]:
                todo.append(needed[0])
    return sorted(found)


def _file_of(module: str, root: Path) -> Path | None:
    base = root.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: Sequence[str] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _packed(files: dict[str, bytes]) -> bytes:
    """Pack files: the same files always give the same bytes."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=LEVEL, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for path in sorted(files):
            entry = tarfile.TarInfo(path)
            entry.size = len(files[path])
            entry.mode = 0o755 if path.endswith(".sh") else 0o644
            archive.addfile(entry, io.BytesIO(files[path]))
    return packed.getvalue()


def _pair(text: str) -> tuple[int, int]:
    major, minor, *_ = [*map(int, re.findall(r"\d+", text)), 0, 0]
    return major, minor


def _version(python: tuple[int, int]) -> str:
    return ".".join(map(str, python))
