"""Code and docs are plain technical English: phrases that read as if translated must not come back.

The rules are in CONTRIBUTING.md. Add a phrase to `BANNED` once it no longer occurs anywhere.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from ecloud.config.settings import ROOT

BANNED = {
    r"\b(?:ca|wo|is|are|do|does|did|could|was|has|have)n't\b(?! open file)": "the long form: cannot, will not, …",
    r"\bof (?:ours|theirs)\b": "the owner: of ECLOUD, of this cluster, of this worker",
    r"\bsomebody\b|\bsomeone\b": "the actor: an operator, a user, another process",
    r"\bnobody\b": "the actor that does not: no worker, no boss; or a passive",
    r"\beverybody\b": "the actors: all users, all peers",
    r"\bwhoever\b|\bwhomever\b": "the actor: the caller, the next process",
    r"\b(?:go|goes|going|went|gone) on\b(?! (?:the|for)\b)": "continue, resume, run",
    r"\blets? (?:\w+ )?in\b": "accept, admit",
    r"\bby (?:itself|themselves)\b": "automatically",
    r"\bmend(?:s|ed|ing)?\b": "correct, repair, fix",
    r"\bin vain\b": "without effect",
    r"\bhears? of\b": "learn, see",
    r"\bso many\b(?! that\b)": "this many",
    r"\bso long\b(?! as\b| that\b)": "this long",
    r"\b(?:is|are) over\b": "has ended",
    r"\bany more\b": "no longer, not … now",
    r"\bno word (?:from|of)\b|\bleft no word\b": "no output, no message",
    r"\blast words\b": "the last lines of its log, its last message",
    r"\bwhat is said\b": "messages, what the boss sends",
    r"\b(?:says?|said) so\b": "report, confirm, state, show",
    r"\blooks? at\b|\blooked at\b": "check, inspect, read",
    r"\b(?:makes?|made) good\b": "replaced, repeated, corrected",
    r"\b(?:made|done|installed|numbered|begins?|beginning) anew\b": "again",
    r"\b(?:is|are) told\b(?! apart)": "get, learn, is reported, is ordered to",
    r"\bwhere there is none\b": "if there is none",
    r"\bbecomes of\b": "the outcome, the effect",
    r"\breport(?:s|ed)? for duty\b": "join, report",
    r"\bcomes? to nothing\b": "fail",
}
"""Regular expressions, and what to write instead. Case does not matter; a phrase may be broken over two lines."""

RULES = [(re.compile(pattern.replace(" ", r"[\s#]+"), re.IGNORECASE), instead) for pattern, instead in BANNED.items()]


class Allowed(NamedTuple):
    """A phrase that one file may contain."""

    path: str
    phrase: str
    reason: str


ALLOWED = (Allowed("bench/services.py", "nobody", "the name of a Unix account"),)

CODE = (
    "admin.py",
    "bench",
    "boss",
    "datastore",
    "docs",
    "ecloud",
    "examples",
    "migrations",
    "push_tasks.py",
    "settings.example.py",
    "sim",
    "worker",
)
"""Files and directories, searched for Python, shell and web files."""

DOCS = ("*.md", "docs/*.md", "bench/*.md", "examples/*.md")
"""Pages for users. Decisions and the changelog are history and are not rewritten."""

CODE_SUFFIXES = {".py", ".sh", ".html", ".js", ".css", ".service", ".yml"}
HISTORY = {"CHANGELOG.md"}

CODE_TEXTS, PAGES, STORIES = 15_000, 18, 2_500
"""The test reads at least this many comments and strings, pages, and texts of tests; fewer means that it no longer
finds the files."""


class Text(NamedTuple):
    """A comment, a string or a page, and the number of its first line in its file."""

    path: str
    line: int
    text: str


def texts_of(source: str, path: str = "") -> Iterator[Text]:
    """Comments and strings of Python code, docstrings included; adjacent comment lines are one text."""
    joined: list[tuple[int, int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line = token.start[0]
        if joined and joined[-1][1] == line - 1:
            first, _, before = joined[-1]
            joined[-1] = (first, line, f"{before}\n{token.string}")
        else:
            joined.append((line, line, token.string))
    yield from (Text(path, first, text) for first, _, text in joined)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(path, node.lineno, node.value)


def code_texts() -> Iterator[Text]:
    """The texts of the product's code: of each Python file its comments and strings, of others the whole file."""
    for name in CODE:
        found = sorted((ROOT / name).rglob("*")) if (ROOT / name).is_dir() else [ROOT / name]
        files = [path for path in found if path.suffix in CODE_SUFFIXES]
        assert files, f"{name} has no code: correct CODE in this test"
        for path in files:
            source, shown = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
            yield from texts_of(source, shown) if path.suffix == ".py" else [Text(shown, 1, source)]


