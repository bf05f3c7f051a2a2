"""The difference between two runs in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path

from lab.graph.differences.difference import ABSENT, Change, Difference, causes_of
from lab.graph.differences.runs import Record
from lab.graph.differences.settings import plain

_UNTRAINED = ("data", "evaluate", "compare")  # stages that train nothing
_UNSAID = "something that was not recorded"
_WIDEST = 40  # characters of a bar of added and removed lines


def report(difference: Difference) -> list[str]:
    """Lines that say what differs, the last one where it began."""
    one, other = difference.before, difference.after
    width = max(len(one.name), len(other.name))
    lines = [
        f"A  {one.name.ljust(width)}  {one.identity}  {_where(one)}".rstrip(),
        f"B  {other.name.ljust(width)}  {other.identity}  {_where(other)}".rstrip(),
        "",
    ]
    if one.stage != other.stage:
        lines.append(_row("stage", f"{one.stage} -> {other.stage}"))
    seed = difference.seed
    lines.append(_row("seed", _seed(one) if seed is None else f"{seed.before} -> {seed.after}"))
    lines += _code_lines(difference)
    settings = len(plain(one.parameters or {}).keys() - {"seed"})
    lines += _change_lines(
        "configuration", difference.configuration, f"the same, {_count(settings, 'setting')}"
    )
    lines += _data_lines(difference)
    lines += _change_lines("environment", difference.environment, "the same")
    if difference.results:
        lines.append(_row("results", f"{_differ(len(difference.results))}, though both read the same"))
        lines += [f"  {name}" for name in difference.results[:10]]
    elif difference.results == ():
        lines.append(_row("results", f"the same, {_count(len(one.outputs or {}), 'file')}"))
    return [*lines, "", conclusion(difference)]


def conclusion(difference: Difference) -> str:
    """One line: where the first difference is, and of what kind."""
    if difference.same and difference.environment:
        wrote = " and wrote the same" if difference.results == () else ""
        return f"They read the same{wrote},{_environments(difference)}."
    if difference.same:
        return "Identical, in all that was recorded."
    first, *rest = causes_of(difference, set())
    if first is not difference:
        more = f"; {_stages(rest)} as well" if rest else ""
        return f"The first difference is upstream: {_upstream(first)}{more}."
    if difference.results:
        return f"They read the same and wrote something else,{_environments(difference)}."
    reasons = " and ".join(f"{kind} ({what})" for kind, what in _reasons(difference))
    if not reasons:
        return "They differ; why was not recorded."
    parts = {"code": difference.code, "configuration": difference.configuration, "data": difference.inputs}
    unknown = [name for name, known in parts.items() if known is None]
    if unknown:
        return f"They differ in {reasons}; not recorded: {', '.join(unknown)}."
    return f"They differ in {reasons} alone{': all inputs are the same' if difference.inputs else ''}."


def _upstream(first: Difference) -> str:
    """The runs of one stage, and why they differ."""
    names = [run.name for run in (first.before, first.after) if run.stage != ABSENT]
    if len(names) == 1:
        return f"{names[0]} is an input of {'A' if first.after.stage == ABSENT else 'B'} alone"
    plural = names[0] != names[1]
    name = f"{names[0]} and {names[1]}" if plural else names[0]
    if first.results:
        return f"{name} read the same and wrote something else,{_environments(first)}"
    verb = "ran" if first.before.stage in _UNTRAINED else f"{'were' if plural else 'was'} trained"
    return f"{name} {verb} with {_why(first)}"


def _why(difference: Difference) -> str:
    """Another seed, other code and so on."""
    words = {"code": "other code"}
    found = [f"{words.get(kind, f'another {kind}')} ({what})" for kind, what in _reasons(difference)]
    return " and ".join(found) or _UNSAID


def _reasons(difference: Difference) -> list[tuple[str, str]]:
    """Why a run differs by itself: kind, and the first of what differs."""
    found = []
    if difference.before.stage != difference.after.stage:
        found.append(("stage", f"{difference.before.stage}, {difference.after.stage}"))
    if difference.seed:
        found.append(("seed", f"{difference.seed.before}, {difference.seed.after}"))
    if difference.configuration:
        found.append(("configuration", _first(difference.configuration)))
    if difference.code:
        found.append(("code", _and_more(difference.code[0].path, len(difference.code))))
    return found


def _environments(difference: Difference) -> str:
    if difference.environment is None:
        return " in an environment that was not recorded"
    if not difference.environment:
        return " in the same environment"
    return f" in another environment ({_first(difference.environment)})"


def _first(changes: Sequence[Change]) -> str:
    return _and_more(f"{changes[0].key}: {changes[0].before}, {changes[0].after}", len(changes))


def _and_more(first: str, number: int) -> str:
    return first if number == 1 else f"{first}; {number - 1} more"


def _stages(differences: Sequence[Difference]) -> str:
    words = list(dict.fromkeys(one.before.stage for one in differences))
    return f"{', '.join(words)} differ{'s' if len(words) == 1 else ''}"


def _row(key: str, value: str) -> str:
    return f"{key.ljust(14)} {value}"


def _where(record: Record) -> str:
    if record.folder is None:
        return "(its output is gone; this is what MLflow knows)"
    here = Path.cwd()
    return str(record.folder.relative_to(here) if record.folder.is_relative_to(here) else record.folder)


def _seed(record: Record) -> str:
    seed = (record.parameters or {}).get("seed")
    return "not recorded" if seed is None else f"the same, {seed}"


def _change_lines(title: str, changes: Sequence[Change] | None, same: str) -> list[str]:
    if changes is None:
        return [_row(title, "not recorded")]
    if not changes:
        return [_row(title, same)]
    width = max(len(change.key) for change in changes)
    return [
        _row(title, _differ(len(changes))),
        *(f"  {change.key.ljust(width)}  {change.before} -> {change.after}" for change in changes),
    ]


def _code_lines(difference: Difference) -> list[str]:
    files, number = difference.code, len(difference.before.code or {})
    if files is None:
        return [_row("code", "not recorded")]
    if not files:
        return [_row("code", f"the same, {_count(number, 'file')}" if number else "the same")]
    one, other = difference.before.commit[:12], difference.after.commit[:12]
    commits = f" (commits {one} and {other})" if one and other and one != other else ""
    width = max(len(file.path) for file in files)
    lines = [_row("code", f"{_differ(len(files))}{commits}")]
    for file in files:
        state = "" if file.state == "changed" else f" ({file.state})"
        lines.append(f"  {file.path.ljust(width)} | {_bar(file.lines)}{state}")
    return lines


def _bar(lines: tuple[int, int] | None) -> str:
    """As `git diff --stat` shows a file."""
    if lines is None:
        return "differs; git knows no text of one side"
    added, removed = lines
    scale = min(1.0, _WIDEST / max(1, added + removed))
    return f"{added + removed:4d} {'+' * ceil(added * scale)}{'-' * ceil(removed * scale)}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _differ(number: int) -> str:
    return "1 differs" if number == 1 else f"{number} differ"


def _data_lines(difference: Difference) -> list[str]:
    if difference.inputs is None:
        return [_row("data", "not recorded")]
    if not difference.inputs:
        return [_row("data", "takes no inputs")]
    differ = sum(not pair.same for pair in difference.inputs.values())
    inputs = _count(len(difference.inputs), "input")
    verb = "differs" if differ == 1 else "differ"
    summary = f"{differ} of {inputs} {verb}" if differ else f"the same, {inputs}"
    return [_row("data", summary), *_inputs(difference, 1, set())]


def _inputs(difference: Difference, depth: int, shown: set[int]) -> Iterator[str]:
    """A line for each input; those that differ with their own inputs below them, once."""
    for stage, pair in (difference.inputs or {}).items():
        begin = f"{'  ' * depth}{stage}"
        one, other = pair.before.identity or ABSENT, pair.after.identity or ABSENT
        if pair.same:
            if depth == 1:
                yield f"{begin}  {one}, the same"
        elif id(pair) in shown:
            yield f"{begin}  {one} -> {other}, as above"
        else:
            shown.add(id(pair))
            why = "other results" if pair.results else _why(pair) if pair.own else "its inputs differ"
            yield f"{begin}  {one} -> {other}: {why}"
            yield from _inputs(pair, depth + 1, shown)
