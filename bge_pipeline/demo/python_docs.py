"""The documentation that every Python installation carries: the language reference and the library's docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from bge_pipeline.errors import BgePipelineError

_SKIPPED_FOLDERS = frozenset(
    "test tests idle_test idlelib lib2to3 turtledemo distutils ensurepip encodings pydoc_data site-packages "
    "dist-packages lib-dynload __pycache__ __phello__".split()
)
_SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "_sysconfig_vars")
_TWINS = {"_pydatetime": "datetime", "_pydecimal": "decimal", "_pyio": "io", "_collections_abc": "collections.abc"}
_COMPILED = {
    "builtins": "builtins", "sys": "sys", "math": "math", "cmath": "cmath", "itertools": "itertools", "time": "time",
    "array": "array", "atexit": "atexit", "binascii": "binascii", "fcntl": "fcntl", "gc": "gc", "marshal": "marshal",
    "mmap": "mmap", "posix": "os", "resource": "resource", "select": "select", "unicodedata": "unicodedata",
    "zlib": "zlib", "_codecs": "codecs", "_collections": "collections", "_csv": "csv", "_functools": "functools",
    "_random": "random", "_signal": "signal", "_socket": "socket", "_struct": "struct", "_thread": "threading",
}  # fmt: skip
"""Modules written in C whose docstrings no source file shows, and the public module that each belongs to."""
_COMPLETE_PYTHON = (
    "run the demo with a complete Python, for example from python.org or your distribution's full package"
)


@dataclass(frozen=True)
class Document:
    """One documented thing.

    Attributes:
        label: qualified name of the object; empty for a module or a topic.
        text: its documentation, common indentation removed.
    """

    label: str
    text: str


def language_reference() -> Iterator[tuple[str, Document]]:
    """(topic, document) pairs of `pydoc_data.topics`, the short and specific topics first.

    The long ones, such as `compound`, repeat the short ones; whoever drops repetitions keeps the specific source.

    Raises:
        BgePipelineError: this Python came without `pydoc_data`.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise BgePipelineError(
            "expected the Python language reference in pydoc_data.topics, got an installation without it",
            next_step=_COMPLETE_PYTHON,
        ) from error
    for name in sorted(topics, key=lambda name: (len(topics[name]), name)):
        yield name, Document("", topics[name])


def library_docstrings() -> Iterator[tuple[str, Document]]:
    """(module, document) pairs of the public docstrings of the standard library, sorted by module.

    Python modules are parsed, not imported. Modules written in C are imported, but only those of a fixed list.

    Raises:
        BgePipelineError: this Python came without the sources of its library.
    """
    pairs = [*_python_modules(), *_compiled_modules()]
    return iter(sorted(pairs, key=lambda pair: pair[0]))


def _python_modules() -> Iterator[tuple[str, Document]]:
    root = Path(sysconfig.get_path("stdlib"))
    if not root.is_dir():
        raise BgePipelineError(
            f"expected the sources of the standard library in a folder, got {root}", next_step=_COMPLETE_PYTHON
        )
    for path in _source_files(root):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the library's own sources
            tree = ast.parse(path.read_bytes())
        for document in _docstrings(tree, ""):
            yield _TWINS.get(name, name), document


def _source_files(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name in _SKIPPED_FOLDERS or entry.name.startswith(_SKIPPED_PREFIXES):
            continue
        if entry.is_dir():
            yield from _source_files(entry)
        elif entry.suffix == ".py":
            yield entry


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, label: str
) -> Iterator[Document]:
    if text := ast.get_docstring(node):
        yield Document(label, text)
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(child.name):
            yield from _docstrings(child, f"{label}.{child.name}".lstrip("."))


def _compiled_modules() -> Iterator[tuple[str, Document]]:
    for name, public_name in _COMPILED.items():
        try:
            module = importlib.import_module(name)
        except ImportError:  # the platform or the build has none
            continue
        for document in _object_docs(module):
            yield public_name, document


def _object_docs(module: ModuleType) -> Iterator[Document]:
    for name, item in sorted(vars(module).items()):
        if not _is_public(name) or not (inspect.isclass(item) or inspect.isbuiltin(item)):
            continue
        if text := _doc(item):
            yield Document(name, text)
        members = vars(item).items() if inspect.isclass(item) else ()
        for member_name, member in sorted(members):
            if _is_public(member_name) and callable(member) and (text := _doc(member)):
                yield Document(f"{name}.{member_name}", text)


def _doc(item: object) -> str:
    text = getattr(item, "__doc__", None)
    return inspect.cleandoc(text) if isinstance(text, str) else ""


def _is_public(name: str) -> bool:
    return not name.startswith("_")
