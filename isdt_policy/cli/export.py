"""`isdt export`: a policy as one file, or as a folder for the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from isdt_policy.cli.command import PathText
from isdt_policy.deploy.loading import find_limits, load_trained
from isdt_policy.shared.arm import Arm
from isdt_policy.shared.errors import InputError


@dataclass(frozen=True)
class Export:
    """Write a policy as one file that runs without this package's training code, or as a folder for the Hugging Face Hub.

    Examples:
        isdt export checkpoint=outputs/pusht_demo out=policy.onnx                   one network evaluation, for onnxruntime
        isdt export checkpoint=outputs/pusht_demo format=pt2 nfe=2 out=policy.pt2   for torch.export.load
        isdt export checkpoint=outputs/pusht_demo prefix=true nfe=2 out=rtc.onnx    can continue chunks (mode=rtc)
        isdt export checkpoint=outputs/pusht_demo format=hub out=hub_folder         weights, config, limits, model card
        isdt export checkpoint=outputs/pusht_demo format=hub out=hub_folder repo=me/pusht     ... and upload it

    Options:
        checkpoint: a run, a checkpoint, or a folder of save_pretrained.
        format: what is written.
        nfe: network evaluations in the graph, or a sampler such as euler10 (onnx, pt2).
        prefix: inputs for real-time chunking (onnx, pt2).
        weights: int8 computes the convolutions of the network in 8-bit integers (onnx); the check prints what that costs.
        limits: JSON file, embedded; default: limits.json beside the weights, or the bounds of the task's actions.
        check: compare that many random inputs with the policy and refuse a file that differs; 0 for none.
        out: default: policy.onnx, policy.pt2 or the folder hub_folder.
        results: eval_info.json for the model card (hub); default: eval/eval_info.json of the run.
        repo: upload to that repository, NAME/REPO (hub).
    """

    checkpoint: PathText
    format: Literal["onnx", "pt2", "hub"] = "onnx"
    nfe: Arm = Arm()  # noqa: RUF009 - frozen
    prefix: bool = False
    weights: Literal["float32", "int8"] = "float32"
    limits: str | None = None
    check: int = 1000
    out: str | None = None
    results: str | None = None
    repo: str | None = None

    positional: ClassVar = ("checkpoint",)
    renamed: ClassVar = {"steps": "nfe"}

    def __post_init__(self) -> None:
        if self.format != "hub" and (self.results or self.repo):
            raise InputError("results= and repo= belong to format=hub.")
        if self.check < 0:
            raise InputError(f"check={self.check} must be 0 or more.")

    def run(self, command: str) -> int:
        """Return 0."""
        return self._to_hub() if self.format == "hub" else self._to_file()

    def _to_file(self) -> int:
        from isdt_policy.deploy.export import FileFormat, export, parity

        graph = FileFormat(self.format, self.nfe.name, self.prefix, self.weights)
        policy = load_trained(self.checkpoint)
        allowed = find_limits(self.checkpoint, policy, None, self.limits)
        path = export(policy, self.out or f"policy.{self.format}", graph, limits=allowed, source=self.checkpoint)
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB, nfe={self.nfe})")
        if self.check:
            difference = parity(policy, path, nfe=self.nfe.name, prefix=self.prefix, inputs=self.check)
            print(f"parity: largest difference {difference:.1e} in normalised units over {self.check} random inputs")
            if self.weights == "float32" and not difference <= 1e-4:
                raise InputError(f"{path} differs from the policy by {difference:.1e}, more than 1e-4: do not use it.")
        return 0

    def _to_hub(self) -> int:
        from isdt_policy.deploy.hub import HubPolicy

        folder = Path(self.out or "hub_folder")
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; give a new folder: out=PATH.")
        allowed = find_limits(self.checkpoint, load_trained(self.checkpoint), None, self.limits)
        shared = HubPolicy.from_run(self.checkpoint, limits=allowed, results=self.results)
        shared.repo = self.repo
        shared.save_pretrained(folder)
        print(f"folder: {folder} ({', '.join(sorted(p.name for p in folder.iterdir()))})")
        if self.repo:
            print(f"uploaded: {shared.push_to_hub(self.repo)}")
        return 0
