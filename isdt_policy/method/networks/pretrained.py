"""Trunks of other packages with weights that were trained on other pictures, where the package is installed.

The weights travel with the policy: a trained one needs the package, and nothing is downloaded again. An exported one needs neither.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.extras import require

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, on a scale of 0 to 1


def _of_timm(timm: ModuleType, name: str, pretrained: bool) -> tuple[nn.Module, Any]:
    if not timm.is_model(name):
        raise InputError(f"images.trunk=timm:{name}: timm has no such model.{nearest(name, timm.list_models())}")
    model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    told = getattr(model, "default_cfg", None) or {}
    return _Forward(model, "forward_features"), (told.get("mean", _MEAN), told.get("std", _STD))


def _of_torchvision(torchvision: ModuleType, name: str, pretrained: bool) -> tuple[nn.Module, Any]:
    models = torchvision.models
    if name not in models.list_models():
        raise InputError(
            f"images.trunk=torchvision:{name}: torchvision has no such model.{nearest(name, models.list_models())}"
        )
    model = models.get_model(name, weights="DEFAULT" if pretrained else None)
    if hasattr(model, "features"):  # mobilenet, efficientnet, convnext, densenet
        return model.features, (_MEAN, _STD)
    return nn.Sequential(*list(model.children())[:-2]), (_MEAN, _STD)  # resnet and its kin: without mean and classifier


class _Forward(nn.Module):
    """A module under another of its methods."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self._method = model, method

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = getattr(self.model, self._method)(x)
        return answer


Maker = Callable[[ModuleType, str, bool], tuple[nn.Module, Any]]
PACKAGES: dict[str, Maker] = {"timm": _of_timm, "torchvision": _of_torchvision}


def check_installed(trunk: str) -> None:
    """Refuse a trunk whose package is not there; before hours of work, and without importing it.

    Raises:
        InputError: with the command that installs it.
    """
    package = trunk.partition(":")[0]
    if package in PACKAGES and importlib.util.find_spec(package) is None:
        require(package, "vision", f"images.trunk={trunk}")


class FrozenNorm(nn.Module):
    """A BatchNorm whose statistics stay what they are: a factor and an offset per channel, which may learn.

    Averages of weights and of batch statistics do not go together, and a policy is asked for one picture at a time.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        n = norm.num_features
        self.weight = nn.Parameter(torch.ones(n) if norm.weight is None else norm.weight.detach().clone())
        self.bias = nn.Parameter(torch.zeros(n) if norm.bias is None else norm.bias.detach().clone())
        mean, variance = norm.running_mean, norm.running_var
        self.register_buffer("mean", torch.zeros(n) if mean is None else mean.detach().clone())
        self.register_buffer("variance", torch.ones(n) if variance is None else variance.detach().clone())
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        factor = self.weight / (self.variance + self.eps).sqrt()
        return x * factor[:, None, None].to(x.dtype) + (self.bias - self.mean * factor)[:, None, None].to(x.dtype)


class Pretrained(nn.Module):
    """(frames, 3, h, w) on the scale of -1 to 1 -> (frames, channels, h', w').

    Built without the weights, which a checkpoint brings; `load_pretrained` begins with those of the package.

    Args:
        trunk: "timm:NAME" or "torchvision:NAME".
        freeze: it does not learn.

    Raises:
        InputError: the package is not installed or has no such model, or the model answers with something else than a map.
    """

    scale: Tensor

    def __init__(self, trunk: str, freeze: bool) -> None:
        super().__init__()
        self._name, self._freeze = trunk, freeze
        self._build(pretrained=False)
        with torch.no_grad():
            answer = self(torch.zeros(1, 3, 64, 64))
        if answer.ndim != 4:
            raise InputError(
                f"images.trunk={trunk} answers with {answer.ndim - 1} axes a picture, not with a map (channels, height, width); "
                "take a convolutional model, such as timm:resnet18."
            )
        self.channels = answer.shape[1]

    def _build(self, pretrained: bool) -> None:
        package, _, name = self._name.partition(":")
        try:
            module = require(package, "vision", f"images.trunk={self._name}")
            model, (mean, std) = PACKAGES[package](module, name, pretrained)
        except (OSError, RuntimeError) as error:  # no network, or a package that was built for another PyTorch
            what = "weights" if pretrained else "network"
            raise InputError(
                f"the {what} of {self._name} cannot be loaded ({(str(error) or type(error).__name__).splitlines()[0]})."
            ) from error
        self.model = _without_batch_norm(model).requires_grad_(not self._freeze)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # Its own constants in the place of ours, computed from ours, so that no picture is scaled twice.
        scale = [(0.5 / s, (0.5 - m) / s) for m, s in zip(mean, std)]
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32).T.contiguous())

    def load_pretrained(self) -> None:
        """Begin with the weights of the package, which may download them.

        Raises:
            InputError: they cannot be had.
        """
        self._build(pretrained=True)

    def forward(self, x: Tensor) -> Tensor:
        factor, offset = self.scale.to(x.dtype)[:, :, None, None]
        answer: Tensor = self.model(x * factor + offset)
        return answer


def _without_batch_norm(module: nn.Module) -> nn.Module:
    """The same with every BatchNorm frozen."""
    if isinstance(module, nn.BatchNorm2d):
        frozen: nn.Module = FrozenNorm(module)
        # timm joins the activation to its norms.
        after = [
            getattr(module, part) for part in ("drop", "act") if isinstance(getattr(module, part, None), nn.Module)
        ]
        return nn.Sequential(frozen, *after) if after else frozen
    for name, child in module.named_children():
        setattr(module, name, _without_batch_norm(child))
    return module
