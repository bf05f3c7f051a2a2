"""A quick node. What happens around its work is what happens around every stage: `execute`."""

import hashlib
import importlib
import json
import os
import signal
import sys
import time
import types
from pathlib import Path

from lab.errors import LabError
from lab.graph.claim import ClaimedError
from lab.graph.context import Context
from lab.graph.execution import execute
from lab.graph.node import Node, content_of, identify, identity_of
from lab.graph.work import WORK

sys.modules["torch"] = types.SimpleNamespace(set_num_threads=id, manual_seed=id)  # takes seconds to import
name, *needs = sys.argv[1:]
home, told, size = Path.cwd(), [], int(os.environ.get("CHECKPOINT", "1"))
settings = json.loads((home / "nodes.json").read_text())[name]
events = os.open(home / ".lab" / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def note(event, **more):
    line = {"node": name, "event": event, "pid": os.getpid(), "time": time.time(), **more}
    os.write(events, (json.dumps(line) + "\n").encode())


def write(path, data):
    with open(path, "wb") as file:
        for at in range(0, len(data), 1 << 16):
            file.write(data[at : at + (1 << 16)])
        file.flush()
        os.fsync(file.fileno())


def blob(state):
    return hashlib.shake_256(state).digest(settings["bytes"])


def save(work, done, state):
    work.mkdir(parents=True, exist_ok=True)
    draft = work / f"last.{os.getpid()}.{done}.partial"
    try:
        write(draft, f"{done}\n{state.hex()}\n".encode() + blob(state) * size)
        os.replace(draft, work / "last")
    finally:
        draft.unlink(missing_ok=True)
    for left in work.glob("last.*.partial"):
        if not Path("/proc", left.name.split(".")[1]).exists():
            left.unlink(missing_ok=True)


def train(work, state):
    part, done, last = importlib.import_module("components.quick." + settings["part"]), 0, work / "last"
    if last.exists():
        with open(last, "rb") as file:
            done, state = int(file.readline()), bytes.fromhex(file.readline().decode())
            rest = file.read()
            if not rest or rest != blob(state) * (len(rest) // settings["bytes"]):
                sys.exit("a damaged checkpoint carries the name of a whole one")
        note("resumed", step=done)
    while done < settings["steps"]:
        time.sleep(float(os.environ.get("PAUSE", settings["pause"])))
        state, done = part.step(state, done, settings["value"]), done + 1
        note("step", step=done)
        if told:
            time.sleep(float(os.environ.get("LINGER", "0")))
        if told or done % settings["every"] == 0:
            save(work, done, state)
        if told:
            note("preempted", step=done)
            sys.exit(75)
    return state


def quick(context):
    note("works")
    digest = hashlib.sha256(json.dumps([name, settings]).encode())
    for place in context.inputs.values():
        digest.update((place / "weights").read_bytes())
    state = train(context.node.work, digest.digest())
    (context.out / "parts").mkdir()
    write(context.out / "weights", blob(state))
    write(context.out / "parts" / "head", state)
    return {"score": int.from_bytes(state[:4], "big") / 2**32}


for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: told.append(1))
note("start", code=os.environ["PYTHONPATH"].split(os.pathsep)[0])
while "GATE" in os.environ and not Path(os.environ["GATE"]).exists():
    time.sleep(0.001)
try:
    inputs = {need: home / "output" / need for need in needs}
    upstream = {need: identity_of(place) for need, place in inputs.items()}
    content = content_of("quick", name, settings, [f"components/quick/{settings['part']}.py"], upstream)
    node = Node("quick", name, content, home / "output" / name, home / ".lab" / "work" / identify(content))
    WORK["quick"] = quick
    params = types.SimpleNamespace(name="faults", seed=0, system="", threads=1, words=dict)
    numbers = home / "metrics" / f"{name}.json"
    execute(Context(home, params, "quick", "", "", "", node, inputs, {}, {}, numbers, {}))
    note("ended")
except LabError as error:
    if isinstance(error, ClaimedError):
        note("refused", why=str(error))
    print(f"lab: error: {error}", file=sys.stderr)
    sys.exit(error.code)
