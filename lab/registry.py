"""The folder is the registry: a role and a word name one file under `components/`.

Listing, describing and checking read the files' syntax trees and import nothing, so that they are quick and
a broken or heavy part cannot harm the others. Only `build` imports, and only the part that is asked for.

Parts of one's own may live elsewhere: the environment variable LAB_COMPONENTS names folders, separated as in
PATH, with the same subfolders (`connectors/mine.py`). A word of the lab's own cannot be taken again there.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from lab.errors import LabError, nearest

COMPONENTS = Path(__file__).resolve().parents[1] / "components"

ROLES = {
    "encoder": "encoders",
    "connector": "connectors",
    "text_decoder": "decoders/text",
    "fusion": "fusions",
    "visual_head": "heads",
    "image_decoder": "decoders/image",
}

_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "str": (str,),
    "list": (list,),
    "dict": (Mapping,),
}


@dataclass(frozen=True)
class Parameter:
    """One setting of a component, as its constructor declares it."""

    name: str
    annotation: str
    default: Any

    def accepts(self, value: object) -> bool:
        """Say whether a value from a configuration file fits the annotation."""
        return _fits(value, ast.parse(self.annotation, mode="eval").body)


@dataclass(frozen=True)
class Component:
    """One row of the catalogue. `fault` says why the file cannot be used, and is empty when it can.

    `methods` are those of its class.
    """

    role: str
    word: str
    title: str
    paper: str
    parameters: tuple[Parameter, ...]
    fault: str = ""
    methods: frozenset[str] = frozenset()


_seen: ContextVar[dict[tuple[str, ...], Any] | None] = ContextVar("_seen", default=None)
_T = TypeVar("_T")


@contextmanager
def read_once() -> Iterator[None]:
    """Within the block each folder is listed and each file parsed once, for checks of many specifications.

    What is edited meanwhile is seen after the block.
    """
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def _remembered(read: Callable[..., _T]) -> Callable[..., _T]:
    """What a function of names has read is kept for as long as `read_once` says."""

    @wraps(read)
    def remember(*names: str) -> _T:
        seen, key = _seen.get(), (read.__name__, *names)
        if seen is None:
            return read(*names)
        if key not in seen:
            seen[key] = read(*names)
        return cast(_T, seen[key])

    return remember


def words(role: str) -> list[str]:
    """List the words of a role, from the file names alone."""
    return sorted(_files(role))


def path(role: str, word: str) -> Path:
    """Find the file of a component.

    Raises:
        LabError: there is no such role or no such word.
    """
    files = _files(role)
    if word not in files:
        raise LabError(f"no {role} '{word}'{nearest(word, sorted(files))}")
    return files[word]


def place(role: str, word: str) -> str:
    """Say where a component's file is: in the checkout as from its root, elsewhere in full."""
    file = path(role, word)
    return str(file.relative_to(COMPONENTS.parent) if file.is_relative_to(COMPONENTS) else file)


def describe(role: str, word: str) -> Component:
    """Read what a component's file says about itself.

    Raises:
        LabError: unknown role or word, or a file that does not keep the form of a component.
    """
    return _read(role, word)[0]


def catalogue() -> list[Component]:
    """Describe every component of every role; a file that cannot be read is listed with its fault."""
    rows = []
    for role in ROLES:
        for word in words(role):
            try:
                rows.append(describe(role, word))
            except LabError as error:
                rows.append(Component(role, word, "", "", (), fault=str(error)))
    return rows


def check(role: str, spec: str | Mapping[str, Any], where: str | None = None) -> tuple[str, dict[str, Any]]:
    """Check a component's specification without importing it.

    Args:
        role: one of `ROLES`.
        spec: a word, or a mapping of `name` and settings.
        where: what to call the place of the specification in messages; the role if left out.

    Returns:
        The word and its settings.

    Raises:
        LabError: naming every mistake at once, with near misses and what is valid.
    """
    where = where or role
    settings = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    word = settings.pop("name", None)
    if not isinstance(word, str):
        raise LabError(
            f"{where}: expected a word or a mapping with 'name', not {spec!r}{nearest('', words(role))}"
        )
    if word not in words(role):
        raise LabError(f"{where}: no {role} '{word}'{nearest(word, words(role))}")
    declared = {parameter.name: parameter for parameter in describe(role, word).parameters}
    mistakes = []
    for name, value in settings.items():
        parameter = declared.get(name)
        if parameter is None:
            mistakes.append(f"no setting '{name}'{nearest(str(name), declared)}")
        elif not parameter.accepts(value):
            hint = _hint(parameter.annotation, value)
            mistakes.append(f"'{name}' must be {parameter.annotation}, not {value!r}{hint}")
    if mistakes:
        raise LabError(f"{where} {word}: " + "; ".join(mistakes))
    return word, settings


