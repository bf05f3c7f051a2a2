"""Which parts go together, and which recipes suit them, told from words and settings alone.

Nothing is built or imported here, so that a combination is refused before anything has run. What a
constructor refuses by itself is left to it; here is what two parts, or a part and a recipe, cannot do
together or have no use for. Two tables say it, a condition and a message a row: `PARTS` and `RECIPES`. Where
settings do not tell a number, as with checkpoints and with parts of one's own (LAB_COMPONENTS), rules that
need it say nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isqrt
from typing import TYPE_CHECKING, Any

from lab.errors import LabError
from lab.registry import COMPONENTS, ROLES, describe, path

if TYPE_CHECKING:
    from lab.config import Params

UNIFIED = ("align", "pretrain", "instruct")  # stages that train the unified model
AFRESH = {"encoder": "encoder", "text_decoder": "text_decoder", "represent": "connector"}  # begin a part anew
PER_TOKEN = ("linear", "mlp")  # connectors that map every token by itself
CODES = {"vq": "num_codes", "causal_transformer": "codes"}  # the setting that says how many codes there are
HALVES = ("vq", "vae")  # encoder and image decoder are trained as one
GRIDDED = ("pool", "pixel_shuffle", "abstractor")  # connectors that need a square grid
SQUARE = ("transformer", "diffusion", *HALVES)  # image decoders that need one
PROMPTED = ("llama", "mistral", "mixtral", "qwen2", "gemma")  # families that `prefix` knows
ADDED = ("lora", "adapters", "image_marks")  # of a text decoder, what trains while its own weights rest


@dataclass(frozen=True)
class Part:
    """A component as it is chosen; false where a role has none.

    Attributes:
        role, word: which one.
        settings: all of them, defaults filled in.
        own: whether it is from a folder of LAB_COMPONENTS, so that its word tells nothing.
    """

    role: str
    word: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    own: bool = False

    @classmethod
    def of(cls, role: str, spec: str | Mapping[str, Any] | None) -> Part:
        """A part from its specification, a word or a mapping of `name` and settings.

        Raises:
            LabError: there is no such word.
        """
        if spec is None:
            return cls(role)
        settings = {"name": spec} if isinstance(spec, str) else dict(spec)
        word = settings.pop("name")
        defaults = {one.name: one.default for one in describe(role, word).parameters}
        own = not path(role, word).is_relative_to(COMPONENTS)
        return cls(role, word, defaults | settings, own)

    @cached_property
    def members(self) -> list[Part]:
        """The encoders of an ensemble; none where it does not name them rightly, which it says itself."""
        try:
            return [Part.of("encoder", spec) for spec in self["parts"]]
        except (LabError, KeyError, TypeError, ValueError):
            return []

    def __bool__(self) -> bool:
        return bool(self.word)

    def __str__(self) -> str:
        return f"{self.role} {self.word}"

    def __getitem__(self, setting: str) -> Any:
        """A setting, None where the part has none of this name."""
        return self.settings.get(setting)


@dataclass(frozen=True)
class Combination:
    """A system in words and settings.

    Attributes:
        encoder, connector, text_decoder, fusion, visual_head, image_decoder: its parts.
        targets: what a drawn image is made of, the "encoder"'s tokens or the "connector"'s.
        image_size: side of the image in pixels.
        recipe: stages that train, in order, and the parts that each trains; empty to leave training out.
    """

    encoder: Part
    connector: Part
    text_decoder: Part
    fusion: Part
    visual_head: Part
    image_decoder: Part
    targets: str
    image_size: int
    recipe: Mapping[str, Sequence[str]] = field(default_factory=dict)

    # -- numbers, None where settings do not tell them -------------------------------------------------------

    @cached_property
    def tokens_encoded(self) -> int | None:
        """N."""
        return _encoder_tokens(self.encoder, self.image_size)

    @cached_property
    def tokens_connected(self) -> int | None:
        """M."""
        part, given = self.connector, self.tokens_encoded
        match part.word:
            case "linear" | "mlp":
                return given
            case "q_former" | "causal_transformer":
                return int(part["num_queries"])
            case "perceiver":
                return int(part["num_latents"])
            case "pool" | "abstractor":
                return int(part["grid"] ** 2)
            case "pixel_shuffle":
                return None if given is None else given // max(1, part["factor"]) ** 2
        return None

    @cached_property
    def source(self) -> Part:
        """The part whose tokens a drawn image is made of."""
        return self.connector if self.targets == "connector" else self.encoder

    @cached_property
    def tokens_drawn(self) -> int | None:
        """Visual tokens of an image that is drawn."""
        return self.tokens_connected if self.targets == "connector" else self.tokens_encoded

    @cached_property
    def codes(self) -> int | None:
        """Codes that a drawn image is made of, 0 where its tokens are continuous."""
        return _codes(self.source)

    @cached_property
    def width(self) -> int | None:
        """D."""
        return self.text_decoder["dim"]

    @cached_property
    def heads(self) -> int | None:
        """Attention heads of the language model."""
        return (self.text_decoder["config"] or self.text_decoder.settings).get(
            "num_attention_heads", self.text_decoder["num_heads"]
        )

    @cached_property
    def family(self) -> str | None:
        """Of the language model, as transformers calls it."""
        if self.text_decoder.word == "llama":
            return "llama"
        return (self.text_decoder["config"] or {}).get("model_type")

    @cached_property
    def foreign_width(self) -> int | None:
        """Width of the tokens that are read, where the fusion sets another than the language model's."""
        return self.fusion["dim_visual"] if _differ(self.fusion["dim_visual"], self.width) else None

    @cached_property
    def unequal(self) -> str:
        """Settings in which the two halves of an autoencoder differ, though both say what a token is."""
        one, other = self.encoder.settings, self.image_decoder.settings
        shared = ("path", "subfolder", "patch", "scale")
        return ", ".join(name for name in shared if name in one and one[name] != other.get(name))

    # -- what the recipe does --------------------------------------------------------------------------------

    def trained(self, role: str) -> list[str]:
        """Stages that train a part or some of it."""
        return [name for name, parts in self.recipe.items() if _roles(parts) & {role}]

    @cached_property
    def first(self) -> str:
        """The first stage of the unified model."""
        return next((name for name in self.recipe if name in UNIFIED), "")

    @cached_property
    def decoder_last(self) -> bool:
        """Whether the image decoder is trained after the unified model."""
        return bool(self.first) and "image_decoder" in self.recipe and not self.before(self.first)

    def before(self, stage: str, other: str = "image_decoder") -> bool:
        """Whether another stage comes before this one."""
        order = list(self.recipe)
        return other in order and order.index(other) < order.index(stage)

    @cached_property
    def moved(self) -> str:
        """The first stage after the image decoder's that changes the tokens which this one reads."""
        makers = {"encoder", self.source.role}
        found = [
            f"{name} trains {role}"
            for name, parts in self.recipe.items()
            for role in sorted(makers & _roles(parts))
            if self.before(name)
        ]
        return found[0] if self.image_decoder and found else ""

    @cached_property
    def tokenizers(self) -> str:
        """What the image decoder's stage trains beside it."""
        return ", ".join(part for part in self.recipe.get("image_decoder", ()) if part != "image_decoder")

    @cached_property
    def discarded(self) -> str:
        """The first stage that begins a part anew which an earlier one has trained."""
        found = [
            f"{name} begins the {role} anew, which {earlier} has trained"
            for name, role in AFRESH.items()
            for earlier in self.trained(role)
            if name in self.recipe and self.before(name, earlier)
        ]
        return found[0] if found else ""

    @cached_property
    def idle(self) -> str:
        """The first stage of the unified model that has nothing to train."""
        layerless = {"fusion"} if self.fusion.word == "sequence" else set()
        found = [
            name for name in UNIFIED if name in self.recipe and not _roles(self.recipe[name]) - layerless
        ]
        return found[0] if found else ""

    @cached_property
    def of_text_decoder(self) -> set[str]:
        """What trains of the language model with the others: "" for all of it, lora, a pattern of names."""
        entries = [part.partition(".") for name in UNIFIED for part in self.recipe.get(name, ())]
        return {pattern for role, _, pattern in entries if role == "text_decoder"}

    @cached_property
    def whole(self) -> str:
        """The first stage of the unified model that trains all of the language model."""
        return next((name for name in UNIFIED if "text_decoder" in self.recipe.get(name, ())), "")


