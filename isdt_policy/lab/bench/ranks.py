"""Training steps that several processes share, against those of one; a thread each."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from isdt_policy.datasets.store import DemoWriter
from isdt_policy.lab.bench.measure import ratio, summary
from isdt_policy.lab.bench.report import Measured
from isdt_policy.lab.bench.settings import BUNDLED, Ranks
from isdt_policy.lab.bench.subject import say
from isdt_policy.shared.errors import InputError
from isdt_policy.training import launch
from isdt_policy.training.config import compose_config
from isdt_policy.training.distributed import ALONE, World, check_divides, joined
from isdt_policy.training.run import build_trainer
from isdt_policy.training.trainer import Trainer

SIDE, FRAMES = 96, 600
WARM_UP = 2


def measure(what: Ranks) -> Measured:
    """Time steps of one process and of all.

    Raises:
        InputError: a batch that the processes cannot share equally; or one of them failed, and has said why.
    """
    check_divides(what.nproc, {"batch": what.batch})
    with tempfile.TemporaryDirectory() as folder:
        store = generated_store(Path(folder) / "seen.zarr") if what.images else BUNDLED
        say(
            f"{what.nproc} processes; compiling takes each a minute or two"
            if what.compile
            else f"{what.nproc} processes"
        )
        program = f"from isdt_policy.lab.bench import ranks; ranks.process({str(store)!r}, {folder!r})"
        (Path(folder) / "what.json").write_text(json.dumps({f.name: getattr(what, f.name) for f in fields(Ranks)}))
        if launch.run(what.nproc, [sys.executable, "-c", program]):
            raise InputError("a process of the benchmark failed.")
        times = json.loads((Path(folder) / "times.json").read_text())
    one, many = (summary(times[name]) for name in ("alone", "shared"))
    names = "one process", f"{what.nproc} processes"
    spent = {"one process": times["work"][0], f"all {what.nproc} together": times["work"][1]}
    facts = {
        "experiment": "pusht_image, generated pictures" if what.images else "pusht_demo", "batch": what.batch,
        "threads of a process": 1, "compile": times["compile"], "amp": times["amp"],
        "windows per second": {name: 1e3 * what.batch / t.median for name, t in zip(names, (one, many))},
        "processor time of a step, ms": spent,
        "so on cores that are free, times faster at most": what.nproc * times["work"][0] / times["work"][1],
    }  # fmt: skip
    return Measured(
        f"ranks nproc={what.nproc}",
        dict(zip(names, (one, many))),
        {f"{names[0]} / {names[1]}": ratio(one, many)},
        facts,
    )


def process(store: str, folder: str) -> None:
    """What each process does; the first one writes the times."""
    what = Ranks(**json.loads((Path(folder) / "what.json").read_text()))
    times: dict[str, list[list[float]]] = {"alone": [], "shared": []}
    with joined("cpu") as world:
        shared = _trainer(what, store, world)
        alone = _trainer(what, store, ALONE) if world.rank == 0 else None
        for trainer in filter(None, (alone, shared)):
            for _ in range(WARM_UP):
                trainer.train_step()
        work = torch.zeros(2, dtype=torch.float64)  # processor time alone, and shared
        for _ in range(what.rounds):
            began = time.process_time()
            if alone is not None:
                times["alone"].append([_step_ms(alone, ALONE) for _ in range(what.calls)])
            before = time.process_time()
            world.largest(0)  # the others have slept until now
            times["shared"].append([_step_ms(shared, world) for _ in range(what.calls)])
            work += torch.tensor([before - began, time.process_time() - before])
        world.average([work])
        work *= 1e3 * world.size / (what.rounds * what.calls)
    if alone is not None:
        told = {**times, "work": work.tolist(), "compile": alone.compile_note, "amp": alone.amp}
        (Path(folder) / "times.json").write_text(json.dumps(told))


def _step_ms(trainer: Trainer, world: World) -> float:
    start = time.perf_counter()
    trainer.train_step()
    world.largest(0)  # a step is over when it is over everywhere
    return 1e3 * (time.perf_counter() - start)


def _trainer(what: Ranks, store: str, world: World) -> Trainer:
    more = ["experiment=pusht_image", "data.hindsight=false"] if what.images else ["experiment=pusht_demo"]
    config = compose_config([
        *more, f"data.path={store}", f"training.batch_size={what.batch}", "training.threads=1", "training.device=cpu",
        f"training.compile={str(what.compile).lower()}", "training.diagonal_steps=0", "training.loggers=[]",
    ])  # fmt: skip
    return build_trainer(config, world)[0]


def generated_store(path: Path) -> Path:
    """Wanderings in PushT's units with pictures of noise: how a picture looks does not matter to what it costs."""
    rng = np.random.default_rng(0)
    with DemoWriter(path, task="pusht") as writer:
        for _ in range(FRAMES // 100):
            state = (256 + np.cumsum(rng.uniform(-5, 5, (100, 5)), axis=0)).astype(np.float32)
            pictures = rng.integers(0, 256, (100, SIDE, SIDE, 3), np.uint8)
            writer.append({"state": state, "action": state[:, :2] + 5, "pixels": pictures})
    return path
