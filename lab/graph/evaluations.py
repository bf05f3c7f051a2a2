"""`lab eval`: protocols of one arm, each measured once for given weights, data and code.

A result is kept in `.lab/evaluations/KEY.json`; the key is a hash of all that its figures follow from: the
bytes of the weights, the tokenizer and the data, how many samples, and the code. Names and paths are not
among them: a copy of an arm is not evaluated again, and an arm that was trained again under its old name is.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.errors import LabError, nearest
from lab.graph.arm import find_arm
from lab.graph.hashing import hashed
from lab.graph.node import REPOSITORY, content_of, identify, identity_of, record_of, write_metrics
from lab.registry import path

if TYPE_CHECKING:
    from lab.evaluation.figures import Figure
    from lab.evaluation.protocols import Protocol
    from lab.evaluation.subject import Asking, Subject
    from lab.models.contrastive import ContrastiveModel
    from lab.samples.tokenizer import Tokenizer
    from lab.scenes.world import World

RESULTS = Path(".lab") / "evaluations"
_CODE = ("components/layers", "lab/evaluation", "lab/models", "lab/samples", "lab/scenes")


def evaluate_run(
    run: str,
    protocols: Sequence[str],
    shots: Sequence[int],
    asking: Asking,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measures what is not measured yet.

    Args:
        run: a trained arm (see `find_arm`).
        protocols: their names; none for all that the arm admits.
        shots: numbers of shots, for protocols that take any.
        asking: everything else; its `shots` and `choice` are replaced.
        say: gets a line on what is done, reused or left out.

    Returns:
        Results in the order of the protocols, each with `protocol`, `shots`, `choice` ("" where there is
        none), `key`, `figures` (name -> value, low, high, samples; null where undefined) and `content`.

    Raises:
        LabError: an unknown protocol, or one asked for by name that the arm does not admit.
    """
    from lab.evaluation.few_shot import CHOICES
    from lab.evaluation.protocols import PROTOCOLS
    from lab.evaluation.subject import NotAdmittedError

    for name in protocols:
        if name not in PROTOCOLS:
            raise LabError(f"no protocol '{name}'{nearest(name, PROTOCOLS)}")
    if min([asking.samples, *(number + 1 for number in shots)]) < 1:
        raise LabError("--samples must be at least 1, and --shots at least 0")
    material = Material(find_arm(run))
    results = []
    for name in protocols or PROTOCOLS:
        protocol = PROTOCOLS[name]
        for number in sorted(set(shots)) if protocol.in_context else [0]:
            for choice in CHOICES if protocol.matched and number else CHOICES[:1]:
                one = replace(asking, shots=number, choice=choice)
                try:
                    results.append(_result(material, name, protocol, one, say))
                except NotAdmittedError as error:
                    if protocols:
                        raise
                    say(f"{name}: left out: {error}")
    return results