_Rules = tuple[tuple[Callable[[Combination], object], str], ...]

PARTS: _Rules = (
    # -- reading and drawing ---------------------------------------------------------------------------------
    (
        lambda c: c.visual_head and not c.image_decoder,
        "{c.visual_head}: nothing turns its visual tokens into pixels; name an image_decoder, or set "
        "visual_head to null",
    ),
    (
        lambda c: c.image_decoder and not c.visual_head,
        "{c.image_decoder}: nothing makes visual tokens for it; name a visual_head, or set image_decoder to "
        "null",
    ),
    (
        lambda c: c.targets == "connector" and not c.visual_head,
        "targets: connector, but nothing is drawn; choose targets: encoder, or name a visual_head",
    ),
    # -- what a drawn image is made of -----------------------------------------------------------------------
    (
        lambda c: c.targets == "connector" and c.connector["instruction"],
        "targets: connector, but with instruction {c.connector} reads a question, and an image to draw has "
        "none; choose instruction: false, or targets: encoder",
    ),
    (
        lambda c: c.targets == "connector" and c.foreign_width,
        "targets: connector, but {c.fusion} has dim_visual {c.foreign_width}, and drawn tokens are as wide "
        "as the language model, {c.width}; leave dim_visual out, or choose targets: encoder",
    ),
    (
        lambda c: c.visual_head.word == "codebook" and c.codes == 0,
        "{c.visual_head}: cross-entropy needs codes, and the tokens of {c.source} are continuous; choose "
        "encoder vq, or targets: connector with connector causal_transformer and its codes, or visual_head "
        "regression",
    ),
    (
        lambda c: c.visual_head.word == "codebook" and c.codes and _differ(c.codes, c.visual_head["codes"]),
        "{c.visual_head} has {c.visual_head[codes]} codes, {c.source} has {c.codes}; make them equal",
    ),
    (
        lambda c: c.encoder.word == "vq" and (not c.visual_head or c.targets == "connector"),
        "{c.encoder}: codes lose detail for nothing unless they are what is drawn; choose encoder vit, or "
        "visual_head codebook with targets: encoder",
    ),
    (
        lambda c: _codes(c.connector) and c.targets == "encoder",
        "{c.connector}: codes lose detail for nothing unless they are what is drawn; choose codes: 0, or "
        "targets: connector",
    ),
    # -- back to pixels --------------------------------------------------------------------------------------
    (
        lambda c: c.image_decoder.word in HALVES and c.visual_head and c.source.word != c.image_decoder.word,
        "{c.image_decoder} decodes the tokens of encoder {c.image_decoder.word}, not those of {c.source}; "
        "choose that encoder with targets: encoder, or image_decoder transformer",
    ),
    (
        lambda c: c.image_decoder.word in HALVES and c.source.word == c.image_decoder.word and c.unequal,
        "{c.image_decoder} and {c.encoder} are halves of one autoencoder, but differ in {c.unequal}; make "
        "these equal",
    ),
    (
        lambda c: (
            c.image_decoder.word == "vq"
            and c.visual_head
            and c.visual_head.word != "codebook"
            and not c.visual_head.own
        ),
        "{c.image_decoder} expects codes, which {c.visual_head} only comes near; choose visual_head "
        "codebook, or image_decoder transformer, which learns to read inexact tokens",
    ),
    (
        lambda c: c.image_decoder.word in SQUARE and not _square(c.tokens_drawn),
        "{c.image_decoder} draws from a square grid of tokens, but an image has {c.tokens_drawn}; choose a "
        "square number, or image_decoder detokenizer",
    ),
    (
        lambda c: c.image_decoder.word == "transformer" and not _doubles(c.tokens_drawn, c.image_size),
        "{c.image_decoder} doubles its grid until it is the image, but {c.tokens_drawn} tokens do not come "
        "to {c.image_size} px; choose another number of tokens, or image_decoder detokenizer",
    ),
    (
        lambda c: (
            c.image_decoder.word == "diffusion"
            and _square(c.tokens_drawn)
            and c.image_size % isqrt(c.tokens_drawn or 1)
        ),
        "{c.image_decoder} lays its tokens out over the image, but {c.tokens_drawn} do not tile "
        "{c.image_size} px; choose another number of tokens, or image_decoder detokenizer",
    ),
    # -- visual heads ----------------------------------------------------------------------------------------
    (
        lambda c: (
            c.visual_head["feedback"] == "shared"
            and c.targets == "encoder"
            and not c.connector.own
            and c.connector.word not in PER_TOKEN
        ),
        "{c.visual_head}: feedback is shared with {c.connector}, which does not map tokens one by one; "
        "choose connector linear or mlp, targets: connector, or feedback: own",
    ),
    (
        lambda c: c.visual_head["feedback"] == "shared" and c.targets == "encoder" and c.foreign_width,
        "{c.visual_head}: feedback is shared, but for {c.fusion} the connector's tokens have width "
        "{c.foreign_width}, and the sequence takes {c.width}; leave dim_visual out, or choose feedback: own",
    ),
    (
        lambda c: (
            c.visual_head.word == "queries"
            and c.visual_head["mapper"] != "transformer"
            and _differ(c.visual_head["num_queries"], c.tokens_drawn)
        ),
        "{c.visual_head}: mapper {c.visual_head[mapper]} makes a token of each of "
        "{c.visual_head[num_queries]} queries, but an image has {c.tokens_drawn}; set num_queries to this, "
        "or mapper to transformer",
    ),
    (
        lambda c: c.visual_head["loss"] == "cosine" and c.visual_head["normalise"] is False,
        "{c.visual_head}: a cosine leaves the length of tokens open, which the image decoder reads; set "
        "normalise to true, or loss to mse",
    ),
    # -- connectors ------------------------------------------------------------------------------------------
    (
        lambda c: c.connector["instruction"] and c.foreign_width,
        "{c.connector}: with instruction it reads words, of width {c.width}, and makes tokens as wide, but "
        "{c.fusion} has dim_visual {c.foreign_width}; leave dim_visual out, or choose instruction: false",
    ),
    (
        lambda c: c.connector.word in GRIDDED and not _square(c.tokens_encoded),
        "{c.connector} needs a square grid, but {c.encoder} gives {c.tokens_encoded} tokens; choose "
        "connector perceiver, which takes any number",
    ),
    (
        lambda c: (
            c.connector.word in GRIDDED
            and _square(c.tokens_encoded)
            and not _shrinks(c.connector, isqrt(c.tokens_encoded or 0))
        ),
        "{c.connector} cannot shrink the {c.tokens_encoded} tokens of {c.encoder} that way; choose a grid "
        "or a factor that divides its side",
    ),
    # -- fusions ---------------------------------------------------------------------------------------------
    (
        lambda c: c.fusion.word == "cross_attention" and _exceeds(c.fusion["every"], c.text_decoder["depth"]),
        "{c.fusion}: every {c.fusion[every]} is beyond the {c.text_decoder[depth]} blocks of "
        "{c.text_decoder}; choose 1 to {c.text_decoder[depth]}",
    ),
    (
        lambda c: (
            c.fusion.word == "prefix" and _exceeds(c.fusion["prompted_layers"], c.text_decoder["depth"])
        ),
        "{c.fusion}: {c.fusion[prompted_layers]} prompted_layers are more than the {c.text_decoder[depth]} "
        "blocks of {c.text_decoder}; choose 1 to {c.text_decoder[depth]}",
    ),
    (
        lambda c: c.fusion.word == "prefix" and c.family is not None and c.family not in PROMPTED,
        "{c.fusion} prompts attention as Llama has it, not that of {c.family}; choose text_decoder llama, "
        "or fusion cross_attention",
    ),
    (
        lambda c: (
            c.fusion.word == "prefix" and c.family in PROMPTED and _differ(c.fusion["num_heads"], c.heads)
        ),
        "{c.fusion}: num_heads {c.fusion[num_heads]}, but {c.text_decoder} has {c.heads}; make them equal",
    ),
)

