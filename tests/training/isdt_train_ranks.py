"""What one of several processes does in test_distributed.py: python isdt_train_ranks.py STORE FOLDER.

Everything happens in one go, because starting a process takes longer than all of it. What it saw goes to FOLDER/RANK.json.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from isdt_policy.method.objectives.isd import ISD
from isdt_policy.shared.errors import InputError
from isdt_policy.training import distributed
from isdt_policy.training.config import compose_config
from isdt_policy.training.run import _train, build_trainer

SMALL = (
    "experiment=pusht_demo", "network.down_dims=[8,16]", "network.embed_dim=16", "network.time_dim=8", "policy.cond_dim=8",
    "policy.encoder_hidden=[16]", "training.batch_size=16", "training.threads=1", "training.log_every=1",
    "training.loggers=[]", "training.compile=false", "training.amp=off", "training.device=cpu", "training.warmup_steps=1",
    "training.diagonal_steps=1", "training.steps=5", "training.mask_padding=true",
)  # fmt: skip
# Every way in which rows of a batch meet, or in which something is drawn for them.
OBJECTIVES = {
    "times": ["objective=isd_t", "objective.weight_by=times", "objective.off_diagonal_fraction=0.5"],
    "endpoint": [
        "objective=isd_t", "objective.endpoint_weight=1", "training.endpoint_steps=2", "training.finish_steps=1",
        "objective.guidance_scale=2", "objective.cond_drop=0.25",
    ],
    "meanflow": ["objective=meanflow"],
    "shortcut": ["objective=shortcut"],
    "pictures": [
        "objective=isd_t", "data.obs_keys=[image,agent_pos]", "data.hindsight=false", "data.mirror=false", "images.width=0.1",
        "images.keypoints=4", "images.features=4", "policy.action_reference=agent_pos", "training.draws_per_obs=2",
    ],
    "diffusion": ["objective=diffusion", "policy.interpolant=trigonometric", "training.diagonal_steps=0"],
}  # fmt: skip


def settings(store, run, *more):
    return compose_config([*SMALL, f"data.path={store}", f"run_dir={run}", *more])


def trained(config, world, double):
    """A trainer after all steps, and the numbers of each."""
    trainer, _ = build_trainer(config, world)
    if double:
        for policy in (trainer.policy, trainer.ema.module):
            policy.double()
    rows = [trainer.indices(i).tolist() for i in range(3)]
    numbers = [trainer.train_step() for _ in range(config["training"]["steps"])]
    return trainer, rows, numbers


def everything(store, world):
    """Per objective: the windows of the first steps, the numbers of all, and an identity of the weights."""
    found = {}
    for name, more in OBJECTIVES.items():
        for double in (False, True) if name == "times" else (True,):
            trainer, rows, numbers = trained(settings(store, "/nowhere", *more), world, double)
            bits = distributed.digest(trainer.policy.state_dict())
            found[f"{name} {'float64' if double else 'float32'}"] = {"rows": rows, "numbers": numbers, "bits": bits}
    return found


class NoNumberIsRead(TorchDispatchMode):
    """Fails where a number of a tensor becomes a number of Python: on a GPU, everything waits for that."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        assert func is not torch.ops.aten.nonzero.default
        return func(*args, **(kwargs or {}))


def refusal(act):
    """What is said where something is refused, and by what kind of error."""
    try:
        act()
    except InputError as error:
        return [type(error).__name__, str(error)]
    return None


def main() -> None:
    store, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with distributed.joined("cpu") as world:
        said = {"everything": everything(store, world), "again": {}}
        said["again"] = {"times float32": trained(settings(store, "/nowhere", *OBJECTIVES["times"]), world, False)[2]}

        def run(name, *more):
            with ExitStack() as held:
                _train(settings(store, folder / name, *more), "", world, held)

        said["batch"] = refusal(lambda: run("batch", "training.batch_size=15"))
        said["fraction"] = refusal(lambda: run("fraction", "objective.off_diagonal_fraction=0.3"))
        said["settings"] = refusal(lambda: run("settings", f"training.lr={1e-3 * (1 + world.rank)}"))
        said["data"] = refusal(lambda: run("data", *(["data.path=absent.zarr"] if world.rank else [])))
        original = ISD.__call__

        def poisoned(self, *args, **kwargs):
            loss = original(self, *args, **kwargs)
            if next(calls) == 2 and world.rank == 1:
                loss.terms["diagonal"] = torch.tensor(float("nan"))
            return loss

        calls = itertools.count()
        ISD.__call__ = poisoned
        said["nan"] = refusal(lambda: run("nan"))
        ISD.__call__ = original
        said["whole"] = refusal(lambda: run("whole", "training.checkpoint_every=2"))

        def dying(self, *args, **kwargs):
            if next(calls) == 3 and world.rank == 1:
                os._exit(9)
            return original(self, *args, **kwargs)

        calls = itertools.count()
        ISD.__call__ = dying
        (folder / f"{world.rank}.json").write_text(json.dumps(said))
        start = time.monotonic()
        said["died"] = refusal(lambda: run("died", "training.checkpoint_every=2"))
        said["seconds"] = time.monotonic() - start
        (folder / f"{world.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
