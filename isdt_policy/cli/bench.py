"""`isdt bench`: ours and a stated baseline in turns (ours, baseline, ours, baseline ...) in one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from isdt_policy.lab.bench import settings
from isdt_policy.shared import terminal
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class _Verb(settings.Benchmark):
    """Prints what a benchmark found.

    Attributes:
        out: write the numbers into this .json file, and the table beside it as .md.
    """

    out: Path | None = None
    bare: ClassVar = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out and self.out.suffix != ".json":
            raise InputError(f"out={self.out} must be the name of a file that ends in .json.")

    def run(self, command: str) -> int:
        from isdt_policy.lab.bench import suite

        terminal.show(suite.run(self, self.out))
        return 0


@dataclass(frozen=True)
class Train(settings.Train, _Verb):
    """Time one training step of iSD-T against one of DDPM.

    A step reads a batch, runs the network forward and backward, changes the weights and averages them. The baseline is the
    usual Conv1d UNet. It has as many parameters as ours (within 2 %), and the same data, precision and compilation.

    Examples:
        isdt bench train size=4m
        isdt bench train size=16m rounds=3
        isdt bench train size=4m compile=false threads=1
    """


@dataclass(frozen=True)
class Ranks(settings.Ranks, _Verb):
    """Time training steps of several processes against those of one.

    Every process has one thread. All are started once; one trains while the others sleep, then all train, in turns.

    Examples:
        isdt bench ranks
        isdt bench ranks nproc=4 images=false batch=256
    """


@dataclass(frozen=True)
class Images(settings.Images, _Verb):
    """Time training steps and calls of a policy that sees.

    The baseline is Diffusion Policy's image network with its plain DDPM step: a ResNet18 with GroupNorm for the camera, and
    the usual Conv1d UNet with as many parameters as ours. Ours has the same encoder, then the recommended one. A call has one row
    and one evaluation, encoder included; how long the network takes is the difference to a call with two.

    Examples:
        isdt bench images
        isdt bench images batch=16 rounds=3 out=results/bench_images.json
    """


@dataclass(frozen=True)
class Infer(settings.Infer, _Verb):
    """Time one network evaluation, and a whole call against DDIM-10 and DDPM-100.

    A call has one row, as when a robot asks. The baseline is the usual Conv1d UNet with as many parameters as ours (within
    2 %), sampled by diffusers.

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
    """Time how windows are read and stores are imported, against the straightforward way.

    windows: batches of low-dimensional windows, in processor time. Baselines: a Python sampler that slices, pads and stacks one
    window after another, as the usual data sets do; and a plain copy of as many bytes.

    images: the same with two 96x96x3 frames a window, from a generated store of smooth images and one of noise. The sampler
    once has all frames decoded in memory, and once reads each window from the store, as one does when memory is short.

    memory: a fresh process reads one epoch of a generated store that is four times as large as its memory_limit. How far does
    its resident memory grow, pages of mapped files included? (Linux)

    import: isdt data convert of another project's Zarr store. Baselines: read and write it key by key as float32, with zarr's
    own chunks and codec, and with the source's.

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

    It counts answers that are lost, wrong or another client's. A latency starts when its question was due.

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
