"""From pictures to features: a convolutional network for every camera, or one for all of them.

Nothing here is normalised by batch: averages of weights and of batch statistics do not go together. Pictures come in as bytes and
are scaled by a constant inside the module, so that no caller can forget it or do it twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.method.networks.pretrained import PACKAGES, Pretrained
from isdt_policy.shared.errors import InputError, at_least, nearest


@dataclass(frozen=True)
class ImageEncoderConfig:
    """How pictures are read, by policies that read any.

    Attributes:
        trunk: "conv", four convolutions, or "resnet", ResNet18 (He et al., arXiv 1512.03385) with GroupNorm. "timm:NAME" and
            "torchvision:NAME" begin with that model's pretrained weights, where the package is installed.
        width: factor of the trunk's channels; 1 is 0.25 M parameters for conv and 11.2 M for resnet.
        head: "keypoints" reads where each of some feature maps is bright (spatial softmax, Finn et al., arXiv 1509.06113);
            "pool" takes the mean of every map, which tells what is seen better than where.
        keypoints: feature maps of that head.
        features: numbers per frame and camera.
        crop: share of each side that is read, 0 to 1: a random place in training, the same for all frames of a window, and the
            middle otherwise. 0.875 of 96 pixels are 84.
        shared: one network for all cameras, not one for each.
        freeze: leave a pretrained trunk as it is; what follows it learns. Otherwise it learns at training.trunk_lr times the rate.
        jitter: in training change brightness, contrast and the share of each colour by up to so much, 0 to 1, the same for all
            frames of a window. For cameras in changing light; a simulator's light is always the same.
    """

    trunk: str = "conv"
    width: float = 1.0
    head: str = "keypoints"
    keypoints: int = 32
    features: int = 64
    crop: float = 0.875
    shared: bool = False
    freeze: bool = False
    jitter: float = 0.0

    def __post_init__(self) -> None:
        own = () if self.pretrained else (("trunk", self.trunk, TRUNKS),)
        for name, value, known in (*own, ("head", self.head, ("keypoints", "pool"))):
            if value not in known:
                raise InputError(f"images.{name}='{value}' is not one of {', '.join(known)}.{nearest(value, known)}")
        at_least(1, **{"images.keypoints": self.keypoints, "images.features": self.features})
        if not 0 < self.crop <= 1:
            raise InputError(f"images.crop must be above 0 and at most 1, got {self.crop}.")
        if not 0.05 <= self.width <= 8:
            raise InputError(f"images.width must be from 0.05 to 8, got {self.width}.")
        if not 0 <= self.jitter <= 1:
            raise InputError(f"images.jitter must be from 0 to 1, got {self.jitter}.")
        if self.freeze and not self.pretrained:
            raise InputError(
                f"images.freeze is for pretrained trunks such as timm:resnet18; images.trunk={self.trunk} begins untrained."
            )
        if self.pretrained and self.width != 1:
            raise InputError(
                f"images.width={self.width:g}: a pretrained trunk has the width that it was trained with; leave it out."
            )

    @property
    def pretrained(self) -> bool:
        """Whether the trunk is another package's, with weights that were trained on other pictures."""
        return self.trunk.startswith(tuple(f"{package}:" for package in PACKAGES))

    def seen(self, shape: tuple[int, ...], name: str) -> ObsSpec:
        """The observation of a camera whose pictures have this shape, (height, width, 3).

        Raises:
            InputError: what is left after the crop is smaller than what the trunk reduces to one point.
        """
        height, width = (max(1, round(side * self.crop)) for side in shape[:2])
        needed = 64 if self.pretrained else 2 * TRUNKS[self.trunk].stride
        if min(height, width) < needed:
            raise InputError(
                f"'{name}' has pictures of {shape[0]}x{shape[1]} px, of which images.crop={self.crop:g} leaves {height}x{width}; "
                f"images.trunk={self.trunk} needs {needed}. Use images.trunk=conv or a larger crop."
            )
        return ObsSpec((shape[0], shape[1], 3), "image", "uint8", crop=(height, width))


