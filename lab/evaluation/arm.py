"""The whole evaluation of one arm: understanding and generation, figures with intervals and chance levels."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from components.contracts import ImageDecoder
from lab.config import EvaluateParams
from lab.evaluation.captioning import corpus_bleu
from lab.evaluation.cider import cider_d
from lab.evaluation.fidelity import edit_success, fidelity, read_images
from lab.evaluation.figures import Figure
from lab.evaluation.frechet import frechet_of_cells
from lab.evaluation.generation import draw_all, psnr, reconstruct
from lab.evaluation.grounding import box_requests, grounding_scores
from lab.evaluation.rouge import rouge_l
from lab.evaluation.statistics import bootstrap_interval, wilson_interval
from lab.evaluation.understanding import (
    Answer,
    answer_all,
    majority_share,
    questions,
    questions_by_example,
    text_perplexity,
    things_right,
)
from lab.models.arm import Arm
from lab.models.autoencoder import ImageAutoencoder
from lab.scenes.judge import Judge, judge_images
from lab.scenes.language import BY_EXAMPLE, QUESTIONS
from lab.scenes.preview import tile
from lab.scenes.tasks import SceneTasks
from lab.scenes.world import stacked

SHOWN = 12  # samples kept for grids
SHOTS = (0, 1, 2, 4)  # examples before a question that only these tell
CLAIMED_SHOTS = 2  # of the figure that a claim is judged by, which is named without them

_NO_SHARES = ("understanding/caption_cider_d", "reconstruction/psnr")  # scores beyond 1


def evaluate_arm(
    arm: Arm,
    image_decoder: ImageDecoder | None,
    judge: Judge,
    tasks: SceneTasks,
    settings: EvaluateParams,
    seed: int,
    out: Path,
    in_context: bool = False,
) -> dict[str, Any]:
    """Scores an arm on held-out scenes.

    Args:
        arm: in eval mode, like `image_decoder` and `judge`.
        image_decoder: None for a system that only reads; it is not asked to draw.
        tasks: of the test split.
        settings: how many samples.
        seed: of phrasings and of the image decoder's noise.
        out: receives `answers.json`, `samples.npz`, `samples.json`, `samples.png` and `scores.npz`: the score
            of every sample by metric, in an order that all arms have.
        in_context: whether it learned from questions that only examples tell, and is asked some.

    Returns:
        metrics (name -> value), intervals (name -> [low, high], 95% over samples), chance (name ->
        value), samples (number scored).
    """
    start = time.perf_counter()
    scores: dict[str, np.ndarray] = {}
    details: dict[str, np.ndarray] = {}  # more to say about the same answers and images
    figures: dict[str, Figure] = {}  # of a corpus: no mean over samples
    chance: dict[str, float] = {}
    shown = _understand(arm, tasks, settings, seed, scores, details, figures, chance, out)
    if in_context:
        _learn_in_context(arm, tasks, settings, seed, scores, chance)
    if image_decoder is not None and arm.model.visual_head is not None:
        _generate(arm, image_decoder, judge, tasks, settings, seed, scores, details, figures, shown, out)
    texts = [tasks.sample("text", row, seed) for row in range(min(settings.texts, len(tasks)))]
    figures["understanding/text_perplexity"] = text_perplexity(arm, texts, settings.batch_size)
    samples = int(sum(map(len, scores.values())))
    scores |= details
    metrics = {name: float(values.mean()) for name, values in scores.items()}
    kinds = [kind for kind in (f"understanding/vqa/{kind}" for kind in QUESTIONS) if kind in scores]
    metrics["understanding/vqa"] = float(np.mean([metrics[kind] for kind in kinds]))
    chance["understanding/vqa"] = float(np.mean([chance[kind] for kind in kinds]))
    intervals = {
        name: list(bootstrap_interval(values, seed) if name in _NO_SHARES else _share_interval(values, seed))
        for name, values in scores.items()
    }
    number = min(len(scores[kind]) for kind in kinds)
    balanced = np.mean([scores[kind][:number] for kind in kinds], axis=0)
    low, high = _share_interval(balanced, seed)
    if 0 < metrics["understanding/vqa"] < 1:  # else it is an end
        half = float(np.subtract(high, low)) / 2
        low, high = metrics["understanding/vqa"] - half, metrics["understanding/vqa"] + half
    intervals["understanding/vqa"] = [low, high]
    for name, figure in figures.items():
        metrics[name], intervals[name] = figure.value, [figure.low, figure.high]
    stored: dict[str, Any] = dict(scores)
    np.savez(out / "scores.npz", **stored)  # its times are fixed: the same scores give the same bytes
    seconds = {"cost/evaluate_seconds": round(time.perf_counter() - start, 1)}
    return {
        "metrics": metrics | seconds,
        "intervals": intervals,
        "chance": chance,
        "samples": samples,
    }


def _share_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Bootstrap interval of a mean of shares (n,); Wilson's where all are 0 or all 1: no resample differs."""
    if values[0] in (0.0, 1.0) and (values == values[0]).all():
        return wilson_interval(int(values.sum()), len(values))
    return bootstrap_interval(values, seed)


