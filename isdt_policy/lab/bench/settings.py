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
        rounds: how often everything is timed in turn, so that a busy moment of the machine falls on all ways of doing the work.
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
        calls: steps per turn.
        threads: CPU threads; 0: as many as PyTorch chooses.
        device: cpu, cuda, cuda:N, or auto for a GPU if there is one.
        compile: compile both networks, as training.compile does.
        graphs: on a GPU, as CUDA graphs, as training.graphs does; both networks.
        guidance_scale: training guidance of iSD-T; 1: none. Any other value takes one more evaluation.
        data: demonstrations.
    """

    size: Size = "4m"
    batch: int = 256
    calls: int = 3
    threads: int = 0
    device: str = "cpu"
    compile: bool = True
    graphs: bool = False
    guidance_scale: float = 2.0
    data: PathText = BUNDLED


@dataclass(frozen=True)
class Ranks(Benchmark):
    """Training in several processes against one, a thread each.

    Attributes:
        nproc: how many processes share every batch.
        images: the recommended encoder on generated pictures (experiment=pusht_image); false: states (pusht_demo).
        batch: windows per step, of all processes together.
        calls: steps per turn.
        compile: compile the network, as training.compile does.
    """

    nproc: int = 2
    images: bool = True
    batch: int = 64
    calls: int = 3
    compile: bool = True


@dataclass(frozen=True)
class Images(Benchmark):
    """Training steps and calls of a policy that sees, against Diffusion Policy's image network.

    Attributes:
        batch: windows per step, of two frames each.
        calls: steps per turn; calls of a policy get twenty times as many.
        threads: CPU threads; 0: as many as PyTorch chooses.
        compile: compile the networks behind the encoders, as training.compile does.
    """

    batch: int = 64
    calls: int = 2
    threads: int = 1
    compile: bool = False


@dataclass(frozen=True)
class Infer(Benchmark):
    """One row: single evaluations and whole calls.

    Attributes:
        size: parameters of each network.
        calls: calls per turn; single evaluations get ten times as many.
        threads: CPU threads; 0: as many as PyTorch chooses.
        device: cpu, cuda, cuda:N, or auto for a GPU if there is one; on a GPU, evaluations are also timed as CUDA graphs.
        compile: compile both networks, those of the baseline's samplers too.
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
        task: a policy acts in pusht; the expert acts in the others, where the simulator takes nearly all the time.
        checkpoint: a trained policy; default: an untrained one acts in pusht.
        size: parameters of the untrained policy.
        episodes: episodes per turn.
        n_envs: how many environments the evaluator runs at a time.
        n_workers: how many processes step them; 0: this process steps them.
        threads: CPU threads; 0: as many as PyTorch chooses.
        device: where the policy computes: cpu, cuda, cuda:N, or auto for a GPU if there is one.
    """

    rounds: int = 3
    task: Literal["pusht", "lift", "can", "square"] = "pusht"
    checkpoint: PathText = ""
    size: Size = "4m"
    episodes: int = 32
    n_envs: int = 16
    n_workers: int = 0
    threads: int = 0
    device: str = "cpu"


@dataclass(frozen=True)
class Data(Benchmark):
    """Windows, images, memory and import.

    Attributes:
        data: a store.
        parts: what is measured; default: everything, import only if another project wrote the store.
        keys: observation keys of the windows; default: all but images and outcomes.
        batch: windows per batch.
        seconds: how long each way runs per turn; it runs at least once.
        frames: how many frames the generated stores have.
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
        checkpoint: a trained policy; default: an untrained one, exported to ONNX.
        size: parameters of the untrained policy.
        clients: how many clients ask, each over its own connection.
        rate: questions per second from each client.
        seconds: how long the clients ask.
        calls: single requests per turn.
        threads: CPU threads of the server, and of this process; 0: as many as PyTorch chooses.
        device: where the checkpoint computes; an exported policy runs on the CPU, so cuda needs checkpoint=.
    """

    checkpoint: PathText = ""
    size: Size = "4m"
    clients: int = 16
    rate: float = 50.0
    seconds: float = 60.0
    calls: int = 20
    threads: int = 1
    device: str = "cpu"


@dataclass(frozen=True)
class Env(Benchmark):
    """Control steps of an environment and of what it wraps.

    Attributes:
        task: which environment is timed.
        calls: control steps per turn.
    """

    task: Literal["pusht", "lift", "can", "square"] = "pusht"
    calls: int = 300