RECIPES: _Rules = (
    # -- the language model ----------------------------------------------------------------------------------
    (
        lambda c: (
            _random(c.text_decoder) and "text_decoder" not in c.recipe and not c.of_text_decoder - set(ADDED)
        ),
        "{c.text_decoder}: its weights are random and no stage trains them, so there is no language to "
        "build on; add stage text_decoder, or text_decoder to a stage's trainable",
    ),
    (
        lambda c: c.text_decoder["quantise"] not in (None, "none") and c.whole,
        "stages.{c.whole}.trainable: text_decoder, but weights of four bits do not train; set lora_rank and "
        "train text_decoder.lora, or set quantise to none",
    ),
    (
        lambda c: c.text_decoder["lora_rank"] and not _touches(c.of_text_decoder, "lora", "adapters"),
        "{c.text_decoder}: lora_rank {c.text_decoder[lora_rank]}, but no stage trains these adapters, and "
        "at the start they add nothing; add text_decoder.lora to a stage's trainable, or set lora_rank to 0",
    ),
    (
        lambda c: c.text_decoder["adapter_dim"] and not _touches(c.of_text_decoder, "adapter"),
        "{c.text_decoder}: adapter_dim {c.text_decoder[adapter_dim]}, but no stage trains these adapters, "
        "and at the start they add nothing; add text_decoder.adapters to a stage's trainable, or set "
        "adapter_dim to 0",
    ),
    (
        lambda c: (
            "adapters" in c.of_text_decoder
            and not c.text_decoder["adapter_dim"]
            and not c.text_decoder["lora_rank"]
            and not c.text_decoder.own
        ),
        "trainable: text_decoder.adapters, but {c.text_decoder} has none; set adapter_dim or lora_rank",
    ),
    (
        lambda c: (
            c.text_decoder.word == "hf"
            and c.text_decoder["config"] is None
            and "text_decoder" not in c.recipe
        ),
        "recipe: {c.text_decoder} is pretrained, and its tokenizer comes with stage text_decoder; add that "
        "stage",
    ),
    # -- parts that begin as nothing -------------------------------------------------------------------------
    (
        lambda c: not c.connector.own and not c.trained("connector"),
        "{c.connector}: no stage trains it, so the language model reads noise; add connector to a stage's "
        "trainable",
    ),
    (
        lambda c: c.fusion.word in ("cross_attention", "prefix") and not c.trained("fusion"),
        "{c.fusion}: its gates start at 0 and no stage trains them, so images are never read; add fusion to "
        "a stage's trainable",
    ),
    (
        lambda c: c.visual_head and not c.visual_head.own and not c.trained("visual_head"),
        "{c.visual_head}: no stage trains it, so it draws noise; add visual_head to a stage's trainable",
    ),
    (
        lambda c: c.idle,
        "stages.{c.idle}.trainable: nothing there has weights to train; name a part such as connector",
    ),
    # -- stages and what they need ---------------------------------------------------------------------------
    (
        lambda c: not c.first,
        "recipe: no stage puts the parts together; add align, pretrain or instruct",
    ),
    (
        lambda c: c.discarded,
        "recipe: {c.discarded}; put it before",
    ),
    (
        lambda c: "represent" in c.recipe and not c.connector.own and c.connector.word != "q_former",
        "recipe: represent compares images with captions in the blocks of a q_former, and {c.connector} has "
        "no branch for text; choose connector q_former, or leave represent out",
    ),
    (
        lambda c: (
            "represent" in c.recipe
            and not any(c.before("represent", earlier) for earlier in c.trained("encoder"))
        ),
        "recipe: represent takes a trained encoder, and none is trained before; put stage encoder before it",
    ),
    (
        lambda c: c.image_decoder and "image_decoder" not in c.recipe,
        "recipe: {c.image_decoder} is trained in stage image_decoder, which is missing; add it",
    ),
    (
        lambda c: "image_decoder" in c.recipe and not c.image_decoder,
        "recipe: stage image_decoder, but the system has none; leave the stage out, or name visual_head and "
        "image_decoder",
    ),
    (
        lambda c: set(c.recipe.get("image_decoder", ())) - {"encoder", "connector", "image_decoder"},
        "stages.image_decoder.trainable: {c.tokenizers}; it can hold image_decoder, encoder and connector",
    ),
    (
        lambda c: "image_decoder" in c.recipe and "image_decoder" not in c.recipe["image_decoder"],
        "stages.image_decoder.trainable: image_decoder is missing; add it",
    ),
    (
        lambda c: c.targets == "encoder" and "connector" in c.recipe.get("image_decoder", ()),
        "stages.image_decoder.trainable: connector, but images are made of the encoder's tokens; leave it "
        "out, or choose targets: connector",
    ),
    (
        lambda c: (
            c.targets == "connector"
            and "image_decoder" in c.recipe
            and c.width is None
            and not c.text_decoder.own
            and not c.before("image_decoder", "text_decoder")
        ),
        "recipe: with targets: connector stage image_decoder needs the width of {c.text_decoder}; put stage "
        "text_decoder before it",
    ),
    # -- what the image decoder reads ------------------------------------------------------------------------
    (
        lambda c: c.moved,
        "recipe: {c.moved} after stage image_decoder, which has then learnt to read other tokens; put "
        "image_decoder after it, or take that part out of its trainable",
    ),
    (
        lambda c: c.decoder_last and c.tokenizers,
        "stages.image_decoder.trainable: {c.tokenizers}, but {c.first} has learnt to draw its tokens "
        "before; put stage image_decoder first, or leave it out there",
    ),
    (
        lambda c: c.decoder_last and c.visual_head["loss"] == "decoder",
        "{c.visual_head}: its loss is the image decoder's, which is trained only after {c.first}; put stage "
        "image_decoder before",
    ),
    (
        lambda c: c.visual_head and c.codes and c.source.role not in c.recipe.get("image_decoder", ()),
        "{c.source}: codes are learnt in stage image_decoder alone; add {c.source.role} to its trainable",
    ),
)


