"""Protocols of generation: what an arm draws, edits and reconstructs."""

from __future__ import annotations

import numpy as np
import torch

from lab.evaluation.clip_folder import ClipFolder
from lab.evaluation.clip_score import clip_score, region_score
from lab.evaluation.diversity import cell_features, restyled, spread
from lab.evaluation.fidelity import KINDS, edit_success, fidelity, geneval_tasks, read_images
from lab.evaluation.figures import Figure, macro_figure, mean_figure, share_figure, sums_figure
from lab.evaluation.frechet import feature_network, frechet_figure
from lab.evaluation.generation import draw_all, psnr, reconstruct
from lab.evaluation.perceptual import Lpips, ssim
from lab.evaluation.subject import Asking, NotAdmittedError, Subject, folder_of
from lab.models.autoencoder import ImageAutoencoder
from lab.samples.regions import RegionCollate
from lab.samples.segments import Sample
from lab.scenes.judge import judge_images
from lab.scenes.world import EMPTY, render, stacked

DRAWS = 4  # images of each prompt, for diversity
PROMPTS = 50  # prompts at most, for diversity


def prompt_fidelity(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """Cells, kinds and GenEval's tasks, as the judge reads the drawn images; whole scenes by size."""
    rows, drawn = _drawings(subject, asking)
    scenes = subject.held_out.split.scenes.take(rows)
    verdict = judge_images(subject.seeing, drawn, scenes)
    figures = {f"cells/{name}": share_figure(getattr(verdict, name)) for name in ("digit", "colour", "place")}
    scores = fidelity(read_images(subject.seeing, drawn), scenes)
    figures |= {kind: share_figure(scores[kind]) for kind in KINDS}
    number = (scenes.digit != EMPTY).sum(axis=1)
    for size in np.unique(number):
        figures[f"scene/{size}_digits"] = share_figure(scores["scene"][number == size])
    tasks = geneval_tasks(scores, scenes)
    figures["geneval"] = macro_figure(tasks)
    return figures | {f"geneval/{task}": share_figure(values) for task, values in tasks.items()}


def editing(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """Edits that change what they should, that keep the rest, and that do both."""
    tasks, rows = subject.held_out, range(min(asking.samples, len(subject.held_out)))
    samples = [tasks.sample("edit", row, asking.seed) for row in rows]
    images = _draw(subject, samples, asking.seed)
    before = tasks.split.scenes.take(np.array(rows))
    after = stacked([tasks.edited(row, asking.seed) for row in rows])
    success = edit_success(read_images(subject.seeing, images), before, after)
    return {name: share_figure(scores) for name, scores in success.items()}


def distance(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """Fréchet distance of drawn to real images of other scenes, as many."""
    network = feature_network(asking.features, subject.seeing)
    rows, drawn = _drawings(subject, asking)
    other = np.arange(len(subject.held_out) - len(rows), len(subject.held_out))
    real = torch.from_numpy(subject.held_out.split.pixels(other))
    return {"distance": frechet_figure(network, drawn, real, subject.batch_size)}


def agreement(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """CLIP score of drawn images, and of real ones of the same scenes: what can be reached."""
    tasks = subject.held_out
    if asking.clip != "own":
        clip = ClipFolder(folder_of(asking.clip, "own"))
        rows, drawn = _drawings(subject, asking)
        texts = [_prompt(tasks.sample("text_to_image", int(row), asking.seed)) for row in rows]
        real = torch.from_numpy(tasks.split.pixels(rows))
        return {
            "score": mean_figure(clip_score(clip, drawn, texts)),
            "score_of_real": mean_figure(clip_score(clip, real, texts)),
        }
    if subject.contrastive is None:
        raise NotAdmittedError(
            "the encoder stage of this arm left no contrastive model (contrastive.safetensors), so there is "
            "no own CLIP score; --clip FOLDER takes a CLIP of transformers"
        )
    model, tokenizer = subject.contrastive
    collate = RegionCollate(tasks.split, tasks.language, tokenizer)
    rows, drawn = _drawings(subject, asking)
    figures: dict[str, Figure] = {}
    real = torch.from_numpy(tasks.split.pixels(rows))
    for name, pixels in (("", drawn), ("_of_real", real)):
        score, first = region_score(model, collate, pixels, rows.tolist())
        figures |= {f"score{name}": mean_figure(score), f"agreement{name}": share_figure(first)}
    return figures


def diversity(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """How much images of one prompt differ, relative to real scenes of one description.

    The distance is that of the judge's features, all cells side by side, between any two of four images of a
    prompt. 0: always the same image; 1: as different as the world's own.
    """
    tasks, rows = subject.held_out, np.arange(min(asking.samples, PROMPTS, len(subject.held_out)))
    samples = [tasks.sample("text_to_image", int(row), asking.seed) for row in rows]
    drawn = [_draw(subject, samples, asking.seed + number * 1_000_003) for number in range(DRAWS)]
    split = tasks.split
    real = [
        torch.from_numpy(render(split.world, split.digits, restyled(split, rows, asking.seed + number)))
        for number in range(DRAWS)
    ]
    spreads = np.stack([spread(cell_features(subject.seeing, images)) for images in (drawn, real)], axis=1)
    return {"relative": sums_figure(spreads, lambda sums: sums[:, 0] / sums[:, 1])}


def reconstruction(subject: Subject, asking: Asking) -> dict[str, Figure]:
    """Real images through the drawn image's tokens and back: PSNR, SSIM, and LPIPS where AlexNet is there."""
    model, tasks = subject.arm.model, subject.held_out
    rows = np.arange(min(asking.samples, len(tasks)))
    pixels = torch.from_numpy(tasks.split.pixels(rows))
    connector = model.connector if model.target_space == "connector" else None
    autoencoder = ImageAutoencoder(model.encoder, connector, subject.drawing)
    rebuilt = reconstruct(autoencoder, pixels, asking.seed)
    figures = {
        "psnr": mean_figure(psnr(rebuilt, pixels)),
        "ssim": mean_figure(ssim(rebuilt, pixels)),
    }
    try:
        figures["lpips"] = mean_figure(Lpips()(rebuilt, pixels))
    except NotAdmittedError as error:
        print(f"reconstruction/lpips: left out: {error}")
    return figures


def _drawings(subject: Subject, asking: Asking) -> tuple[np.ndarray, torch.Tensor]:
    """Scene rows, and the images that the arm draws from their prompts; drawn once for all protocols."""
    rows = np.arange(min(asking.samples, len(subject.held_out)))
    key = (len(rows), asking.seed)
    if key not in subject.drawn:
        samples = [subject.held_out.sample("text_to_image", int(row), asking.seed) for row in rows]
        subject.drawn[key] = _draw(subject, samples, asking.seed)
    return rows, subject.drawn[key]


def _draw(subject: Subject, samples: list[Sample], seed: int) -> torch.Tensor:
    """Images (n, 3, H, W) in [0, 1]."""
    arm = subject.arm
    collate = arm.collate(tuple(subject.held_out.tasks), left=True)
    return draw_all(arm.model, subject.drawing, samples, collate, subject.batch_size, seed).generated


def _prompt(sample: Sample) -> str:
    """What the user says."""
    return sample.segments[1].text or ""
