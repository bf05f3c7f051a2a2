"""Image metrics against independent implementations; what is not on the machine is refused, not guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import correlate1d
from torch.nn import functional as F
from torchmetrics.functional.image import peak_signal_noise_ratio
from torchvision.models import alexnet

from lab.errors import LabError
from lab.evaluation.clip_folder import ClipFolder
from lab.evaluation.clip_score import clip_score
from lab.evaluation.frechet import distance_of, feature_network, frechet_figure, frechet_of_cells
from lab.evaluation.generation import psnr
from lab.evaluation.perceptual import BACKBONE, Lpips, ssim
from lab.evaluation.subject import NotAdmittedError
from lab.scenes.judge import Judge, frechet_distance, judge_images
from lab.scenes.tasks import SceneTasks


@pytest.fixture
def real(held_out: SceneTasks) -> torch.Tensor:
    return torch.from_numpy(held_out.split.pixels(np.arange(30)))


@pytest.fixture
def given(real: torch.Tensor) -> torch.Tensor:
    noise = torch.rand(real.shape, generator=torch.Generator().manual_seed(0))
    return (0.8 * real + 0.2 * noise).clamp(0, 1)


@pytest.fixture
def judge(held_out: SceneTasks) -> Judge:
    torch.manual_seed(0)
    return Judge(held_out.split.world).eval()


def wang_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of one channel as Wang et al. (2004) define it, with SciPy, mirrored at its edges."""
    grid = np.arange(-5, 6)
    window = np.exp(-(grid**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(image: np.ndarray) -> np.ndarray:
        return correlate1d(correlate1d(image, window, axis=0, mode="mirror"), window, axis=1, mode="mirror")

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float(((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def test_psnr_and_ssim(given: torch.Tensor, real: torch.Tensor) -> None:
    theirs = [float(peak_signal_noise_ratio(a, b, data_range=1.0)) for a, b in zip(given, real, strict=True)]
    assert psnr(given, real).tolist() == pytest.approx(theirs, rel=1e-4)
    expected = [
        np.mean([wang_ssim(a[c].double().numpy(), b[c].double().numpy()) for c in range(3)])
        for a, b in zip(given, real, strict=True)
    ]
    found = ssim(given, real)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    assert ssim(real, real).tolist() == pytest.approx([1.0] * 30)
    assert ssim(given[3:4], real[3:4]).tolist() == pytest.approx(found[3:4].tolist(), abs=1e-6)
    flat = torch.zeros(2, 3, 32, 32)
    assert ssim(flat, flat).tolist() == [1, 1]


def test_frechet_distance_is_scipys(judge: Judge, given: torch.Tensor, real: torch.Tensor) -> None:
    network = feature_network("judge", judge)
    figure = frechet_figure(network, given, real)
    one, two = (
        judge((images * 255).round() / 255)[2].mean(dim=1).detach().double().numpy()
        for images in (given, real)
    )
    mean, first, second = one.mean(0) - two.mean(0), np.cov(one.T), np.cov(two.T)
    root = np.trace(np.real(sqrtm(first @ second)))
    expected = mean @ mean + np.trace(first) + np.trace(second) - 2 * root
    assert figure.value == pytest.approx(float(expected), rel=1e-3)
    assert figure.low < figure.value < figure.high
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    again = frechet_figure(network, given[order], real, batch_size=7)
    assert vars(again) == pytest.approx(vars(figure), rel=1e-4)
    same = frechet_figure(network, real, real)
    assert (same.value, same.low) == pytest.approx((0, 0), abs=1e-4)
    with pytest.raises(NotAdmittedError, match="at least two images"):
        frechet_figure(network, given[:1], real)


def test_a_distance_of_cells_has_an_interval_over_images(judge: Judge, tasks: SceneTasks) -> None:
    scenes = tasks.split.scenes.take(np.arange(60))
    half = [scenes.take(np.arange(30)), scenes.take(np.arange(30, 60))]
    pixels = [torch.from_numpy(tasks.split.pixels(np.arange(30 * k, 30 * k + 30))) for k in (0, 1)]
    one, two = (judge_images(judge, *pair) for pair in zip(pixels, half, strict=True))
    figure = frechet_of_cells(one, half[0], two, half[1])
    assert figure.value == frechet_distance(one.features, two.features)
    assert figure.low < figure.value < figure.high
    assert figure.samples == 30
    # every cell twice: as many independent images as before, so the interval must not shrink
    doubled = replace(one, features=np.repeat(one.features, 2, axis=0))
    twice = replace(half[0], digit=np.repeat(half[0].digit, 2, axis=1))
    again = frechet_of_cells(doubled, twice, two, half[1])
    assert again.high - again.low > 0.8 * (figure.high - figure.low)


def test_frechet_distance_of_many_features_and_few_images() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(20, 60)), generator.normal(0.3, 1.5, size=(25, 60))
    assert distance_of(first, second) == pytest.approx(frechet_distance(first, second), rel=1e-6)
    assert distance_of(first, first) == pytest.approx(0, abs=1e-9)


def test_networks_that_are_not_here_are_refused(
    judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(NotAdmittedError, match=r"torch-fidelity and its weights at .*inception-2015"):
        feature_network("inception", judge)
    with pytest.raises(NotAdmittedError, match=r"put torchvision's file at .*alexnet-owt"):
        Lpips()
    with pytest.raises(LabError, match="'inceptoin': expected judge, inception, or a folder"):
        feature_network("inceptoin", judge)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotAdmittedError, match="no CLIP model can be read"):
        feature_network(str(tmp_path), judge)


def test_lpips_is_that_of_the_package(
    given: torch.Tensor, real: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an AlexNet of random weights in torchvision's file, which the package reads in its own way."""
    import lpips

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / BACKBONE
    place.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), place)
    found = Lpips()(given, real)
    theirs = lpips.LPIPS(net="alex", verbose=False)(given * 2 - 1, real * 2 - 1).flatten()
    assert found.tolist() == pytest.approx(theirs.tolist(), rel=1e-4)
    assert (found > 0).all()
    assert Lpips()(real, real).tolist() == [0] * 30
    assert Lpips()(given[5:6], real[5:6]).tolist() == pytest.approx(found[5:6].tolist(), rel=1e-3)
    with pytest.raises(NotAdmittedError, match="needs images of 32 px, not 16"):
        Lpips()(given[..., :16, :16], real[..., :16, :16])


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    """A tiny CLIP with random weights and a word tokenizer."""
    from tokenizers import Tokenizer as Backend
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["<unk>", "<end>", "draw", "a", "red", "blue", "3"])}
    backend = Backend(WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<end>").save_pretrained(
        tmp_path
    )
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**shape, "vocab_size": len(words), "max_position_embeddings": 16, "eos_token_id": 1}
    torch.manual_seed(0)
    vision = {**shape, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path)
    return tmp_path


