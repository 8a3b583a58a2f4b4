"""Before and after the policy: names, batch axis, device. Numbers pass as they are; the policy normalises inside."""

from __future__ import annotations

from typing import Any

from lerobot.processor import make_default_pre_post_processors

from lerobot_policy_isdt.configuration_isdt import IsdtConfig


def make_isdt_pre_post_processors(config: IsdtConfig, dataset_stats: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """The two pipelines that LeRobot asks for."""
    return make_default_pre_post_processors(config, dataset_stats)
