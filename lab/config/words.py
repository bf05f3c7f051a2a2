"""The words that `params.yaml` may use: tasks, roles, stages, and the choices of single keys."""

from __future__ import annotations

from lab.models.caching import FEATURES

# of lab/scenes/tasks.py, whose import takes seconds
TASKS = (
    "caption",
    "inventory",
    "vqa",
    "text_to_image",
    "edit",
    "interleaved",
    "text",
    "documents",
    "listing",
    "draw",
    "by_example",
)
LOCATION_TASKS = ("ground", "refer", "grounded_caption")  # of a world with location words alone
DRAWING = ("text_to_image", "edit", "interleaved", "draw")  # tasks that need a visual head
ROLES = ("encoder", "connector", "text_decoder", "fusion", "visual_head")  # of the unified model
WORDS = (*ROLES, "image_decoder")
RECIPE = ("data", "judge", "encoder", "text_decoder", "image_decoder", "align", "instruct", "evaluate")
OPTIONAL = ("represent", "pretrain", *FEATURES)  # stages that the default recipe does without
BUDGETS = ("tokens", "flops", "seconds")  # units at which the trainer stops, beside steps
STRATEGIES = ("auto", "ddp", "fsdp")
POLICIES = ("error", "skip", "quarantine")
FITS = ("pad", "crop", "stretch", "anyres")
SPLITS = ("train", "validation", "test")
LAYOUTS = ("auto", "padded", "buckets", "packed")
SWITCH = ("auto", "on", "off")
PREFLIGHT = ("error", "warn", "off")  # what faults in samples lead to
WEIGHTINGS = ("token", "sample")
