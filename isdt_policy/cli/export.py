"""`isdt export`: a policy as one file, or as a folder for the Hugging Face Hub."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from isdt_policy.cli.command import PathText
from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.loading import find_limits
from isdt_policy.envs import task_ids
from isdt_policy.envs.protocol import Policy
from isdt_policy.shared import terminal
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.files import check_writable


@dataclass(frozen=True)
class Export:
    """Write a policy as one file for robots, or as a folder for the Hugging Face Hub.

    A file runs without training code; its outputs are compared with the policy's before you get it.

    Examples:
        isdt export checkpoint=outputs/pusht_demo out=policy.onnx
        isdt export checkpoint=outputs/pusht_demo format=pt2 nfe=2 out=policy.pt2
        isdt export checkpoint=outputs/pusht_demo prefix=true nfe=2 out=rtc.onnx      for isdt deploy mode=rtc
        isdt export checkpoint=outputs/pusht_demo format=hub out=hub_folder           with a model card
        isdt export checkpoint=outputs/pusht_demo format=hub repo=me/pusht            and upload it

    What is written:
        checkpoint: a run, a checkpoint, a folder of save_pretrained, or zoo:NAME.
        format: onnx for onnxruntime, pt2 for torch.export.load, hub for a folder with a model card.
        out: file or folder; default: policy.onnx, policy.pt2 or hub_folder.

    Files (onnx, pt2):
        nfe: network evaluations per chunk, fixed in the file; or a sampler such as euler10.
        prefix: the file can continue a started chunk (real-time chunking).
        weights: int8 makes an .onnx file four times smaller than float32: convolutions are computed in 8-bit integers. The check
            prints by how much actions then differ.
        check: compare the file with the policy on so many random inputs, and refuse it if it differs; 0: do not compare.

    Limits that travel with the policy:
        limits: JSON file. limits.json beside the weights and the task's bounds hold too.
        loosen: only the limits= file holds, even where it allows more than the others.

    The Hugging Face Hub (hub):
        results: evaluation that the model card shows; default: eval/eval_info.json in the run.
        repo: upload to this repository.
        license: that the model card names, such as mit.
    """

    checkpoint: PathText
    format: Literal["onnx", "pt2", "hub"] = "onnx"
    nfe: Arm = Arm()  # noqa: RUF009 - frozen
    prefix: bool = False
    weights: Literal["float32", "int8"] = "float32"
    limits: Annotated[str, "JSON"] | None = None
    loosen: bool = False
    check: int = 1000
    out: PathText | None = None
    results: Annotated[str, "JSON"] | None = None
    repo: Annotated[str, "NAME/REPO"] | None = None
    license: str = ""

    positional: ClassVar = ("checkpoint",)
    renamed: ClassVar = {"steps": "nfe"}

    def __post_init__(self) -> None:
        if self.format != "hub" and (self.results or self.repo or self.license):
            raise InputError("results=, repo= and license= belong to format=hub.")
        if self.check < 0:
            raise InputError(f"check={self.check} must be 0 or more.")

    def run(self, command: str) -> int:
        return self._to_hub() if self.format == "hub" else self._to_file()

    def _to_file(self) -> int:
        from isdt_policy.deploy.export import FileFormat, export, parity
        from isdt_policy.method.policy import Policy as Trained

        graph = FileFormat(self.format, self.nfe.name, self.prefix, self.weights)
        out = Path(self.out or f"policy.{self.format}")
        check_writable(out)
        policy = Trained.from_pretrained(self.checkpoint)
        limits = self._limits(policy)
        path = export(policy, out, graph, limits=limits, source=self.checkpoint)
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB, nfe={self.nfe})")
        print(said(limits))
        if self.check:
            difference = parity(policy, path, nfe=self.nfe.name, prefix=self.prefix, inputs=self.check)
            print(f"parity: largest difference {difference:.1e} in normalised units over {self.check} random inputs")
            if self.weights == "float32" and not difference <= 1e-4:
                raise InputError(f"{path} differs from the policy by {difference:.1e}, more than 1e-4: do not use it.")
        if policy.task in task_ids() and path.suffix == ".onnx":
            terminal.suggest(f"isdt deploy {shlex.quote(f'checkpoint={path}')} task={policy.task}")
        return 0

    def _to_hub(self) -> int:
        from isdt_policy.deploy.hub import HubPolicy

        folder = Path(self.out or "hub_folder")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is not empty; give a new folder: out=PATH.")
        check_writable(folder / "README.md")
        shared = HubPolicy.from_run(self.checkpoint, results=self.results, license=self.license)
        shared.limits = self._limits(shared)
        shared.repo = self.repo
        shared.save_pretrained(folder)
        print(f"folder: {folder} ({', '.join(sorted(p.name for p in folder.iterdir()))})")
        print(said(shared.limits))
        if self.repo:
            print(f"uploaded: {shared.push_to_hub(self.repo)}")
        return 0

    def _limits(self, policy: Policy) -> Limits:
        return find_limits(self.checkpoint, policy, None, self.limits, loosen=self.loosen)


def said(limits: Limits) -> str:
    """What limits travel with a policy, in one line."""
    if not limits.as_dict():
        return "limits: NONE. Neither a task nor limits.json beside the weights nor limits=FILE names any."
    return f"limits: {', '.join(limits.as_dict())}"
