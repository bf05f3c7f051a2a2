"""`params.yaml`: every number of a pipeline, read once, checked in full before anything runs.

`words` has the choices, `sections` and `params` the classes; `overrides` changes the tree of a file,
`structure` gives it its types, `checks` and `datasets` find what is wrong with it, and `reading` does all
of these in turn.
"""

from __future__ import annotations

from lab.config.datasets import mistakes_in_data_set, names_data_set
from lab.config.overrides import apply_override, assign, overridden
from lab.config.params import Params, tree_of, unadapted
from lab.config.reading import check_params, examine, load_params, node_params, read_tree
from lab.config.sections import (
    DataSetParams,
    EvaluateParams,
    FeaturesParams,
    FitParams,
    InstructParams,
    StagesParams,
    Switch,
    TrainerParams,
)
from lab.config.words import (
    BUDGETS,
    LAYOUTS,
    LOCATION_TASKS,
    OPTIONAL,
    PREFLIGHT,
    RECIPE,
    ROLES,
    SPLITS,
    STRATEGIES,
    TASKS,
    WORDS,
)

__all__ = [
    "BUDGETS",
    "LAYOUTS",
    "LOCATION_TASKS",
    "OPTIONAL",
    "PREFLIGHT",
    "RECIPE",
    "ROLES",
    "SPLITS",
    "STRATEGIES",
    "TASKS",
    "WORDS",
    "DataSetParams",
    "EvaluateParams",
    "FeaturesParams",
    "FitParams",
    "InstructParams",
    "Params",
    "StagesParams",
    "Switch",
    "TrainerParams",
    "apply_override",
    "assign",
    "check_params",
    "examine",
    "load_params",
    "mistakes_in_data_set",
    "names_data_set",
    "node_params",
    "overridden",
    "read_tree",
    "tree_of",
    "unadapted",
]
