"""What Hydra says of a setting that it does not take, in words that help."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra import compose
from omegaconf import OmegaConf

from isdt_policy.shared.errors import nearest


def explain(error: Exception, overrides: Sequence[str], groups: Sequence[str]) -> str:
    """One sentence for an error of Hydra.

    Args:
        error: what it raised.
        overrides: what was asked for.
        groups: names of groups of files, such as "experiment".
    """
    text = " ".join(str(error).split())
    allowed = [*_flat_keys(OmegaConf.to_container(compose("train"), resolve=False)), *groups]
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~")
        if "=" not in override:
            return f"'{override}' is not key=value, e.g. training.seed=43."
        if f"Could not override '{key}'" in text:
            if key in groups:
                break
            inside = [name for name in allowed if name.split(".")[-1] == key]  # steps -> training.steps
            hint = f" Did you mean '{inside[0]}'?" if inside else nearest(key, allowed)
            return f"unknown key '{key}'.{hint} Every key: isdt train --keys."
    group = re.search(r"Could not find '([^']+)' Available options in '([^']+)': (.*?)(?: Config search path|$)", text)
    if group:
        found = [o for o in group[3].split() if o != "schema"]
        given = group[1].split("/")[-1]
        return f"no {group[2]} named '{given}'; there are: {', '.join(found)}.{nearest(given, found)}"
    return text


def _flat_keys(node: object, prefix: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [prefix]
    return [key for name, child in node.items() for key in _flat_keys(child, f"{prefix}.{name}" if prefix else name)]