def _understand(
    arm: Arm,
    tasks: SceneTasks,
    settings: EvaluateParams,
    seed: int,
    scores: dict[str, np.ndarray],
    details: dict[str, np.ndarray],
    figures: dict[str, Figure],
    chance: dict[str, float],
    out: Path,
) -> list[dict[str, str]]:
    collate = arm.collate((*QUESTIONS, *tasks.tasks), left=True)
    asked = questions(tasks, settings.questions, seed)
    answers = answer_all(arm.model, asked, arm.tokenizer, collate, settings.batch_size)
    for kind in QUESTIONS:
        of_kind = sorted((one for one in answers if one.kind == kind), key=lambda one: one.sample_id)
        if not of_kind:  # scenes of one digit admit no question about two
            continue
        scores[f"understanding/vqa/{kind}"] = np.array([one.right for one in of_kind], float)
        chance[f"understanding/vqa/{kind}"] = majority_share(of_kind)
    captions = [tasks.sample("caption", row, seed) for row in range(min(settings.captions, len(tasks)))]
    captioned = answer_all(arm.model, captions, arm.tokenizer, collate, settings.batch_size)
    captioned.sort(key=lambda one: one.sample_id)
    scores["understanding/caption"] = np.array([one.right for one in captioned], float)
    scores["understanding/caption_things"] = np.array([things_right(one) for one in captioned])
    said, references = [one.given for one in captioned], [[one.expected] for one in captioned]
    details["understanding/caption_cider_d"] = cider_d(said, references)
    details["understanding/caption_rouge_l"] = rouge_l(said, references)
    figures["understanding/caption_bleu_4"] = corpus_bleu(said, references)
    located: list[Answer] = []
    if tasks.split.world.locations:
        requests, boxes = box_requests(tasks, settings.questions, seed)
        located = answer_all(arm.model, requests, arm.tokenizer, collate, settings.batch_size)
        located.sort(key=lambda one: one.sample_id)
        grounding = grounding_scores(located, boxes, tasks.split.world)
        scores["understanding/grounding"] = grounding.right
        scores["understanding/grounding_iou"] = grounding.iou
        scores["understanding/grounding_well_formed"] = grounding.well_formed
        chance["understanding/grounding"] = grounding.chance
        chance["understanding/grounding_iou"] = grounding.chance_iou
    listed = [
        {
            "kind": one.kind,
            "id": one.sample_id,
            "question": one.question,
            "expected": one.expected,
            "given": one.given,
        }
        for one in (*answers, *captioned, *located)
    ]
    (out / "answers.json").write_text(json.dumps(listed, indent=1) + "\n")
    by_row = {one.sample_id.split("/")[1]: one for one in captioned}
    return [
        {
            "question": by_row[str(row)].question,
            "answer": by_row[str(row)].expected,
            "predicted": by_row[str(row)].given,
        }
        for row in range(min(SHOWN, len(captioned)))
    ]