def mistakes(combination: Combination) -> list[str]:
    """Say why a combination is impossible or pointless, each time with what would do.

    Recipes are looked at where the combination has one.
    """
    rules = (*PARTS, *(RECIPES if combination.recipe else ()))
    return [message.format(c=combination) for broken, message in rules if broken(combination)]


def mistakes_of(params: Params, recipe: bool = True) -> list[str]:
    """Say why arms of a pipeline are impossible or pointless.

    Args:
        params: words and settings of which are known to exist.
        recipe: whether its recipe is to be looked at as well.
    """
    found = []
    for connector in params.connectors:
        words = {**dict.fromkeys(ROLES), **params.words(), "connector": connector}
        parts = {
            role: Part.of(role, None if word is None else params.spec(role, word))
            for role, word in words.items()
        }
        stages = _training(params) if recipe else {}
        arm = Combination(**parts, targets=params.targets, image_size=params.world.image_size, recipe=stages)
        found += mistakes(arm)
    return list(dict.fromkeys(found))


def _training(params: Params) -> dict[str, Sequence[str]]:
    """Stages that train, in order, and what each trains."""
    trainable = {
        name: getattr(getattr(params.stages, name, None), "trainable", None) for name in params.recipe
    }
    found = {name: [AFRESH[name]] if name in AFRESH else parts for name, parts in trainable.items()}
    return {name: parts for name, parts in found.items() if parts is not None}


