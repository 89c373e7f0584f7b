"""Which of the user's files are sent to the workers, and which directories never are."""

from __future__ import annotations

import importlib
import io
import sys
import types
import zipfile
from pathlib import Path

import pytest

from ecloud.python import project
from ecloud.python.project import Project, ProjectUnusable


def made(root: Path, *names: str, **texts: str) -> Project:
    """A project with these files."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x" * 10)
    for name, text in texts.items():
        (root / {"gitignore": ".gitignore", "ecloudignore": ".ecloudignore"}[name]).write_text(text)
    return Project(root)


def names_in(found: Project) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(found.archive()[0])).namelist()


def test_ignore_files_git_caches_and_environments_stay_at_home(tmp_path: Path) -> None:
    found = made(
        tmp_path, "main.py", "pkg/a.py", "pkg/data.bin", ".git/config", "pkg/__pycache__/a.pyc", "out/big.csv",
        "env/pyvenv.cfg", "env/lib/x.py", "keep.csv", gitignore="*.csv\n!keep.csv\n", ecloudignore="data.bin\n",
    )  # fmt: skip
    (tmp_path / "pkg/.gitignore").write_text("/b.py\n")
    (tmp_path / "pkg/b.py").touch()
    (tmp_path / "b.py").touch()
    expected = [".ecloudignore", ".gitignore", "b.py", "keep.csv", "main.py", "pkg/.gitignore", "pkg/a.py"]
    assert sorted(names_in(found)) == expected


def test_the_same_files_give_the_same_hash(tmp_path: Path) -> None:
    first = made(tmp_path / "one", "main.py", "pkg/a.py").archive()[1]
    second = made(tmp_path / "two", "pkg/a.py", "main.py").archive()[1]
    assert first == second


def test_a_project_that_is_too_large_names_its_largest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(project, "MAX_BYTES", 50)
    (tmp_path / "model.bin").write_bytes(b"x" * 60)
    with pytest.raises(ProjectUnusable, match=r"model.bin \(60 B\).*\.ecloudignore"):
        made(tmp_path, "main.py").archive()


def test_a_module_in_the_place_of_pythons_own_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProjectUnusable, match="Python's own module 'random' on the workers: rename it"):
        made(tmp_path, "random.py").archive()


@pytest.mark.parametrize("place", ["/", "~"])
def test_neither_the_whole_machine_nor_the_home_is_sent(place: str) -> None:
    with pytest.raises(ProjectUnusable, match="is not sent to workers: move the program"):
        Project(Path(place).expanduser()).archive()


def test_a_project_is_needed_where_a_function_imports_of_it(tmp_path: Path) -> None:
    found = made(tmp_path, "helper.py", "pkg/__init__.py")

    def lazy() -> object:
        import pkg.part  # type: ignore[import-not-found]

        return pkg

    def plain() -> object:
        import json

        return json

    assert found.is_needed(lazy)
    assert not Project(Path(project.__file__).parents[2])._holds(project)  # ours, and not the user's
    assert not found.is_needed(plain)


def test_modules_are_the_users_where_the_root_holds_their_name(tmp_path: Path) -> None:
    def module(name: str, file: Path) -> types.ModuleType:
        found = types.ModuleType(name)
        found.__file__ = str(file)
        return found

    root = tmp_path / "real"
    found = made(root, "helper.py", "pkg/__init__.py", "conda/lib/python3.11/json/__init__.py", "conda/lib/x.py")
    linked = tmp_path / "linked"
    linked.symlink_to(root)
    assert found._holds(module("helper", root / "helper.py"))
    assert found._holds(module("helper", linked / "helper.py"))
    assert found._holds(module("pkg", root / "pkg/__init__.py"))
    assert found._holds(module("pkg.fast", root / "pkg/fast.cpython-311-x86_64-linux-gnu.so"))
    assert not found._holds(module("json", root / "conda/lib/python3.11/json/__init__.py"))
    assert not found._holds(module("x", root / "conda/lib/x.py"))
    assert Project(Path("/"))._holds(module("helper", Path("/helper.py")))


def test_a_function_needs_the_project_if_it_imports_or_names_something_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path, "helper_of_calls.py")
    (tmp_path / "helper_of_calls.py").write_text("def help(): pass\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    helper = importlib.import_module("helper_of_calls")
    monkeypatch.setitem(sys.modules, "helper_of_calls", helper)
    names = {"helper": helper, "Thing": helper.Thing, "pow": pow}
    exec("def by_module(): helper.help()\ndef by_class(): Thing()\ndef without(): pow(2, 3)", names)
    assert found.needs(names["by_module"])
    assert found.needs(names["by_class"])
    assert found.needs(helper.help)
    assert not found.needs(names["without"])
    assert not found.needs(pow)
