"""`python -m stage NODE`: counts tenths of a second as steps; saves its count when told to stop.

What a node does otherwise stands in `plan.json`: how long it takes, and what goes wrong on which attempt.
Everything that happens is a line of `events`.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

name = sys.argv[1]
process = os.environ.get("SLURM_PROCID", "0")
restarts = int(os.environ["LAB_ATTEMPT"].rpartition(".")[2])
plan = json.loads(Path("plan.json").read_text()).get(name, {})
checkpoint = Path(f"checkpoint-{name}-{process}")
told = []


def note(event: str, **more: object) -> None:
    line = {"node": name, "event": event, "process": process, "attempt": os.environ["LAB_ATTEMPT"], **more}
    with Path("events").open("a") as file:
        file.write(json.dumps(line) + "\n")


if not plan.get("deaf"):
    signal.signal(signal.SIGUSR1, lambda *_: told.append(1))
step = int(checkpoint.read_text()) if checkpoint.exists() else 0
strategy = os.environ.get("LAB_STRATEGY", "")
code = os.environ["PYTHONPATH"].split(":")[0]
machine = os.environ["SLURMD_NODENAME"]
note("start", step=step, code=code, machine=machine, strategy=strategy, time=time.time())
print(f"stage {name} from step {step}", flush=True)
while step < plan.get("steps", 1):
    time.sleep(0.1)
    step += 1
    if told:
        checkpoint.write_text(str(step))
        time.sleep(0.5 * int(process))  # the others save for longer
        note("stop", step=step)
        sys.exit(75)
code = plan.get("code", 0)
if restarts < plan.get("until", 99) and process == str(plan.get("process", process)) and code:
    note("fail", code=code)
    sys.exit(code)
if code and "process" in plan:
    time.sleep(60)  # waits for the process that is gone
note("end", step=step, time=time.time())