def stories_of(source: str, path: str = "") -> Iterator[Text]:
    """What tests say they show: names of tests, as sentences, and docstrings, also of constants and helpers. Other
    strings of tests are inputs and expectations."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield Text(path, node.lineno, node.name.replace("_", " "))
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield Text(path, node.lineno, node.value.value)


def stories() -> Iterator[Text]:
    """The names and docstrings of all tests and of their support."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        yield from stories_of(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))


def pages() -> Iterator[Text]:
    """The pages for users."""
    for pattern in DOCS:
        for path in sorted(ROOT.glob(pattern)):
            if path.name not in HISTORY:
                yield Text(str(path.relative_to(ROOT)), 1, path.read_text(encoding="utf-8"))


def wrong_in(text: Text) -> Iterator[str]:
    """A sentence for each banned phrase: file, line, phrase and what to write."""
    for pattern, instead in RULES:
        for found in pattern.finditer(text.text):
            phrase = " ".join(found[0].replace("#", " ").split())
            if any((one.path, one.phrase) == (text.path, phrase) for one in ALLOWED):
                continue
            line = text.line + text.text.count("\n", 0, found.start())
            yield f"{text.path}:{line}: {phrase!r}; write: {instead}"


@pytest.mark.parametrize(("texts", "at_least"), [(code_texts, CODE_TEXTS), (pages, PAGES), (stories, STORIES)])
def test_no_banned_phrase(texts: Callable[[], Iterator[Text]], at_least: int) -> None:
    read = list(texts())
    assert len(read) >= at_least, f"only {len(read)} texts were found"
    wrong = [sentence for text in read for sentence in wrong_in(text)]
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_needed() -> None:
    """Each entry of `ALLOWED` has a reason, and its file contains its phrase."""
    for one in ALLOWED:
        assert one.reason
        assert one.phrase in " ".join((ROOT / one.path).read_text(encoding="utf-8").split()), one


@pytest.mark.parametrize(
    ("source", "line", "phrase"),
    [
        ('"""Text.\n\nIt goes\non."""\n', 3, "goes on"),
        ("x = 1  # fine\n# there is nobody\n", 2, "nobody"),
        ("# it is\n# over now\n", 1, "is over"),
        ('def f(a):\n    return f"{a} can\'t be read"\n', 2, "can't"),
    ],
)
def test_a_banned_phrase_is_reported_with_file_line_and_remedy(source: str, line: int, phrase: str) -> None:
    (sentence,) = [found for text in texts_of(source, "a.py") for found in wrong_in(text)]
    assert re.fullmatch(rf"a\.py:{line}: ['\"]{phrase}['\"]; write: .+", sentence)


@pytest.mark.parametrize(
    ("source", "line", "phrase"),
    [
        ("\ndef test_nobody_waits() -> None: ...\n", 2, "nobody"),
        ('def test_a() -> None:\n    """It goes\n    on."""\n', 2, "goes on"),
        ('A = 1\n"""Until it is over."""\n', 2, "is over"),
    ],
)
def test_a_banned_phrase_in_a_test_is_reported_with_file_and_line(source: str, line: int, phrase: str) -> None:
    (sentence,) = [found for text in stories_of(source, "a.py") for found in wrong_in(text)]
    assert sentence.startswith(f"a.py:{line}: {phrase!r}; write: ")


def test_inputs_of_a_test_are_no_story() -> None:
    assert [found for text in stories_of("def test_a() -> None:\n    f('nobody')\n") for found in wrong_in(text)] == []


def test_names_and_code_are_no_texts() -> None:
    assert [found for text in texts_of("nobody = is_over = anew = 1\n") for found in wrong_in(text)] == []