def _norm(channels: int) -> nn.GroupNorm:
    groups = max(1, channels // 16)
    return nn.GroupNorm(groups if channels % groups == 0 else 1, channels)


def _scaled(width: float, *channels: int) -> list[int]:
    return [max(1, round(width * n)) for n in channels]


class ConvTrunk(nn.Sequential):
    """Four convolutions: (frames, 3, h, w) -> (frames, channels, h / 8, w / 8)."""

    stride = 8

    def __init__(self, width: float) -> None:
        layers: list[nn.Module] = []
        before = 3
        for channels, kernel, stride in zip(_scaled(width, 32, 64, 128, 128), (5, 3, 3, 3), (2, 2, 2, 1)):
            convolution = nn.Conv2d(before, channels, kernel, stride, kernel // 2, bias=False)
            layers += [convolution, _norm(channels), nn.ReLU()]
            before = channels
        super().__init__(*layers)
        self.channels = before


class _Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(_norm(channels) for _ in range(2))
        self.shortcut = nn.Identity() if before == channels and stride == 1 else nn.Sequential(
            nn.Conv2d(before, channels, 1, stride, bias=False), _norm(channels)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(h)) + self.shortcut(x))


class ResNetTrunk(nn.Sequential):
    """ResNet18 without its classifier: (frames, 3, h, w) -> (frames, channels, h / 32, w / 32)."""

    stride = 32

    def __init__(self, width: float) -> None:
        sizes = _scaled(width, 64, 128, 256, 512)
        layers: list[nn.Module] = [
            nn.Conv2d(3, sizes[0], 7, 2, 3, bias=False), _norm(sizes[0]), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        ]  # fmt: skip
        before = sizes[0]
        for channels, stride in zip(sizes, (1, 2, 2, 2)):
            layers += [_Block(before, channels, stride), _Block(channels, channels, 1)]
            before = channels
        super().__init__(*layers)
        self.channels = before


TRUNKS: dict[str, type[ConvTrunk | ResNetTrunk]] = {"conv": ConvTrunk, "resnet": ResNetTrunk}


class Keypoints(nn.Module):
    """Spatial softmax: (frames, channels, h, w) -> (frames, 2 maps), the mean place of each map, in [-1, 1] across the picture."""

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.maps = nn.Conv2d(channels, maps, 1)

    def forward(self, x: Tensor) -> Tensor:
        # In float32 whatever the trunk ran in: bfloat16 would round a place to a pixel.
        logits = F.conv2d(x.to(self.maps.weight.dtype), self.maps.weight, self.maps.bias)
        height, width = logits.shape[-2:]
        share = logits.flatten(2).softmax(dim=-1).unflatten(2, (height, width))
        rows, columns = (torch.linspace(-1, 1, n, dtype=share.dtype, device=share.device) for n in (height, width))
        return torch.cat([(share.sum(2) * columns).sum(-1), (share.sum(3) * rows).sum(-1)], dim=-1)


class CameraEncoder(nn.Module):
    """Frames of one camera -> features: (frames, h, w, 3) bytes -> (frames, features)."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        trunk = Pretrained(config.trunk, config.freeze) if config.pretrained else TRUNKS[config.trunk](config.width)
        self.trunk, channels = trunk, trunk.channels
        self.keypoints = Keypoints(channels, config.keypoints) if config.head == "keypoints" else None
        self.out = nn.Linear(2 * config.keypoints if config.head == "keypoints" else channels, config.features)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPUs

    def forward(self, frames: Tensor, bf16: bool = False, tint: Tensor | None = None) -> Tensor:
        dtype = self.out.weight.dtype
        x = frames.movedim(-1, 1).to(dtype) / 127.5 - 1  # the only scale: 0 to 255 -> -1 to 1
        if tint is not None:
            x = (x * tint[:, 0, :, None, None] + tint[:, 1, :, None, None]).clamp(-1, 1)
        with torch.autocast(x.device.type, torch.bfloat16) if bf16 else nullcontext():
            x = self.trunk(x)
        x = self.keypoints(x) if self.keypoints is not None else x.to(dtype).mean(dim=(2, 3))
        return self.out(x)


@dataclass(frozen=True)
class Look:
    """How pictures are looked at.

    Attributes:
        corners: per camera (batch, 2) the first row and column of the part that is read; without them the middle.
        tints: per camera (batch, 2, 3) factor and offset of red, green and blue, on the scale of -1 to 1; without them none.
        bf16: run the convolutions, and them alone, in bfloat16.
    """

    corners: Mapping[str, Tensor] = field(default_factory=dict)
    tints: Mapping[str, Tensor] = field(default_factory=dict)
    bf16: bool = False


PLAIN = Look()


class Cameras(nn.Module):
    """All cameras of a policy: {key: (batch, n_obs_steps, height, width, 3)} bytes -> (batch, n_features).

    Args:
        cameras: observations of kind "image", with their crops.
        n_obs_steps: frames in a history.
        config: the networks.
    """

    def __init__(self, cameras: Mapping[str, ObsSpec], n_obs_steps: int, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.cameras, self.jitter = dict(cameras), config.jitter
        self.encoders = nn.ModuleList(CameraEncoder(config) for _ in range(1 if config.shared else len(cameras)))
        self.n_features = n_obs_steps * len(cameras) * config.features

    def forward(self, obs: Mapping[str, Tensor], look: Look = PLAIN) -> Tensor:
        """Features of all frames, one camera after another.

        Args:
            obs: the pictures.
            look: how they are looked at.
        """
        features = []
        for number, (key, spec) in enumerate(self.cameras.items()):
            part = cropped(obs[key], spec.crop or spec.shape[:2], look.corners.get(key))
            tint = look.tints[key].repeat_interleave(part.shape[1], dim=0) if key in look.tints else None
            encoder = self.encoders[number % len(self.encoders)]
            features.append(encoder(part.flatten(0, 1), look.bf16, tint).unflatten(0, part.shape[:2]).flatten(1))
        return torch.cat(features, dim=-1)

    def load_pretrained(self) -> None:
        """Begin with the weights of other packages, where a trunk is theirs; see `Pretrained`."""
        for trunk in self.trunks():
            if isinstance(trunk, Pretrained):
                trunk.load_pretrained()

    def trunks(self) -> list[nn.Module]:
        """The convolutional part of every encoder."""
        return [encoder.trunk for encoder in self.encoders if isinstance(encoder, CameraEncoder)]

    def draw_corners(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Places of the crop for training, (batch, 2) per camera, each of all possible ones equally likely; see `Look`."""
        corners = {}
        for key, spec in self.cameras.items():
            room = [side - part + 1 for side, part in zip(spec.shape, spec.crop or spec.shape)]
            corners[key] = torch.stack([torch.randint(n, (batch,), generator=generator) for n in room[:2]], dim=1)
        return corners

    def draw_tints(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Changes of the light for training, (batch, 2, 3) per camera; nothing without `jitter`. See `Look`."""
        if not self.jitter:
            return {}
        tints = {}
        for key in self.cameras:
            contrast, colour, light = (2 * torch.rand(batch, n, generator=generator) - 1 for n in (1, 3, 1))
            factors = (1 + self.jitter * contrast) * (1 + self.jitter / 2 * colour)
            tints[key] = torch.stack([factors, (self.jitter * light).expand(-1, 3)], dim=1)
        return tints


def cropped(frames: Tensor, size: Sequence[int], corners: Tensor | None = None) -> Tensor:
    """A part (height, width) of every frame (batch, n_obs_steps, H, W, 3): the middle, or for each window at its own corner."""
    height, width = size
    if corners is None:
        top, left = ((side - part) // 2 for side, part in zip(frames.shape[2:4], size))
        return frames[:, :, top : top + height, left : left + width]
    return torch.stack(
        [window[:, top : top + height, left : left + width] for window, (top, left) in zip(frames, corners.tolist())]
    )