def build(role: str, spec: str | Mapping[str, Any], *args: Any) -> Any:
    """Import a component and construct it: an `nn.Module` with the role's protocol (`components.contracts`).

    Args:
        role: one of `ROLES`.
        spec: a word, or a mapping of `name` and settings.
        args: what composition knows: widths, counts, sizes, in the order of the role's contract.

    Raises:
        LabError: a wrong specification, or a combination that the component refuses.
    """
    word, settings = check(role, spec)
    module = _module(role, word)
    try:
        return getattr(module, _read(role, word)[1])(*args, **settings)
    except (ValueError, TypeError) as error:
        raise LabError(f"{role} {word}: {error}") from error


@_remembered
def _files(role: str) -> dict[str, Path]:
    """Word -> file, of the lab and of the folders that LAB_COMPONENTS names; the lab's own come first."""
    if role not in ROLES:
        raise LabError(f"no role '{role}'{nearest(role, ROLES)}")
    own = [Path(place).resolve() for place in os.environ.get("LAB_COMPONENTS", "").split(os.pathsep) if place]
    files: dict[str, Path] = {}
    for folder in (COMPONENTS, *own):
        for file in (folder / ROLES[role]).glob("*.py"):
            if not file.stem.startswith("_"):
                files.setdefault(file.stem, file)
    return files


def _module(role: str, word: str) -> ModuleType:
    """Import a component's file."""
    file = path(role, word)
    if file.is_relative_to(COMPONENTS):
        return import_module(".".join(["components", *ROLES[role].split("/"), word]))
    spec = spec_from_file_location(f"own_components.{role}.{word}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@_remembered
def _read(role: str, word: str) -> tuple[Component, str]:
    """Parse a component's file into its catalogue row and the name of its class."""
    file, where = path(role, word), place(role, word)
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise LabError(f"{where}{line}: cannot be read as Python: {getattr(error, 'msg', error)}") from error
    lines = (ast.get_docstring(tree) or "").splitlines()
    if not lines:
        raise LabError(f"{where}: has no docstring; its first line is the component's description")
    paragraphs = [" ".join(part.split()) for part in "\n".join(lines).split("\n\n")]
    papers = [part.removeprefix("Paper:").strip() for part in paragraphs if part.startswith("Paper:")]
    if not papers:
        raise LabError(f"{where}: its docstring has no line 'Paper: <title>, arXiv:<id>' or 'Paper: none'")
    name = _public_class(tree, where)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    methods = {node.name: node for cls in classes for node in cls.body if isinstance(node, ast.FunctionDef)}
    if "__init__" not in methods:
        raise LabError(f"{where}: class {name} with its own __init__ is missing")
    parameters = tuple(_parameters(methods["__init__"].args, where))
    row = Component(role, word, lines[0].strip(), papers[0], parameters, methods=frozenset(methods))
    return row, name


def _public_class(tree: ast.Module, where: str) -> str:
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            names = ast.literal_eval(node.value)
            if len(names) == 1:
                return str(names[0])
    raise LabError(f"{where}: __all__ must name the component's one class")


def _parameters(args: ast.arguments, where: str) -> list[Parameter]:
    found = []
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        if default is None or arg.annotation is None:
            raise LabError(f"{where}: keyword '{arg.arg}' needs an annotation and a default")
        try:
            value = ast.literal_eval(default)
        except ValueError as error:
            raise LabError(f"{where}: the default of '{arg.arg}' must be a plain value") from error
        found.append(Parameter(arg.arg, ast.unparse(arg.annotation).replace("'", '"'), value))
    return found


def _fits(value: object, annotation: ast.expr) -> bool:
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _fits(value, left) or _fits(value, right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            valid = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return any(type(value) is type(v := ast.literal_eval(choice)) and value == v for choice in valid)
        case ast.Name(id=name) if name in _TYPES:
            # bool is an int to Python, but `depth: true` is a slip of the pen
            return isinstance(value, _TYPES[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.Constant(value=None):
            return value is None
    return False


def _hint(annotation: str, value: object) -> str:
    """Explain the one trap of YAML: `1e-3` is text to some of its readers."""
    if "float" in annotation and isinstance(value, str):
        try:
            return f" (write {float(value)!r})" if "e" not in value.lower() else " (write 1.0e-3, not 1e-3)"
        except ValueError:
            return ""
    return ""