def _learn_in_context(
    arm: Arm,
    tasks: SceneTasks,
    settings: EvaluateParams,
    seed: int,
    scores: dict[str, np.ndarray],
    chance: dict[str, float],
) -> None:
    collate = arm.collate(tuple(tasks.tasks), left=True)
    for shots in SHOTS:
        asked = questions_by_example(tasks, settings.questions, seed, shots)
        answers = answer_all(arm.model, asked, arm.tokenizer, collate, settings.batch_size)
        answers.sort(key=lambda one: one.sample_id)
        name = "understanding/by_example" + ("" if shots == CLAIMED_SHOTS else f"/shots_{shots}")
        scores[name] = np.array([one.right for one in answers], float)
        chance[name] = 1 / len(BY_EXAMPLE)  # who sees everything and learns nothing from examples


def _generate(
    arm: Arm,
    image_decoder: ImageDecoder,
    judge: Judge,
    tasks: SceneTasks,
    settings: EvaluateParams,
    seed: int,
    scores: dict[str, np.ndarray],
    details: dict[str, np.ndarray],
    figures: dict[str, Figure],
    shown: list[dict[str, str]],
    out: Path,
) -> None:
    collate = arm.collate(tuple(tasks.tasks), left=True)
    rows = np.arange(min(settings.prompts, len(tasks)))
    prompts = [tasks.sample("text_to_image", int(row), seed) for row in rows]
    drawn = draw_all(arm.model, image_decoder, prompts, collate, settings.batch_size, seed)
    scenes = tasks.split.scenes.take(rows)
    verdict = judge_images(judge, drawn.generated, scenes)
    for name in ("digit", "colour", "place", "scene"):
        scores[f"generation/{name}"] = getattr(verdict, name)
    kinds = fidelity(read_images(judge, drawn.generated), scenes)
    for name in ("objects", "count", "attribution"):
        details[f"generation/{name}"] = kinds[name]
    # Real images of other scenes are the reference: as many as were drawn, so that distances are comparable.
    other = np.arange(len(tasks) - len(rows), len(tasks))
    others = tasks.split.scenes.take(other)
    real = judge_images(judge, torch.from_numpy(tasks.split.pixels(other)), others)
    figures["generation/frechet"] = frechet_of_cells(verdict, scenes, real, others)
    edit_rows = range(min(settings.edits, len(tasks)))
    edits = [tasks.sample("edit", row, seed) for row in edit_rows]
    edited = draw_all(arm.model, image_decoder, edits, collate, settings.batch_size, seed)
    after = stacked([tasks.edited(row, seed) for row in edit_rows])
    scores["generation/edit"] = judge_images(judge, edited.generated, after).scene
    before = tasks.split.scenes.take(np.array(edit_rows))
    success = edit_success(read_images(judge, edited.generated), before, after)
    for name in ("target", "rest"):
        details[f"generation/edit_{name}"] = success[name]
    connector = arm.model.connector if arm.model.target_space == "connector" else None
    autoencoder = ImageAutoencoder(arm.model.encoder, connector, image_decoder)
    rebuilt = reconstruct(autoencoder, drawn.real, seed)
    scores["reconstruction/psnr"] = psnr(rebuilt, drawn.real)
    scores["reconstruction/digit"] = judge_images(judge, rebuilt, scenes).digit
    _write_samples(out, drawn.real, rebuilt, drawn.generated, prompts, shown)


def _write_samples(
    out: Path,
    real: torch.Tensor,
    rebuilt: torch.Tensor,
    generated: torch.Tensor,
    prompts: list[Any],
    shown: list[dict[str, str]],
) -> None:
    rows = [images[:SHOWN].numpy() for images in (real, rebuilt, generated)]
    names = ("real", "reconstructed", "generated")
    stored: dict[str, Any] = {
        name: (row * 255).round().astype(np.uint8) for name, row in zip(names, rows, strict=True)
    }
    np.savez(out / "samples.npz", **stored)
    for sample, record in zip(prompts, shown, strict=False):
        record["prompt"] = sample.segments[1].text or ""
    (out / "samples.json").write_text(json.dumps(shown, indent=1) + "\n")
    sheet = tile(np.concatenate(rows), len(rows[0]))
    sheet.resize((sheet.width * 3, sheet.height * 3), 0).save(out / "samples.png")
