"""The user's own modules: which directory they are in, and one archive of it, named by the hash of its content.

The archive leaves out what `.gitignore` and `.ecloudignore` name, `.git`, caches and virtual environments.
"""

from __future__ import annotations

import dis
import hashlib
import io
import os
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pathspec

from datastore.problem import Problem
from ecloud.model.text import byte_size

MAX_BYTES = 100_000_000
SHOWN = 10
"""Files that are named where a project is too large."""
IGNORE_FILES = (".gitignore", ".ecloudignore")
NEVER = frozenset({".git", ".hg", ".svn", "__pycache__", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache"})
PROGRAM = frozenset({"__main__", "__mp_main__"})
"""Names of the program itself: what calls use of it is sent with them."""
_ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
OURS = tuple(os.path.join(_ROOT, package, "") for package in ("ecloud", "datastore", "boss", "worker"))
"""Directories of ECLOUD: calls do not need its modules. A user's module may have the name of one, such as `worker`."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


class ProjectUnusable(Problem):
    """The directory of the user's modules cannot be sent to the workers; the text says why and what to do."""


class Project:
    """The modules below `root`. `archive` gives (content, SHA-256)."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._archive: tuple[bytes, str] | None = None

    def is_needed(self, function: Any) -> bool:
        """Whether a call needs modules of the project: one is loaded, or the function imports one."""
        return any(self._holds(module) for module in tuple(sys.modules.values())) or any(
            self._has(name) for name in imported_names(function)
        )

    def needs(self, function: Any) -> bool:
        """Whether the function itself uses modules of the project: it is of one, imports one, or names one."""
        inner = getattr(function, "__func__", getattr(function, "func", function))
        names = getattr(getattr(inner, "__code__", None), "co_names", ())
        used = [getattr(inner, "__globals__", {}).get(name) for name in names]
        modules = [item if isinstance(item, types.ModuleType) else _module_of(item) for item in (inner, *used)]
        return any(map(self._holds, modules)) or any(map(self._has, imported_names(function)))

    def _holds(self, module: Any) -> bool:
        """Whether it is where the root holds a module of that name: not so where an environment below has it."""
        file, names = getattr(module, "__file__", None), str(getattr(module, "__name__", "")).split(".")
        if not isinstance(file, str) or names[0] in PROGRAM:
            return False
        directory, base = os.path.split(file)
        stem = base.partition(".")[0]
        place = names if stem == "__init__" else names[:-1]
        if stem not in ("__init__", names[-1]):
            return False
        real = os.path.realpath(directory)
        return real == str(self.root.joinpath(*place)) and not os.path.join(real, "").startswith(OURS)

    def _has(self, name: str) -> bool:
        top = name.partition(".")[0]
        return (self.root / f"{top}.py").is_file() or (self.root / top).is_dir()

    def archive(self) -> tuple[bytes, str]:
        """Made once. Raises `ProjectUnusable`."""
        if self._archive is None:
            self._archive = self._pack()
        return self._archive

    def _pack(self) -> tuple[bytes, str]:
        self._require_usable()
        files: list[tuple[str, Path, int]] = []
        total = 0
        for name, path in _files(self.root, "", []):
            size = path.stat().st_size
            files.append((name, path, size))
            total += size
            if name.endswith(".py") and "/" not in name and name[:-3] in sys.stdlib_module_names:
                raise ProjectUnusable(
                    f"{path} would take the place of Python's own module {name[:-3]!r} on the workers", "rename it"
                )
        if total > MAX_BYTES:
            largest = sorted(files, key=lambda file: -file[2])[:SHOWN]
            named = ", ".join(f"{name} ({byte_size(size)})" for name, _, size in largest)
            raise ProjectUnusable(
                f"the project directory {self.root} has {byte_size(total)} and at most {byte_size(MAX_BYTES)} are sent "
                f"to workers; its largest files are {named}",
                "name what calls do not need in .ecloudignore, as in a .gitignore",
            )
        return _zipped(files)

    def _require_usable(self) -> None:
        whole = {Path("/"): "the whole machine", Path.home().resolve(): "your whole home"}
        if self.root in whole:
            raise ProjectUnusable(
                f"the modules of this program are in {self.root}, and {whole[self.root]} is not sent to workers",
                "move the program and its modules to a directory of their own",
            )


def _module_of(item: Any) -> Any:
    return sys.modules.get(str(getattr(item, "__module__", "")))


def root_of_program() -> Path:
    """The directory of the program, or where an interactive one was started."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(file).resolve().parent if file else Path.cwd()


def imported_names(function: Any) -> Iterator[str]:
    """Modules that a function's own code imports when it runs."""
    inner = getattr(function, "__func__", getattr(function, "func", function))
    code = getattr(inner, "__code__", None)
    todo = [code] if isinstance(code, types.CodeType) else []
    while todo:
        found = todo.pop()
        for instruction in dis.get_instructions(found):
            if instruction.opname == "IMPORT_NAME":
                yield str(instruction.argval)
        todo += [constant for constant in found.co_consts if isinstance(constant, types.CodeType)]


def _files(directory: Path, prefix: str, rules: list[tuple[str, Any]]) -> Iterator[tuple[str, Path]]:
    """(name, path) of each file, in order of names. `rules`: (directory, spec) of those above."""
    for name in IGNORE_FILES:
        file = directory / name
        if file.is_file():
            lines = file.read_text(errors="replace").splitlines()
            rules = [*rules, (prefix, pathspec.GitIgnoreSpec.from_lines(lines))]
    for item in sorted(os.scandir(directory), key=lambda item: item.name):
        name = prefix + item.name
        is_directory = item.is_dir(follow_symlinks=False)
        tested = name + "/" if is_directory else name
        if item.name in NEVER or any(spec.match_file(tested[len(at) :]) for at, spec in rules):
            continue
        if is_directory:
            if not os.path.exists(os.path.join(item.path, "pyvenv.cfg")):
                yield from _files(Path(item.path), name + "/", rules)
        elif item.is_file() and not item.name.endswith(".pyc"):
            yield name, Path(item.path)


def _zipped(files: list[tuple[str, Path, int]]) -> tuple[bytes, str]:
    """The same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, path, _ in files:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = (path.stat().st_mode & 0o777) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())
    data = buffer.getvalue()
    return data, hashlib.sha256(data).hexdigest()