def _encoder_tokens(part: Part, image_size: int) -> int | None:
    match part.word:
        case "vit" | "patches":
            return (image_size // max(1, part["patch_size"])) ** 2
        case "vq" | "vae" if part["path"] is None:
            return (image_size // max(1, part["downsample"] * (part["patch"] or 1))) ** 2
        case "clip" | "siglip" | "dinov2" if part["pool"]:
            return int(part["pool"] ** 2 + bool(part["keep_class"]))
        case "ensemble":
            counts = [_encoder_tokens(one, image_size) for one in part.members]
            known = [count for count in counts if count is not None]
            if not known or len(known) < len(counts):
                return None
            return sum(known) if part["join"] == "sequence" else known[0]
    return None


def _codes(part: Part) -> int | None:
    """Codes of a part, 0 where its tokens are continuous, None where settings do not tell."""
    if part.own or (part.word in CODES and part["path"]):
        return None
    return int(part[CODES[part.word]]) if part.word in CODES else 0


def _random(part: Part) -> bool:
    """Whether a text decoder is new."""
    return part.word == "llama" or (part.word == "hf" and part["config"] is not None)


def _roles(parts: Sequence[str]) -> set[str]:
    return {part.partition(".")[0] for part in parts}


def _touches(patterns: set[str], *names: str) -> bool:
    """Whether something trained of the language model, "" for all of it, includes adapters of these names."""
    return "" in patterns or any(name in pattern for pattern in patterns for name in names)


def _differ(one: int | None, other: int | None) -> bool:
    return one is not None and other is not None and one != other


def _exceeds(one: int | None, most: int | None) -> bool:
    return one is not None and most is not None and one > most


def _square(count: int | None) -> bool:
    """Whether tokens make a square grid, as far as that is known."""
    return count is None or (count > 0 and isqrt(count) ** 2 == count)


def _doubles(count: int | None, image_size: int) -> bool:
    """Whether a square grid becomes the image by doublings, as far as that is known."""
    if count is None or not _square(count):
        return True
    times, rest = divmod(image_size, isqrt(count))
    return not rest and times > 1 and not times & (times - 1)


def _shrinks(connector: Part, side: int) -> bool:
    """Whether a connector makes the grid that it is to make out of one of this side (0 where not known)."""
    if not side:
        return True
    if connector.word == "pixel_shuffle":
        return connector["factor"] > 0 and side % connector["factor"] == 0
    grid = connector["grid"]
    return 1 <= grid <= side and (connector["mode"] in (None, "average") or side % grid == 0)
