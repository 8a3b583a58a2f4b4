"""What each benchmark measures, and how often. Importing this file loads nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from isdt_policy.shared.errors import InputError, at_least
from isdt_policy.shared.files import PathText

Size = Literal["4m", "16m", "63m"]
BUNDLED = "bundled:pusht_expert"


@dataclass(frozen=True)
class Benchmark:
    """What all benchmarks have in common.

    Attributes:
        rounds: turns. Every way of doing the work runs in each turn, so that a busy moment falls on all of them.
    """

    rounds: int = 7

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if type(value) in (int, float) and field.name != "guidance_scale":
                at_least(0 if field.name in ("threads", "n_workers", "seconds", "rate") else 1, **{field.name: value})


@dataclass(frozen=True)
class Train(Benchmark):
    """One training step of iSD-T and of DDPM.

    Attributes:
        size: parameters of each network.
        batch: windows per step.
        calls: steps of each in a turn.
        threads: CPU threads; 0 leaves PyTorch's choice.
        device: "cpu", "cuda", ...
        compile: torch.compile both networks, as training.compile does.
        guidance_scale: training guidance of iSD-T; 1 leaves it out, any other value costs an evaluation.
        data: demonstrations.
    """

    size: Size = "4m"
    batch: int = 256
    calls: int = 3
    threads: int = 0
    device: str = "cpu"
    compile: bool = True
    guidance_scale: float = 2.0
    data: PathText = BUNDLED


@dataclass(frozen=True)
class Infer(Benchmark):
    """One row: single evaluations and whole calls.

    Attributes:
        size: parameters of each network.
        calls: calls in a turn; of a single evaluation ten times as many.
        threads: CPU threads; 0 leaves PyTorch's choice.
        device: "cpu", or "cuda", where evaluations are timed on the device and as CUDA graphs too.
        compile: torch.compile both networks; the baseline's samplers use it compiled.
    """

    size: Size = "4m"
    calls: int = 3
    threads: int = 0
    device: str = "cpu"
    compile: bool = True


@dataclass(frozen=True)
class Eval(Benchmark):
    """Whole evaluations.

    Attributes:
        task: on PushT a policy acts; on the others, whose simulators take all the time, their expert.
        checkpoint: a trained policy; without one, an untrained one acts on PushT.
        size: parameters of the untrained policy.
        episodes: per turn.
        n_envs: environments of the evaluator at a time.
        n_workers: processes of the evaluator; 0 steps environments in this one.
        threads: CPU threads; 0 leaves PyTorch's choice.
    """

    rounds: int = 3
    task: Literal["pusht", "lift", "can", "square"] = "pusht"
    checkpoint: PathText = ""
    size: Size = "4m"
    episodes: int = 32
    n_envs: int = 16
    n_workers: int = 0
    threads: int = 0


@dataclass(frozen=True)
class Data(Benchmark):
    """Windows, images, memory and import.

    Attributes:
        data: a store.
        keys: windows: stored observation keys; default: all but images and outcomes.
        batch: windows per batch.
        seconds: per way and turn, at least one call.
        parts: what is measured; default: all, the import only where the store is somebody else's.
        frames: images and memory: frames of the generated stores.
    """

    data: PathText = BUNDLED
    keys: tuple[str, ...] | None = None
    batch: int = 256
    seconds: float = 0.1
    parts: tuple[Literal["windows", "images", "memory", "import"], ...] | None = None
    frames: int = 7000

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(64, frames=self.frames)  # four windows
        if self.seconds <= 0:
            raise InputError(f"seconds={self.seconds:g} must be above 0.")


@dataclass(frozen=True)
class Serve(Benchmark):
    """A server process and its clients.

    Attributes:
        checkpoint: a trained policy; without one, an untrained one is exported to ONNX.
        size: parameters of the untrained policy.
        clients: connections.
        rate: questions per second of each connection.
        seconds: how long the clients ask.
        calls: single requests in a turn.
        threads: CPU threads of the server and of this process; 0 leaves PyTorch's choice.
    """

    checkpoint: PathText = ""
    size: Size = "4m"
    clients: int = 16
    rate: float = 50.0
    seconds: float = 60.0
    calls: int = 20
    threads: int = 1


@dataclass(frozen=True)
class Env(Benchmark):
    """Control steps of an environment and of what it wraps.

    Attributes:
        task: whose environment.
        calls: control steps in a turn.
    """

    task: Literal["pusht", "lift", "can", "square"] = "pusht"
    calls: int = 300
