"""`isdt bench`: ours and a stated baseline in turns (ours, baseline, ours, baseline ...) in one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from isdt_policy.lab.bench import settings
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class _Verb(settings.Benchmark):
    """Prints what a benchmark found.

    Attributes:
        out: a file that ends in .json: the numbers are written there, and the table beside it as .md.
    """

    out: Path | None = None
    bare: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out and self.out.suffix != ".json":
            raise InputError(f"out={self.out} must be the name of a file that ends in .json.")

    def run(self, command: str) -> int:
        from isdt_policy.lab.bench import suite

        print(suite.run(self, self.out))
        return 0


@dataclass(frozen=True)
class Train(settings.Train, _Verb):
    """Time one training step of iSD-T against one of DDPM.

    A step reads a batch, evaluates the network forward and backward, changes the weights and averages them. The baseline is
    the usual Conv1d UNet with as many parameters (within 2 %), on the same data. It gets the same precision and compilation
    as ours.

    Examples:
        isdt bench train size=4m
        isdt bench train size=16m rounds=3
        isdt bench train size=4m compile=false threads=1
    """


@dataclass(frozen=True)
class Infer(settings.Infer, _Verb):
    """Time one network evaluation, and a whole call against DDIM-10 and DDPM-100.

    One row, as a robot asks. The baseline is the usual Conv1d UNet with as many parameters (within 2 %), sampled through
    diffusers.

    Examples:
        isdt bench infer size=4m
        isdt bench infer size=63m threads=2 out=results/bench_infer_63m.json
    """


@dataclass(frozen=True)
class Eval(settings.Eval, _Verb):
    """Time an evaluation against a script that steps one environment at a time.

    Both must find the same success, length and reward for every seed.

    Examples:
        isdt bench eval episodes=200 rounds=1 n_envs=32 n_workers=2 threads=1
        isdt bench eval task=lift episodes=60 rounds=1 n_envs=4 n_workers=2
    """


@dataclass(frozen=True)
class Data(settings.Data, _Verb):
    """Time how windows are read and how stores are imported, against the straightforward way of doing the same.

    windows: batches of low-dimensional windows, against a per-item Python sampler (slice, pad, stack, as the usual data sets do
    it) and against copying as many bytes, contiguous and warm, into fresh arrays; processor time.

    images: the same for two 96x96x3 frames a window of a generated store (smooth images, and noise); the per-item sampler once
    with all frames decoded in memory and once reading each window from the store, as one does when there is no room.

    memory: a fresh process goes through one epoch of a generated store four times as large as memory_limit; by how much its
    resident memory grows at most, pages of mapped files included (Linux).

    import: isdt data convert of somebody else's Zarr store, against reading key by key through zarr into float32 and writing that
    through zarr: as zarr does by itself, and with the source's chunks and codec.

    Examples:
        isdt bench data
        isdt bench data pusht_cchi_v7_replay.zarr out=bench_data.json
        isdt bench data pusht_cchi_v7_replay.zarr keys=state,keypoint 'parts=[windows,import]'
    """

    positional: ClassVar = ("data",)
    renamed: ClassVar = {"path": "data"}


@dataclass(frozen=True)
class Serve(settings.Serve, _Verb):
    """Time one request to a server process, then many clients at a fixed rate.

    Counts what was lost, wrong or another client's. Latency counts from when a question was due.

    Examples:
        isdt bench serve
        isdt bench serve clients=1 rate=100 seconds=60
    """


@dataclass(frozen=True)
class Env(settings.Env, _Verb):
    """Time one control step of an environment against what it wraps: gym-pusht, or bare robosuite.

    Examples:
        isdt bench env task=pusht
        isdt bench env task=lift calls=100
    """
