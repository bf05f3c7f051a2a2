"""What a stage does before its first step: it looks at its samples, and stops if something is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lab.errors import LabError

if TYPE_CHECKING:
    from lab.graph.context import Context
    from lab.models.arm import Arm
    from lab.samples.batch import Collate
    from lab.samples.mixture import Mixture
    from lab.samples.preflight import Findings, Piece

SHOWN = 3  # samples that are rendered


def preflight(context: Context, arm: Arm, mixture: Mixture, collate: Collate) -> dict[str, Any]:
    """Looks at a stage's samples; keeps three of them, by what is learned of them, with its MLflow run.

    Returns:
        `preflight/FAULT`: samples that have it, of those looked at; nothing where all is well.

    Raises:
        LabError: samples have faults, and `trainer.preflight` is "error".
    """
    where = context.params.trainer
    if where.preflight == "off":
        return {}
    findings, samples = _look(context, arm, mixture, collate, where.preflight_samples)
    if context.tracked is not None and context.tracked.recorded:
        from lab.reports.preflight import page

        with TemporaryDirectory() as scratch:
            file = Path(scratch) / "samples.html"
            file.write_text(page(context.node.label, findings, samples), encoding="utf-8")
            context.tracked.artifact(file, "preflight")
    if message := findings.message():
        said = f"{context.node.label}: of {findings.scanned} samples {message}"
        if where.preflight == "error":
            raise LabError(
                f"{said}; mend the data or the mix, or go on with trainer.preflight=warn (of an ablation: "
                "resources.default.preflight)"
            )
        print(f"preflight: {said}", flush=True)
    return {f"preflight/{kind}": count for kind, count in findings.counts().items()}


def shown(
    mixture: Mixture, collate: Collate, positions: Sequence[int], findings: Findings
) -> list[tuple[str, list[Piece]]]:
    """Samples that were looked at, id and pieces of each: one of each fault, one of each source, any other.

    Those that cannot be laid out cannot be shown either.
    """
    from lab.samples.preflight import pieces_of

    faulty = {fault.kind: fault.position for fault in reversed(findings.faults)}
    sources = {mixture.source_of(position): position for position in reversed(positions)}
    refused = {fault.position for fault in findings.faults if fault.kind == "refused"}
    wanted = dict.fromkeys([*sorted(faulty.values()), *sorted(sources.values()), *positions])
    samples = [mixture[position] for position in [one for one in wanted if one not in refused][:SHOWN]]
    return [(sample.id, pieces_of(collate.lay(sample), collate)) for sample in samples]


def examine(
    folder: Path, stage: str, instance: Sequence[str], whole: bool
) -> tuple[str, Findings, list[tuple[str, list[Piece]]]]:
    """Looks at the samples of a stage without running it.

    Args:
        folder: of the pipeline or the ablation; what the stage takes has to be there.
        stage, instance: which, as `lab stage` takes them.
        whole: look at all samples.

    Returns:
        The stage's label, what was found, and three samples.

    Raises:
        LabError: the stage trains on no mix, or lacks its inputs.
    """
    from lab.graph.context import prepare_stage
    from lab.graph.features.stage import features_of
    from lab.graph.stages import UNIFIED
    from lab.graph.work import arm_of

    context = prepare_stage(folder, stage, *instance)
    if context.stage not in UNIFIED:
        raise LabError(f"preflight: {stage} draws from no mix; it is for {', '.join(UNIFIED)}")
    features = features_of(context)
    arm = arm_of(context, features)
    collate = arm.collate(tuple(context.sources("train")), features=features)
    mixture = context.mixture(context.stage, collate.length)
    count = 0 if whole else context.params.trainer.preflight_samples
    return context.node.label, *_look(context, arm, mixture, collate, count)


def _look(
    context: Context, arm: Arm, mixture: Mixture, collate: Collate, count: int
) -> tuple[Findings, list[tuple[str, list[Piece]]]]:
    from lab.samples.preflight import positions_of, scan

    positions = positions_of(mixture, count, context.params.seed)
    findings = scan(mixture, collate, positions, arm.longest)
    return findings, shown(mixture, collate, positions, findings)