@dataclass(frozen=True)
class Material:
    """What an arm's evaluation reads, by its place on disk.

    Attributes:
        arm: folder of the arm's components, `.../output/instruct/NAME`.
    """

    arm: Path

    @cached_property
    def data(self) -> Path:
        """The data: that of the arm's own pipeline or, for an arm without one, of the current folder.

        Raises:
            LabError: there is none.
        """
        return self._beside("data", "scenes-test.npz")

    @cached_property
    def world(self) -> World:
        """As the data records it."""
        from lab.scenes.world import World

        parameters = record_of(self.data).get("parameters", {})
        found = {name.removeprefix("world."): value for name, value in parameters.items()}
        found |= parameters.get("world", {})
        names = World.__dataclass_fields__
        if "image_size" not in found:
            raise LabError(f"{self.data}: does not say of which world it is; run the stage 'data' again")
        return World(**{name: found[name] for name in names if name in found})

    def part(self, name: str) -> Path | None:
        """The file or folder of what an evaluation reads beside the arm; None where there is none.

        Args:
            name: "judge", "image_decoder", "contrastive", or "alexnet", which is LPIPS' own.
        """
        from lab.graph.trained import image_decoder_of

        if name == "alexnet":
            from lab.evaluation.perceptual import backbone

            return backbone() if backbone().exists() else None

        decoder = [one for one in self.lineage if one.startswith("image_decoder")]
        try:
            if name == "image_decoder":
                output = self.arm.parents[1]
                return output / decoder[0] if decoder else image_decoder_of(output)
            file = {"judge": "judge.safetensors", "contrastive": "contrastive.safetensors"}[name]
            return self._beside({"judge": "judge", "contrastive": "encoder"}[name], file)
        except LabError:
            return None

    def upstream(self, reads: Sequence[str]) -> dict[str, str]:
        """What is read -> hash of its bytes."""
        found = {file: hashed(self.data / file).md5 for file in _data_files()} | self.weights
        for name in reads:
            if (place_of := self.part(name)) is None:
                continue
            files = sorted(place_of.glob("*.*")) if place_of.is_dir() else [place_of]
            found |= {f"{name}/{file.name}": hashed(file).md5 for file in files if file.name != "node.json"}
        return found

    @cached_property
    def weights(self) -> dict[str, str]:
        """What the arm is made of -> hash of its bytes; not how it was made, which node.json says."""
        places = [place for place in sorted(self.arm.iterdir()) if place.name != "node.json"]
        return {f"arm/{place.name}": hashed(place).md5 for place in places}

    @cached_property
    def code(self) -> list[str]:
        """Files and folders that shape the figures: the evaluation's, and those of the arm's components."""
        folders = [place for place in self.arm.iterdir() if (place / "config.json").exists()]
        if (decoder := self.part("image_decoder")) is not None:
            folders.append(decoder)
        files = []
        for folder in folders:
            config = json.loads((folder / "config.json").read_text())
            file = path(config["role"], config["spec"]["name"])
            files.append(str(file.relative_to(REPOSITORY) if file.is_relative_to(REPOSITORY) else file))
        return [*_CODE, *files]

    @cached_property
    def subject(self) -> Subject:
        """Everything loaded."""
        from lab.evaluation.judging import load_judge
        from lab.evaluation.subject import Subject
        from lab.models.arm import load_arm
        from lab.models.store import load_component
        from lab.scenes.tasks import SceneTasks
        from lab.scenes.world import read_split

        decoder, judge = self.part("image_decoder"), self.part("judge")
        return Subject(
            arm=load_arm(self.arm),
            held_out=SceneTasks(read_split(self.data, self.world, "test")),
            training=SceneTasks(read_split(self.data, self.world, "train")),
            image_decoder=None if decoder is None else load_component(decoder),
            judge=None if judge is None else load_judge(judge.parent, self.world),
            contrastive=self._contrastive(),
        )

    def _contrastive(self) -> tuple[ContrastiveModel, Tokenizer] | None:
        """The encoder stage's contrastive model, in eval mode, and the tokenizer of its text tower."""
        from lab.models.contrastive import load_contrastive
        from lab.samples.tokenizer import Tokenizer
        from lab.scenes.language import Language

        if (place := self.part("contrastive")) is None:
            return None
        tokenizer = Tokenizer.of_words(Language(self.world).vocabulary())
        return load_contrastive(place.parent), tokenizer

    @cached_property
    def lineage(self) -> dict[str, str]:
        """Output ("align/linear") -> identity, of all nodes that the arm or its evaluation were made from."""
        output, found = self.arm.parents[1], dict[str, str]()
        waiting = [self.arm, output / "evaluate" / self.arm.name]
        while waiting:
            try:
                upstream = record_of(waiting.pop()).get("upstream", {})
            except LabError:  # not evaluated yet, or imported
                continue
            waiting += [output / name for name in upstream if name not in found]
            found |= upstream
        return found

    def _beside(self, stage: str, file: str) -> Path:
        """What a stage wrote for this arm: its file, or its folder if that is the data.

        Where several nodes of the stage are there, as in an ablation, it is the one that the arm descends
        from or, if that is not recorded, that was made of the same data.
        """
        own = [name for name in self.lineage if name.partition("/")[0] == stage]
        outputs = [self.arm.parents[1], Path.cwd() / "output"]
        for output in outputs:
            named = [output / name / file for name in own]
            for place in (*named, output / stage / file, *sorted(output.glob(f"{stage}/*/{file}"))):
                if place.exists() and (place in named or self._of_same_data(stage, place.parent)):
                    return place.parent if stage == "data" else place
        raise LabError(f"{outputs[0] / stage}: no {file} for this arm there, nor in {outputs[1] / stage}")

    def _of_same_data(self, stage: str, folder: Path) -> bool:
        if stage == "data":
            return True
        upstream = record_of(folder).get("upstream", {})
        data = [identity for name, identity in upstream.items() if name.partition("/")[0] == "data"]
        return not data or data == [identity_of(self.data)]


def _result(
    material: Material, name: str, protocol: Protocol, asking: Asking, say: Callable[[str], None]
) -> dict[str, Any]:
    """The stored result of a protocol, or a fresh one, which is then stored."""
    parameters: dict[str, Any] = {"samples": asking.samples, "seed": asking.seed}
    if protocol.in_context:
        parameters["shots"] = asking.shots
    choice = asking.choice if protocol.matched and asking.shots else ""
    if choice:
        parameters["choice"] = choice
    for setting in protocol.networks:
        chosen = Path(getattr(asking, setting))  # a word, or a folder, which counts by its content
        parameters[setting] = hashed(chosen).md5 if chosen.is_dir() else str(chosen)
    content = content_of("eval", name, parameters, material.code, material.upstream(protocol.reads))
    details = [f"{asking.shots} shot{'' if asking.shots == 1 else 's'}"] if protocol.in_context else []
    label = ", ".join([name, *details, *([choice] if choice else [])])
    head = {"protocol": name, "shots": asking.shots, "choice": choice}
    return remembered(head, content, label, say, lambda: protocol.measure(material.subject, asking))


def remembered(
    head: Mapping[str, Any],
    content: Mapping[str, Any],
    label: str,
    say: Callable[[str], None],
    measure: Callable[[], Mapping[str, Figure]],
) -> dict[str, Any]:
    """The stored result of a measurement, or a fresh one, which is then stored.

    Args:
        head: what the result begins with.
        content: all that its figures follow from.
        label: of the measurement, for what is said.
        say: gets a line on what is done or reused.
        measure: gives the figures.
    """
    key = identify(content)
    file = RESULTS / f"{key}.json"
    try:
        stored = dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        stored = {}
    if stored.get("key") == key:
        say(f"{label}: measured before ({file})")
        return stored
    start = time.perf_counter()
    figures = measure()
    seconds = time.perf_counter() - start
    found = {
        **head,
        "key": key,
        "figures": {title: _plain(figure) for title, figure in figures.items()},
        "seconds": round(seconds, 1),
        "content": content,
    }
    write_metrics(file, found)
    say(f"{label}: {seconds:.1f} s ({file})")
    return found


def _plain(figure: Figure) -> dict[str, float | None]:
    """A figure as JSON has it, which knows no nan."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in asdict(figure).items()
    }


def _data_files() -> Iterator[str]:
    return (f"{kind}-{split}.npz" for kind in ("digits", "scenes") for split in ("test", "train"))
