"""Documentation of Python's standard library: what is written in Python is read, not imported; what
is written in C is asked for its docstrings.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from agents.samples.passages import split_at_paragraphs

_SKIPPED = frozenset(
    {"distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data"}
) | {
    "site-packages",
    "test",
    "tests",
    "turtledemo",
}
"""Folders with nothing to look up."""

_NOT_IMPORTED = frozenset({"readline", "posix", "nt"})
"""`readline` touches the terminal; the other two are `os`."""

_IN_C = {
    "collections": "_collections",
    "contextvars": "_contextvars",
    "csv": "_csv",
    "datetime": "_datetime",
    "decimal": "_decimal",
    "functools": "_functools",
    "hashlib": "_hashlib",
    "io": "_io",
    "lzma": "_lzma",
    "os": "posix",
    "pickle": "_pickle",
    "random": "_random",
    "signal": "_signal",
    "socket": "_socket",
    "sqlite3": "_sqlite3",
    "ssl": "_ssl",
    "struct": "_struct",
    "threading": "_thread",
    "tracemalloc": "_tracemalloc",
    "weakref": "_weakref",
}
"""Modules written in Python that offer names of one written in C."""

_MAX_CHARS = 4000


class _Entry(NamedTuple):
    name: str
    """Qualified: `datetime.datetime.strptime`."""
    signature: str
    kind: str
    text: str


def stdlib_documents() -> Iterator[dict[str, Any]]:
    """A document for each public module, class, function and method with a docstring."""
    seen = set[str]()
    for module in sorted(sys.stdlib_module_names):
        if module.startswith("_") or module in _SKIPPED:
            continue
        for entry in (*_read(module), *_asked(module)):
            if entry.name not in seen:
                seen.add(entry.name)
                yield from _documents(module, entry)


def _documents(module: str, entry: _Entry) -> Iterator[dict[str, Any]]:
    title = entry.name + entry.signature
    for number, text in enumerate(split_at_paragraphs(entry.text, _MAX_CHARS), start=1):
        yield {
            "id": entry.name if number == 1 else f"{entry.name}#{number}",
            "title": title,
            "content": f"{title}\n\n{text}",
            "kind": entry.kind,
            "module": module,
        }


# -- written in Python -----------------------------------------------------------------------------


def _read(module: str) -> Iterator[_Entry]:
    library = Path(sysconfig.get_path("stdlib"))
    single, twin = library / f"{module}.py", library / f"_py{module}.py"
    if single.is_file():
        yield from _parsed(module, single)
        if twin.is_file():  # what is done in C where possible, with the same docstrings
            yield from _parsed(module, twin)
        return
    for file in sorted((library / module).rglob("*.py")):
        parts = file.relative_to(library).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if not any(part.startswith("_") or part in _SKIPPED for part in parts):
            yield from _parsed(".".join(parts), file)


def _parsed(name: str, file: Path) -> Iterator[_Entry]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes in other people's strings
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            return
    if text := ast.get_docstring(tree):
        yield _Entry(name, "", "module", text)
    yield from _definitions(name, tree.body, inside_class=False)


def _definitions(prefix: str, body: list[ast.stmt], *, inside_class: bool) -> Iterator[_Entry]:
    for node in body:
        match node:
            case ast.If() | ast.Try():  # by platform or by what could be imported
                inner = [*node.body, *node.orelse]
                if isinstance(node, ast.Try):
                    inner += [line for handler in node.handlers for line in handler.body]
                yield from _definitions(prefix, inner, inside_class=inside_class)
            case ast.ClassDef(name=name) if not name.startswith("_"):
                if text := ast.get_docstring(node):
                    yield _Entry(f"{prefix}.{name}", "", "class", text)
                yield from _definitions(f"{prefix}.{name}", node.body, inside_class=True)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                text = None if name.startswith("_") else ast.get_docstring(node)
                if text:
                    kind = "method" if inside_class else "function"
                    signature = _signature(node.args, method=inside_class)
                    yield _Entry(f"{prefix}.{name}", signature, kind, text)


def _signature(arguments: ast.arguments, *, method: bool) -> str:
    """`(date_string, format)`; annotations and the first argument of methods left out."""
    for group in (arguments.posonlyargs, arguments.args, arguments.kwonlyargs):
        for argument in group:
            argument.annotation = None
    for rest in (arguments.vararg, arguments.kwarg):
        if rest:
            rest.annotation = None
    text = ast.unparse(arguments)
    if method:
        for own in ("self", "cls"):
            text = text.removeprefix(own).removeprefix(", ")
    return f"({text})"


# -- written in C ----------------------------------------------------------------------------------


def _asked(module: str) -> Iterator[_Entry]:
    library = Path(sysconfig.get_path("stdlib"))
    in_python = (library / f"{module}.py").is_file() or (library / module).is_dir()
    source = _IN_C.get(module) if in_python else module
    if source is None or module in _NOT_IMPORTED:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules on their way out
        try:
            members = importlib.import_module(source)
            public = importlib.import_module(module)
        except ImportError:  # of another platform
            return
    if not in_python and (text := _docstring(members)):
        yield _Entry(module, "", "module", text)
    yield from _members(module, members, public)


def _members(module: str, members: ModuleType, public: ModuleType) -> Iterator[_Entry]:
    for name, value in sorted(vars(members).items()):
        offered = not name.startswith("_") and getattr(public, name, None) is value
        if not offered or inspect.ismodule(value):
            continue
        qualified = f"{module}.{name}"
        text = _docstring(value)
        if inspect.isclass(value):
            if text:
                yield _Entry(qualified, "", "class", text)
            yield from _methods(qualified, value)
        elif inspect.isroutine(value) and text:
            yield _Entry(qualified, _asked_signature(value), "function", text)


def _methods(qualified: str, owner: type) -> Iterator[_Entry]:
    for name, value in sorted(vars(owner).items()):
        if not name.startswith("_") and (text := _docstring(value)):
            signature = _asked_signature(getattr(owner, name, None))
            yield _Entry(f"{qualified}.{name}", signature, "method", text)


def _docstring(value: object) -> str:
    text = getattr(value, "__doc__", None)
    return inspect.cleandoc(text) if isinstance(text, str) else ""


def _asked_signature(value: Any) -> str:
    # Some C modules state defaults that do not evaluate.
    with contextlib.suppress(AttributeError, NameError, SyntaxError, TypeError, ValueError):
        signature = inspect.signature(value)
        names = [name for name in signature.parameters if name not in {"self", "type"}]
        kept = [signature.parameters[name] for name in names]
        return str(signature.replace(parameters=kept))
    return ""