def test_clip_score_is_transformers_own_cosine(clip_folder: Path, real: torch.Tensor) -> None:
    """At the model's own resolution nothing is resized, and its logits are scaled cosines."""
    from transformers import AutoTokenizer, CLIPModel

    clip = ClipFolder(clip_folder)
    texts = ["draw a red 3", "a blue 3 draw a red 3", "3"] * 10
    found = clip_score(clip, real, texts)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    for index in (0, 1, 2, 17):
        out = model(
            input_ids=tokenizer(texts[index], return_tensors="pt")["input_ids"],
            pixel_values=(real[index : index + 1] - mean) / deviation,
        )
        cosine = float(out.logits_per_image) / float(model.logit_scale.exp())
        assert found[index] == pytest.approx(100 * max(0.0, cosine), abs=1e-3)
    order = np.random.default_rng(0).permutation(30)
    again = clip_score(clip, real[order], [texts[i] for i in order], batch_size=7)
    assert again.tolist() == pytest.approx(found[order].tolist(), abs=1e-4)
    assert float(F.cosine_similarity(clip.images(real[:1]), clip.images(real[:1]))) == pytest.approx(1)


def test_frechet_distance_in_clip_features(
    clip_folder: Path, judge: Judge, given: torch.Tensor, real: torch.Tensor
) -> None:
    figure = frechet_figure(feature_network(str(clip_folder), judge), given, real)
    assert 0 <= figure.low <= figure.value <= figure.high
