"""Networks: every one is called as `network(x_t, t, s, cond)` and returns a tensor shaped like x_t.

x_t (batch, horizon, action_dim), t and s (batch,) in [0, 1], cond (batch, cond_dim). To add one: a file with a frozen
dataclass of its sizes, whose `build(action_dim, cond_dim, horizon)` makes it, and a line in `NETWORKS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, asdict, fields
from typing import ClassVar, Protocol

from torch import nn

from isdt_policy.method.networks.mlp import MLPConfig
from isdt_policy.method.networks.unet1d import UNet1dConfig
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.values import fitting


class NetworkConfig(Protocol):
    """The sizes of a network: a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]

    def build(self, action_dim: int, cond_dim: int, horizon: int) -> nn.Module:
        """The network with fresh weights."""
        ...


_LARGEST = 2**24  # a size beyond it is a damaged file

# name in configurations and in config.json -> sizes
NETWORKS: dict[str, type[NetworkConfig]] = {"unet1d": UNet1dConfig, "mlp": MLPConfig}


def read_network(values: Mapping[str, object]) -> NetworkConfig:
    """From {"name": ..., sizes}, as configurations and config.json hold it.

    Raises:
        InputError: an unknown network or size, with the nearest name.
    """
    name = str(values.get("name", ""))
    if name not in NETWORKS:
        raise InputError(f"network.name='{name}' is not one of {', '.join(NETWORKS)}.{nearest(name, NETWORKS)}")
    sizes = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k != "name"}
    known = [field.name for field in fields(NETWORKS[name])]
    unknown = sorted(set(sizes) - set(known))
    if unknown:
        raise InputError(
            f"network '{name}' has no '{unknown[0]}'.{nearest(unknown[0], known)} It has: {', '.join(known)}."
        )
    try:
        sizes = fitting(NETWORKS[name], sizes)
    except TypeError as error:
        raise InputError(f"network.{error}, which is of another type.") from None
    for key, value in sizes.items():
        if not value or not all(0 < number <= _LARGEST for number in (value if isinstance(value, tuple) else (value,))):
            raise InputError(
                f"network.{key}={list(value) if isinstance(value, tuple) else value}: sizes are from 1 to {_LARGEST}."
            )
    return NETWORKS[name](**sizes)


def network_name(config: NetworkConfig) -> str:
    """Its name in `NETWORKS`."""
    return next(name for name, kind in NETWORKS.items() if type(config) is kind)


def write_network(config: NetworkConfig) -> dict[str, object]:
    """The inverse of `read_network`."""
    return {"name": network_name(config), **asdict(config)}
