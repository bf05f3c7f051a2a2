"""Results files as the official evaluations of benchmarks take them.

| format | file | entries |
|---|---|---|
| vqav2, textvqa | JSON | `question_id`, `answer` |
| gqa | JSON | `questionId`, `prediction` |
| coco | JSON | `image_id`, `caption` |
| pope | JSON Lines | `question`, `answer` |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from lab.evaluation.outside import Reply

_ENTRIES: dict[str, Callable[[Reply], dict[str, Any]]] = {
    "vqav2": lambda reply: {"question_id": reply.row.tags["question_id"], "answer": reply.given},
    "textvqa": lambda reply: {"question_id": reply.row.tags["question_id"], "answer": reply.given},
    "gqa": lambda reply: {"questionId": reply.row.tags["question_id"], "prediction": reply.given},
    "coco": lambda reply: {"image_id": reply.row.tags["image_id"], "caption": reply.given},
    "pope": lambda reply: {"question": reply.asked, "answer": reply.given},
}


def submission(form: str, replies: Sequence[Reply]) -> tuple[str, str] | None:
    """The name and the text of a results file, None where the format has no official one.

    Args:
        form: of the data set.
        replies: in the order of its rows.
    """
    if form not in _ENTRIES:
        return None
    entries = [_ENTRIES[form](reply) for reply in replies]
    if form == "pope":
        return "answers.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries)
    return "results.json", json.dumps(entries)
