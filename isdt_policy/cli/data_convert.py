"""`isdt data convert`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from isdt_policy.cli.command import PathText
from isdt_policy.datasets import convert, formats
from isdt_policy.datasets.cameras import Pictures
from isdt_policy.datasets.formats import Reading
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class Convert:
    """Convert demonstrations from one format to another.

    isdt looks into the source to find its format. The name of the target says which format is written: .zarr and .zarr.zip for
    this project's store (Zarr v3), .hdf5 for robomimic's file. The target appears when it is complete; the source is only read.

    Examples:
        isdt data convert lift_ph_low_dim.hdf5 lift.zarr
        isdt data convert low_dim_v141.hdf5 lift_abs.zarr task=lift_abs
        isdt data convert pusht_cchi_v7_replay.zarr pusht.zarr task=pusht
        isdt data convert pusht.zarr pusht_v2.zarr.zip to=diffusion_policy keys=state
        isdt data convert lift.zarr lift_again.hdf5
        isdt data convert pusht.zarr pusht_lerobot to=lerobot
        isdt data convert my_lerobot mine.zarr images=front,wrist resize=96x128
        isdt data convert low_dim_v141.hdf5 seen.zarr task=lift_abs render=agentview,robot0_eye_in_hand

    What is converted:
        source: demonstrations in a format that isdt reads.
        target: file or folder that is written.
        to: its format, where the name does not say it: zarr, robomimic, lerobot, minari, or diffusion_policy (Zarr v2, which
            Diffusion Policy's own code reads).
        keys: convert only these keys and the action; default: all.
        rename: NAME:KEY calls the source's NAME KEY in the target, such as rename=actions:action.
        task: the task that was recorded. Its units, ranges and derived observations are written too. lift_abs and the like
            replay the states to turn delta actions into absolute ones.
        images: of the pictures convert only these; default: all that keys names.
        resize: HEIGHTxWIDTH that all pictures get, each pixel the mean of the area that it covers. Policies remember the
            camera's own size, and resize what it gives them in the same way.
        render: cameras of the task, drawn from recorded states as its environment draws them, such as agentview. A recorded
            picture of that name gives way: those of another renderer look different.
        actions: what the actions of a robomimic file are, if the file is wrong about it or does not say it.
        overwrite: replace what isdt wrote at TARGET before.
    """

    source: PathText
    target: PathText
    to: str | None = None
    keys: tuple[str, ...] | None = None
    rename: tuple[str, ...] = ()
    task: str | None = None
    images: tuple[str, ...] | None = None
    resize: str = ""
    render: tuple[str, ...] = ()
    actions: Literal["delta", "absolute"] | None = None
    overwrite: bool = False

    positional: ClassVar = ("source", "target")

    def __post_init__(self) -> None:
        if self.to is not None:
            formats.module(self.to)
        for pair in self.rename:
            if len([name for name in pair.split(":") if name]) != 2:
                raise InputError(f"rename='{pair}' must be NAME:KEY, such as rename=actions:action.")
        self._size()

    def _size(self) -> tuple[int, int] | None:
        if not self.resize:
            return None
        sides = self.resize.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and 0 < int(side) <= 4096 for side in sides):
            raise InputError(f"resize='{self.resize}' must be HEIGHTxWIDTH in pixels, such as resize=96x128.")
        return int(sides[0]), int(sides[1])

    def run(self, command: str) -> int:
        names = dict(pair.split(":") for pair in self.rename)
        how = Reading(self.keys, names, self.actions, self.images)
        pictures = Pictures(self._size(), self.render)
        convert.convert(self.source, self.target, self.to, self.task, self.overwrite, how, command, pictures)
        return 0
