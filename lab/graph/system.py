"""A published system as a declaration: `experiments/systems/NAME.yaml`, in the size of its paper and small.

paper: "Visual Instruction Tuning, arXiv:2304.08485"
claims: [understanding]
full:                                  # as published
  image_size: 224                      # px, square
  encoder: {name: clip, path: openai/clip-vit-large-patch14, layer: -2}
  connector: linear                    # a word, or a mapping of name and settings
  text_decoder: {name: hf, path: lmsys/vicuna-7b-v1.1}
  fusion: sequence
  visual_head: null                    # it only reads
  image_decoder: null
  targets: encoder                     # what a drawn image is made of: the encoder's tokens, the connector's,
                                       # or {num_tokens: 77, dim: 768}, conditions of the image decoder
  vocab_size: 1                        # where the text decoder has no vocabulary of its own
  stages:
    align: {trainable: [connector], data: [CC3M-595K], batch_size: 128, learning_rate: 2.0e-3, sequence: 320}
                                       # batch_size and learning_rate null where they are not stated
  published: {encoder: 303.2M - 12.6M} # parameters of a role, or of several: "encoder + connector: 308M"
small: ...                             # the same recipe on the built-in world
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.errors import LabError, nearest
from lab.registry import ROLES, check

SYSTEMS = Path(__file__).resolve().parents[2] / "experiments" / "systems"
CHECKPOINTS = SYSTEMS.parent / "checkpoints"
BASE = "base"  # what the small sizes start from; not a system

CLAIMS = ("understanding", "generation", "grounding", "in_context")
OPTIONAL = ("visual_head", "image_decoder")  # roles that a system may lack
# stages that train: those of the parts around the language model, and those in which it runs
ALONE = ("image_decoder", "represent")
JOINT = ("align", "pretrain", "instruct")
RESULTS = SYSTEMS.parents[1] / "docs" / "systems.md"

_KEYS = ("paper", "claims", "small", "full")
_FULL = (*ROLES, "image_size", "stages", "published", "targets", "vocab_size")
_STAGE = ("trainable", "data", "batch_size", "learning_rate", "sequence")
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True)
class System:
    """A checked declaration.

    Attributes:
        name: of the file.
        title, paper: of its publication, and the number at arXiv.
        claims: what it is meant to be good at.
        small: what differs from `base.yaml`, as it stands in the file; None if there is no small size.
        full: the size of the paper as it stands in the file, `targets` and `vocab_size` filled in; None if
            there is none.
        published: role, or roles joined by " + ", -> parameters, as stated in public, of the full size.
    """

    name: str
    title: str
    paper: str
    claims: tuple[str, ...]
    small: dict[str, Any] | None
    full: dict[str, Any] | None
    published: dict[str, int] = field(default_factory=dict)

    def words(self) -> dict[str, str]:
        """Role -> word of the full size, of the roles that it has."""
        full = self.full or {}
        return {role: check(role, full[role])[0] for role in _roles(full)}


def names() -> list[str]:
    """List the systems that are declared."""
    return sorted(file.stem for file in SYSTEMS.glob("*.yaml") if file.stem != BASE)


def find(name: str) -> Path:
    """Find a declaration by the system's name or by its path.

    Raises:
        LabError: there is none.
    """
    if name in names():
        return SYSTEMS / f"{name}.yaml"
    if Path(name).is_file():
        return Path(name)
    raise LabError(f"no system '{name}'{nearest(name, names())}")


def read_system(path: Path) -> System:
    """Read and check a declaration.

    Raises:
        LabError: naming every mistake at once.
    """
    tree = _tree(path)
    mistakes = _unknown(tree, _KEYS, "")
    title, paper = _paper(tree.get("paper"), mistakes)
    claims = tree.get("claims")
    if not isinstance(claims, list) or not claims:
        mistakes.append(f"claims: expected a list out of {', '.join(CLAIMS)}, not {claims!r}")
        claims = []
    mistakes += [
        f"claims: no '{claim}'{nearest(str(claim), CLAIMS)}" for claim in claims if claim not in CLAIMS
    ]
    small = _section(tree, "small", mistakes)
    full = _section(tree, "full", mistakes)
    published = _full(full, mistakes) if full is not None else {}
    if mistakes:
        raise LabError(f"{path}: " + "; ".join(mistakes))
    return System(path.stem, title, paper, tuple(claims), small, full, published)


def status(name: str) -> str:
    """What was measured of a system here: the column `status` of its row in `docs/systems.md`."""
    try:
        lines = RESULTS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    rows = [
        [cell.strip(" `") for cell in line.strip().strip("|").split("|")] for line in lines if "|" in line
    ]
    column = next((row.index("status") for row in rows if "status" in row), None)
    found = [row[column] for row in rows if row[0] == name and column is not None and column < len(row)]
    return found[0] if found else "not trained here"


def parameters(text: object) -> int:
    """Read a number of parameters such as 6.74B, or a sum of such as `303.2M - 12.6M`.

    Raises:
        ValueError: it is none.
    """
    plain = re.sub(r"\s", "", str(text))
    terms = re.findall(r"([+-]?)(\d+(?:\.\d+)?)([KMB]?)", plain)
    if not terms or "".join(map("".join, terms)) != plain:
        raise ValueError(f"expected a number of parameters such as 6.74B or 303.2M - 12.6M, not {text!r}")
    return round(sum(float(sign + number) * _UNITS[unit] for sign, number, unit in terms))


def _tree(path: Path) -> dict[str, Any]:
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise LabError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise LabError(f"{path}: expected a mapping of {', '.join(_KEYS)}")
    return tree


def _unknown(tree: Mapping[str, Any], known: tuple[str, ...], where: str) -> list[str]:
    return [f"unknown key '{where}{key}'{nearest(str(key), known)}" for key in tree if key not in known]


def _section(tree: Mapping[str, Any], key: str, mistakes: list[str]) -> dict[str, Any] | None:
    section = tree.get(key)
    if section is not None and not isinstance(section, dict):
        mistakes.append(f"{key}: expected a mapping, not {section!r}")
        return None
    return section


def _paper(text: object, mistakes: list[str]) -> tuple[str, str]:
    match = re.fullmatch(r"(.+), arXiv:(\d{4}\.\d{4,5})", str(text))
    if match is None:
        mistakes.append(f"paper: expected 'Title, arXiv:0000.00000', not {text!r}")
        return "", ""
    return match[1], match[2]


def _full(full: dict[str, Any], mistakes: list[str]) -> dict[str, int]:
    """Check the full size and fill in what may be left out; give its published numbers of parameters."""
    mistakes += _unknown(full, _FULL, "full.")
    full.setdefault("targets", "encoder")
    full.setdefault("vocab_size", 1)
    targets = full["targets"]
    made_ahead = isinstance(targets, dict) and sorted(targets) == ["dim", "num_tokens"]
    if targets not in ("encoder", "connector") and not (made_ahead and all(map(_is_count, targets.values()))):
        mistakes.append(
            f"full.targets: expected encoder, connector or a mapping of num_tokens and dim, not {targets!r}"
        )
    mistakes += [
        f"full.{key}: expected a positive number, not {full.get(key)!r}"
        for key in ("image_size", "vocab_size")
        if not _is_count(full.get(key))
    ]
    for role in ROLES:
        if role not in full:
            mistakes.append(f"missing key 'full.{role}'{' (null for none)' if role in OPTIONAL else ''}")
        elif full[role] is not None or role not in OPTIONAL:
            try:
                check(role, full[role], f"full.{role}")
            except LabError as error:
                mistakes.append(str(error))
    for name, stage in (_section(full, "stages", mistakes) or {}).items():
        mistakes += _stage(name, stage, full)
    if not full.get("stages"):
        mistakes.append("missing key 'full.stages'")
    published = {}
    for key, text in (_section(full, "published", mistakes) or {}).items():
        try:
            published[str(key)] = parameters(text)
        except ValueError as error:
            mistakes.append(f"full.published.{key}: {error}")
        mistakes += [
            f"full.published: no role '{role}' here{nearest(role, _roles(full))}"
            for role in str(key).split(" + ")
            if full.get(role) is None
        ]
    return published


def _roles(full: Mapping[str, Any]) -> list[str]:
    return [role for role in ROLES if full.get(role) is not None]


def _stage(name: str, stage: object, full: Mapping[str, Any]) -> list[str]:
    """Mistakes in one stage of the full size."""
    where = f"full.stages.{name}"
    if name not in (*ALONE, *JOINT):
        return [f"full.stages: no stage '{name}'{nearest(str(name), (*ALONE, *JOINT))}"]
    if not isinstance(stage, dict):
        return [f"{where}: expected a mapping, not {stage!r}"]
    mistakes = _unknown(stage, _STAGE, f"{where}.")
    needed = _STAGE if name in JOINT else _STAGE[:-1]
    mistakes += [f"missing key '{where}.{key}'" for key in needed if key not in stage]
    for key in ("trainable", "data"):
        if not isinstance(stage.get(key, []), list):
            mistakes.append(f"{where}.{key}: expected a list, not {stage[key]!r}")
            return mistakes
    mistakes += [
        f"{where}.trainable: no part '{part}'{nearest(str(part), _roles(full))}"
        for part in stage.get("trainable", [])
        if str(part).partition(".")[0] not in _roles(full)
    ]
    mistakes += [
        f"{where}.{key}: expected a positive number, not {stage[key]!r}"
        for key in ("batch_size", "sequence")
        if key in stage and not _is_count(stage[key]) and not (key == "batch_size" and stage[key] is None)
    ]
    rates = stage.get("learning_rate") or {}
    for part, rate in (rates if isinstance(rates, dict) else {"": rates}).items():
        if not isinstance(rate, (int, float)) or isinstance(rate, bool) or rate <= 0:
            hint = " (write 1.0e-3, not 1e-3)" if isinstance(rate, str) else ""
            key = f"learning_rate.{part}".rstrip(".")
            mistakes.append(f"{where}.{key}: expected a positive number, not {rate!r}{hint}")
    return mistakes


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
