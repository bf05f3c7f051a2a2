"""What each stage does: reads its inputs, trains or measures, writes its output."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lab.config import Params, unadapted
from lab.errors import LabError
from lab.graph.context import Context, prepare
from lab.graph.stages import UNIFIED, instance_kinds, stages_of
from lab.models.caching import FEATURES

if TYPE_CHECKING:
    from lab.models.arm import Arm
    from lab.samples.features import Features
    from lab.scenes.world import Split


def _data(context: Context) -> dict[str, Any]:
    from lab.scenes.preview import write_preview
    from lab.scenes.world import write_world

    data = context.params.data
    counts: dict[Split, int] = {
        "train": data.train_scenes,
        "validation": data.validation_scenes,
        "test": data.test_scenes,
    }
    write_world(context.out, context.world, counts, context.params.seed)
    write_preview(context.out, context.world)
    return {}


def _judge(context: Context) -> dict[str, Any]:
    from safetensors.torch import save_file

    from lab.evaluation.judging import judge_accuracy
    from lab.scenes.judge import train_judge
    from lab.scenes.world import read_split

    settings = context.params.judge
    train = read_split(context.inputs["data"], context.world, "train")
    test = read_split(context.inputs["data"], context.world, "test")
    judge = train_judge(
        train, settings.steps, settings.batch_size, settings.learning_rate, context.params.seed
    )
    save_file(judge.state_dict(), context.out / "judge.safetensors")
    return judge_accuracy(judge, test)


def _encoder(context: Context) -> dict[str, Any]:
    from lab.evaluation.encoding import region_accuracy
    from lab.models.contrastive import ContrastiveModel, save_contrastive
    from lab.models.store import save_component
    from lab.registry import build
    from lab.samples.regions import RegionCollate, Rows
    from lab.samples.tokenizer import Tokenizer
    from lab.scenes.language import Language
    from lab.scenes.world import read_split
    from lab.training.modules import ContrastivePretraining
    from lab.training.stage_module import schedule_of

    settings = context.params.fitted("encoder")
    args = (context.world.image_size,)
    spec = context.params.spec("encoder", context.params.encoder)
    split = read_split(context.inputs["data"], context.world, "train")
    language = Language(context.world)
    tokenizer = Tokenizer.of_words(language.vocabulary())
    encoder = build("encoder", spec, *args)
    model = ContrastiveModel(encoder, len(tokenizer))
    module = ContrastivePretraining(model, settings.losses, **schedule_of(settings))
    collate = RegionCollate(split, language, tokenizer)
    rows = Rows(len(split.scenes), context.params.seed)
    costs = context.fit(module, rows, collate, settings)
    save_component(context.out, "encoder", spec, args, encoder)
    save_contrastive(context.out, model)
    held_out = RegionCollate(
        read_split(context.inputs["data"], context.world, "validation"), language, tokenizer
    )
    return {**region_accuracy(model.eval(), held_out), **costs}


def _text_decoder(context: Context) -> dict[str, Any]:
    from lab.evaluation.understanding import text_accuracy
    from lab.models.arm import TOKENIZER
    from lab.models.store import save_component
    from lab.registry import build
    from lab.samples.batch import Collate
    from lab.samples.mixture import Mixture
    from lab.samples.tokenizer import Tokenizer
    from lab.training.modules import TextPretraining
    from lab.training.stage_module import schedule_of

    settings, params = context.params.fitted("text_decoder"), context.params
    tasks = context.tasks("train")
    spec = params.spec("text_decoder", params.text_decoder)
    pretrained = params.setting("text_decoder", params.text_decoder, "path")
    tokenizer = Tokenizer.load(pretrained) if pretrained else context.new_tokenizer()
    spec = unadapted(spec)
    args = (len(tokenizer),)
    model = build("text_decoder", spec, *args)
    module = TextPretraining(model, **schedule_of(settings))
    collate = Collate(tokenizer, 0, 0, tuple(tasks.tasks))
    mix = Mixture(tasks.sources(), {"text": 1.0}, settings.steps * settings.batch_size, params.seed)
    costs = context.fit(module, mix, collate, settings)
    save_component(context.out, "text_decoder", spec, args, model)
    tokenizer.save(context.out / TOKENIZER)
    metrics = text_accuracy(
        model.eval(), context.tasks("validation"), tokenizer, params.stages.evaluate.texts
    )
    return {**metrics, **costs}


def _represent(context: Context) -> dict[str, Any]:
    import torch

    from lab.models.representation import RepresentationModel
    from lab.models.store import load_component, save_component
    from lab.registry import build
    from lab.samples.regions import RegionCollate, Rows
    from lab.samples.tokenizer import Tokenizer
    from lab.scenes.language import Language
    from lab.scenes.world import read_split
    from lab.training.modules import RepresentationTraining
    from lab.training.stage_module import schedule_of

    settings, params, trained = context.params.fitted("represent"), context.params, context.parts
    encoder = load_component(trained["encoder"])
    args = (encoder.dim, _decoder_width(params, trained), encoder.num_tokens)
    spec = params.spec("connector", context.connector)
    split = read_split(context.inputs["data"], context.world, "train")
    language = Language(context.world)
    tokenizer = Tokenizer.of_words(language.vocabulary())
    torch.manual_seed(params.seed)
    connector = build("connector", spec, *args)
    model = RepresentationModel(encoder.requires_grad_(False), connector, len(tokenizer))
    module = RepresentationTraining(model, **schedule_of(settings))
    collate = RegionCollate(split, language, tokenizer)
    costs = context.fit(module, Rows(len(split.scenes), params.seed), collate, settings)
    save_component(context.out / "connector", "connector", spec, args, connector)
    return costs


def _image_decoder(context: Context) -> dict[str, Any]:
    from lab.evaluation.judging import load_judge, reconstruction_metrics
    from lab.models.arm import new_part
    from lab.models.autoencoder import ImageAutoencoder
    from lab.models.store import save_component
    from lab.registry import build
    from lab.samples.regions import PixelCollate, Rows
    from lab.scenes.world import read_split
    from lab.training.modules import ImageDecoderTraining
    from lab.training.stage_module import schedule_of

    settings, params, trained = context.params.fitted("image_decoder"), context.params, context.parts
    built: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {}
    size = context.world.image_size
    encoder = new_part(params, "encoder", params.encoder, (size,), trained, built)
    connector, space = None, (encoder.dim, encoder.num_tokens)
    if params.targets == "connector":
        dim = _decoder_width(params, trained)
        args = (encoder.dim, dim, encoder.num_tokens)
        connector = new_part(params, "connector", context.connector, args, trained, built)
        space = dim, connector.num_tokens
    image_args = (*space, size)
    spec = params.spec("image_decoder", str(params.image_decoder))
    model = ImageAutoencoder(encoder, connector, build("image_decoder", spec, *image_args))
    module = ImageDecoderTraining(model, settings.noise, settings.trainable, **schedule_of(settings))
    split = read_split(context.inputs["data"], context.world, "train")
    costs = context.fit(module, Rows(len(split.scenes), params.seed), PixelCollate(split), settings)
    save_component(context.out, "image_decoder", spec, image_args, model.image_decoder)  # type: ignore[arg-type]
    for role, (part_spec, part_args) in built.items():
        if role in settings.trainable:
            save_component(context.out / role, role, part_spec, part_args, getattr(model, role))
    judge = load_judge(context.inputs["judge"], context.world)
    test = read_split(context.inputs["data"], context.world, "test")
    metrics = reconstruction_metrics(model.eval(), judge, test, params.stages.evaluate.prompts, params.seed)
    return {**metrics, **costs}


def _decoder_width(params: Params, trained: Mapping[str, Path]) -> int:
    """Width of the language model, where a stage needs that and nothing else of it."""
    from lab.models.store import load_component

    stated = params.setting("text_decoder", params.text_decoder, "dim")
    return int(stated or load_component(trained["text_decoder"]).dim)


def _unified(context: Context) -> dict[str, Any]:
    """Alignment, pretraining or instruction tuning, whichever the stage is."""
    import torch

    from lab.graph.features.images import SHOWN
    from lab.graph.features.stage import features_of
    from lab.samples.batch import images_of

    params, features = context.params, features_of(context)
    train = context.tasks("train")
    arm = arm_of(context, features)
    head = arm.model.visual_head
    if head is not None and not continues(context):
        with torch.no_grad():  # what the tokens look like that the visual head is to produce
            arm.model.eval()
            shown = [train.picture(row) for row in range(min(SHOWN, len(train)))]
            tokens = arm.model.image_tokens(images_of(shown, features))
            source = arm.model.encoder if params.targets == "encoder" else arm.model.connector
            try:
                head.prepare(tokens, getattr(source, "codebook", None))
            except ValueError as error:
                raise LabError(f"visual_head {params.visual_head}: {error}") from error
    if f"{context.stage}_features" in context.inputs:
        torch.manual_seed(params.seed)  # whether or not an encoder was built, which draws random numbers
    return _train_arm(context, arm, features)


def continues(context: Context) -> bool:
    """Whether the stage goes on with an arm that an earlier stage trained."""
    return any(stage in context.inputs for stage in UNIFIED)


def arm_of(context: Context, features: Features | None) -> Arm:
    """The arm that a stage of the unified model starts with."""
    from lab.models.arm import load_arm, new_arm

    decoder = context.image_decoder()
    if continues(context):
        return load_arm(context.parts["encoder"].parent, decoder, features)
    tokenizer = context.new_tokenizer()
    return new_arm(context.params, context.connector, context.parts, tokenizer, decoder, features)


def _train_arm(context: Context, arm: Arm, features: Features | None) -> dict[str, Any]:
    from lab.evaluation.losses import validation_losses
    from lab.graph.preflight import preflight
    from lab.training.modules import UnifiedTraining

    drawn = [name for name, data in context.opened.items() if data.draws]
    if drawn and arm.model.visual_head is None:
        raise LabError(f"data set '{drawn[0]}': it has images to draw, but there is no visual_head")
    sources, settings = context.sources("train"), context.params.fitted(context.stage)
    module = UnifiedTraining.of(arm, settings)
    collate = arm.collate(tuple(sources), features=features)
    dataset = context.mixture(context.stage, collate.length)
    faults = preflight(context, arm, dataset, collate)
    if context.stage == "instruct":
        from lab.graph.watching import looks

        context.callbacks += looks(context, arm)
    costs = context.fit(module, dataset, collate, settings)
    arm.model.eval()
    arm.save(context.out)
    shares = dataset.shares()
    losses = validation_losses(arm.model, context.sources("validation"), collate, shares, context.params.seed)
    consumed = {f"mix/{task}": share for task, share in shares.items()}
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    counted = {name: number for data in context.opened.values() for name, number in data.metrics().items()}
    return losses | consumed | counted | faults | costs | {"cost/trained_parameters": trained}


def _evaluate(context: Context) -> dict[str, Any]:
    from lab.evaluation.arm import evaluate_arm
    from lab.evaluation.judging import load_judge
    from lab.models.arm import load_arm

    params, trained = context.params, context.parts
    arm = load_arm(trained["encoder"].parent)
    judge = load_judge(context.inputs["judge"], context.world)
    judged, tuned = (json.loads(numbers.read_text()) for numbers in context.numbers_of.values())
    in_context = tuned.get("mix/by_example", 0.0) > 0.0  # an arm is asked for what it was taught
    result = evaluate_arm(
        arm,
        context.image_decoder(),
        judge,
        context.tasks("test"),
        params.stages.evaluate,
        params.seed,
        context.out,
        in_context,
    )
    result["metrics"] |= judged | {"cost/train_seconds": tuned["cost/train_seconds"]}
    if params.system:
        result["metrics"] |= _untrained(context, judge, in_context)
    arm_tags = {"connector": context.connector, "mix": context.mix, **params.words(), "seed": params.seed}
    if context.tracked is not None and (context.out / "samples.png").exists():
        context.tracked.artifact(context.out / "samples.png", "samples")
    return {"arm": arm_tags, **result}


def _untrained(context: Context, judge: Any, in_context: bool) -> dict[str, float]:
    """What a published system reaches before its first joint stage, on fewer samples."""
    from lab.evaluation.arm import evaluate_arm
    from lab.models.arm import new_arm

    params = context.params
    first = next(name for name in params.recipe if name in UNIFIED)
    words = [context.connector, context.mix][: len(instance_kinds(stages_of(params)[first]))]
    before = prepare(context.folder, params, first, *words)
    tasks = context.tasks("test")
    arm = new_arm(params, context.connector, before.parts, before.new_tokenizer())
    arm.model.eval()
    few = replace(params.stages.evaluate, questions=20, captions=20, prompts=40, edits=10, texts=20)
    decoder = context.image_decoder()
    with TemporaryDirectory() as scratch:
        out = Path(scratch)
        found = evaluate_arm(arm, decoder, judge, tasks, few, params.seed, out, in_context)["metrics"]
    kinds = ("understanding/", "generation/")
    return {f"untrained/{name}": value for name, value in found.items() if name.startswith(kinds)}


def _compare(context: Context) -> dict[str, Any]:
    if (context.folder / "ablation.yaml").exists():
        from lab.reports.ablation import write_ablation

        return write_ablation(context.folder, context.out, context.tracked)
    from lab.reports.comparison import write_comparison

    return write_comparison(context.folder, context.out, context.tracked)


def _features(context: Context) -> dict[str, Any]:
    from lab.graph.features.stage import cache_features

    return cache_features(context)


WORK: dict[str, Callable[[Context], dict[str, Any]]] = {
    "data": _data,
    "judge": _judge,
    "encoder": _encoder,
    "text_decoder": _text_decoder,
    "image_decoder": _image_decoder,
    "represent": _represent,
    **dict.fromkeys(FEATURES, _features),
    **dict.fromkeys(UNIFIED, _unified),
    "evaluate": _evaluate,
    "compare": _compare,
}
