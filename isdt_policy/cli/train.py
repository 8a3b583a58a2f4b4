"""`isdt train`."""

from __future__ import annotations

import json
import shlex
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from isdt_policy.cli.command import PathText, options_of
from isdt_policy.shared import terminal
from isdt_policy.shared.errors import InputError

if TYPE_CHECKING:
    from isdt_policy.training.config import Settings


@dataclass(frozen=True)
class Train:
    """Train a policy from scratch on demonstrations.

    A run is one folder, outputs/NAME. It holds config.json, log.jsonl, TensorBoard events, and checkpoints, from which a policy
    acts and training goes on. Ctrl-C saves a checkpoint and ends.

    Examples:
        isdt train experiment=pusht_demo                        bundled demonstrations, ten minutes on two cores
        isdt train experiment=pusht_demo training.seed=43 name=pusht_demo_43
        isdt train experiment=pusht_human data.path=/data/pusht_cchi_v7_replay.zarr
        isdt train data.path=my_robot.zarr                      a robot of your own, from its recordings alone
        isdt train data.path=my_lerobot_dataset                 the same; LeRobot, HDF5 and Minari are converted first
        isdt train experiment=pusht_demo objective.weight_power=0 objective.derivative=jvp name=ablation
        isdt train resume=outputs/pusht_demo                    go on after a kill; on a CPU with the same result to the last bit
        isdt train experiment=pusht_demo training.max_minutes=30       end after half an hour, with a checkpoint
        isdt train experiment=pusht_demo training.init=outputs/pusht_demo training.lr=2e-4 training.diagonal_steps=0    fine-tune
        isdt train experiment=pusht_demo nproc=2                two processes share every batch; with GPUs, one each
        isdt train experiment=pusht_demo --cfg                  print the settings and stop
        isdt train --keys                                       every setting with its explanation

    Settings:
        overrides: experiment=NAME and objective=NAME choose a file of settings. size=full takes the published network and
            schedule. name=NAME names the run, run_dir=FOLDER puts it elsewhere; if a run is there, if_exists=error (the
            default), resume or overwrite says what happens. data.KEY=, policy.KEY=, network.KEY=, objective.KEY= and
            training.KEY= change one setting each.

    Instead of settings:
        resume: a run that goes on with its own settings.

    Where:
        nproc: how many processes of this machine train together. They share every batch, so what is learnt does not depend on
            their number, up to rounding; a run may go on with another. Across machines: torchrun -m isdt_policy train.

    Instead of training:
        keys: print every setting with its value and its explanation.
        cfg: print the settings as JSON.
    """

    overrides: tuple[str, ...] = ()
    resume: PathText | None = None
    nproc: int = 1
    keys: bool = False
    cfg: bool = False

    rest: ClassVar = "overrides"

    def __post_init__(self) -> None:
        if self.resume and self.overrides:
            raise InputError(
                "resume= takes the run's own settings; give no others, because a changed run would not be the same run."
            )

    def run(self, command: str) -> int:
        """Return 0, or 128 and the number of the signal that ended training early."""
        from isdt_policy.training import config, distributed, launch, run

        settings = config.load_config(self.resume) if self.resume else config.compose_config(self.overrides)
        if self.resume:
            settings["run_dir"], settings["if_exists"] = self.resume, "resume"
        if self.keys:
            groups = {group: config.options(group) for group in config.GROUPS}
            print(_explained(settings, groups, config.kinds(settings)))
            return 0
        if self.cfg:
            print(json.dumps(settings, indent=2))
            return 0
        settings = self._on_a_store(settings, command)
        if self.nproc != 1:
            config.RunConfig.read(settings)  # what is wrong is told once
            return launch.start(self.nproc, [arg for arg in shlex.split(command)[2:] if not arg.startswith("nproc=")])
        try:
            folder = run.train(settings, command)
        except run.Interrupted as stop:
            return 128 + stop.signal
        except distributed.Told:
            return 2
        evaluate = (
            f"isdt eval checkpoint={folder} 'arms=[1,2]'" if settings["task"] else f"isdt eval data checkpoint={folder}"
        )
        if distributed.from_environment().rank == 0:
            terminal.suggest(evaluate)
        return 0

    def _on_a_store(self, settings: Settings, command: str) -> Settings:
        """The settings with recordings of another format converted, and the task that these name."""
        from isdt_policy.datasets.convert import as_store
        from isdt_policy.training import config

        given = str(settings["data"]["path"])
        if self.resume or (store := as_store(given, command)) == given:
            return settings
        print(f"training on {store}, converted from {given}")
        others = [override for override in self.overrides if not override.startswith("data.path=")]
        return config.compose_config([*others, f"data.path={store}"])


def _explained(
    settings: Mapping[str, object], groups: Mapping[str, Mapping[str, str]], kinds: Mapping[str, type]
) -> str:
    """What can be chosen, and every setting with its value and its explanation.

    Args:
        settings: a run's configuration.
        groups: per group, such as "experiment", the names that may follow, with a sentence each.
        kinds: section -> the dataclass whose docstring explains it.
    """
    lines = []
    for group, names in groups.items():
        lines += [f"{group}=NAME"]
        for name, text in names.items():
            lines += _wrapped(text, f"  {name:<22}", " " * 24)
        lines.append("")
    for section, kind in kinds.items():
        values, texts = settings[section], options_of(kind)
        assert isinstance(values, Mapping)
        for key, value in values.items():
            if key in texts:
                lines += [f"{section}.{key}={_shown(value)}", *_wrapped(texts[key])]
        lines.append("")
    return "\n".join(lines).rstrip()


def _shown(value: object) -> str:
    return json.dumps(value).replace(" ", "") if value != "" else "''"


def _wrapped(text: str, first: str = "    ", rest: str = "    ") -> list[str]:
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
