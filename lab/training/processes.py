"""Several processes of one run: who they are, and how Lightning is told.

`torchrun` and `srun` start the processes and say in the environment which is which; where they did not,
`lab stage` starts `trainer.devices` itself. Every process runs the same stage; only the one of rank 0 prints,
records and publishes. Nothing heavy is imported here: a stage asks before it has anything to do.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from lab.config import STRATEGIES, TrainerParams
from lab.errors import LabError, nearest

STRATEGY = "LAB_STRATEGY"  # environment: comes before `trainer.strategy`


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: of this one among all.
        world: how many there are.
        nodes: on how many machines.
        starter: "torchrun", "srun", "lightning", or "" where this process is alone so far.
    """

    rank: int = 0
    world: int = 1
    nodes: int = 1
    starter: str = ""


def processes() -> Processes:
    """Reads the environment. Of a SLURM job only a step counts, `srun`: its batch script is one process.

    Raises:
        LabError: the nodes have different numbers of processes.
    """
    env = os.environ
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= env.keys():
        world = int(env["WORLD_SIZE"])
        nodes = world // int(env.get("LOCAL_WORLD_SIZE") or world)
        found = Processes(int(env["RANK"]), world, nodes, "torchrun")
    elif int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in env:
        world = int(env["SLURM_STEP_NUM_TASKS"])
        nodes = int(env.get("SLURM_STEP_NUM_NODES") or env.get("SLURM_NNODES") or 1)
        found = Processes(int(env["SLURM_PROCID"]), world, nodes, "srun")
    elif {"LOCAL_RANK", "NODE_RANK"} <= env.keys():  # started by Lightning, on one node
        found = Processes(int(env["LOCAL_RANK"]), int(env.get("WORLD_SIZE", 1)), 1, "lightning")
    else:
        return Processes()
    if found.world % found.nodes:
        raise LabError(f"{found.world} processes on {found.nodes} nodes: each node needs the same number")
    return found


def is_rank_zero() -> bool:
    """Whether this process is the one that prints, records and publishes. True of a run of one process."""
    return processes().rank == 0


_may_start: list[bool] = []


def may_start() -> None:
    """Lets this command start itself further times, as `trainer.devices` says, when it comes to train.

    A command that does more than one stage must not: the others would do all of it again.
    """
    _may_start.append(True)


def planned(trainer: TrainerParams) -> int:
    """How many processes will train: those that were started, or those that the configuration asks for."""
    found = processes()
    if found.starter or not _may_start:
        return found.world
    return trainer.devices * trainer.num_nodes


def sharded(trainer: TrainerParams) -> bool:
    """Whether weights are split over the processes."""
    return _strategy(trainer) == "fsdp"


def placement(trainer: TrainerParams, branches: bool) -> dict[str, Any]:
    """Arguments of Lightning's Trainer that say where it runs.

    Args:
        trainer: what the configuration says; the environment comes before it.
        branches: whether a process may have a batch that leaves trained parameters without gradient.

    Raises:
        LabError: several nodes, but nobody who starts processes on them.
    """
    from pytorch_lightning.plugins.environments import (
        LightningEnvironment,
        SLURMEnvironment,
        TorchElasticEnvironment,
    )
    from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy

    found, world = processes(), planned(trainer)
    nodes = found.nodes if found.starter or world == 1 else trainer.num_nodes
    if nodes > 1 and not found.starter:
        raise LabError(
            f"trainer.num_nodes is {nodes}, but nothing started processes there; use srun or torchrun"
        )
    # named even for one process: Lightning would otherwise take it for the batch job that it may run in
    environment: Any = LightningEnvironment()
    if found.starter == "torchrun":
        environment = TorchElasticEnvironment()
    elif found.starter == "srun":
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(world // nodes))  # Lightning insists on it
        os.environ.setdefault("MASTER_PORT", str(_port()))
        environment = SLURMEnvironment(auto_requeue=False)
    strategy: Any = "auto"
    if sharded(trainer):
        strategy = ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)
    elif world > 1:
        strategy = DDPStrategy(find_unused_parameters=branches)
    return {
        "accelerator": trainer.accelerator,
        "devices": world // nodes,
        "num_nodes": nodes,
        "strategy": strategy,
        "plugins": [environment],
    }


def _strategy(trainer: TrainerParams) -> str:
    word = os.environ.get(STRATEGY) or trainer.strategy
    if word not in STRATEGIES:
        where = STRATEGY if STRATEGY in os.environ else "trainer.strategy"
        raise LabError(f"{where}: no strategy '{word}'{nearest(word, STRATEGIES)}")
    return word


def _port() -> int:
    """A port that all tasks of a step agree on, another one for another step of the job."""
    job, step = (int(os.environ.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 20000 + (job * 37 + step) % 10000
