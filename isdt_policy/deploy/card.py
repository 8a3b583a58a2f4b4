"""The model card: what the policy is, what it was trained on, how often it succeeds, and the commands."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from isdt_policy import __version__
from isdt_policy.eval.result import NOT_REPORTED, Result
from isdt_policy.method.networks import network_name
from isdt_policy.method.policy import Policy
from isdt_policy.shared.tables import markdown
from isdt_policy.shared.values import JsonObject

# What such a policy is, by what its network was taught; nothing is said of a policy that is not true of it.
_KINDS = {
    "flow_map": (
        "A flow-map policy: one network evaluation answers a chunk of actions, more refine it",
        "[arXiv 2601.22679](https://arxiv.org/abs/2601.22679) describes the method",
    ),
    "velocity": ("A flow-matching policy: its velocity is integrated, in ten steps usually", ""),
    "consistency": ("A consistency policy: one network evaluation answers a chunk of actions", ""),
    "regression": ("A regression policy: it answers the mean action", ""),
    "diffusion": ("A diffusion policy: ten DDIM steps or a hundred of DDPM answer a chunk of actions", ""),
}


@dataclass(frozen=True)
class About:
    """What the weights do not say.

    Attributes:
        license: identifier, such as mit; "" leaves the choice to whoever uploads.
        data: demonstrations that it was trained on.
        command: that trained it.
        steps: of the optimiser; 0 if not known.
    """

    license: str = ""
    data: str = ""
    command: str = ""
    steps: int = 0

    @classmethod
    def of_run(cls, checkpoint: str | Path, license: str = "") -> About:
        """Read it from the run that a checkpoint belongs to, as far as there is one."""
        for folder in (Path(checkpoint), *list(Path(checkpoint).parents)[:3]):
            settings, made = _json(folder / "config.json"), _json(folder / "provenance.json")
            if isinstance(settings.get("data"), dict) and isinstance(settings.get("training"), dict):
                steps = settings["training"].get("steps", 0)
                path = str(settings["data"].get("path", ""))
                return cls(license, Path(path).name if path else "", str(made.get("command", "")), int(steps))
        return cls(license)


def _json(path: Path) -> JsonObject:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def model_card(
    policy: Policy,
    result: Result | None,
    repo: str | None = None,
    about: About = About(),
) -> str:
    """The card: task, window, data, results with intervals, the commands that made and use it."""
    config = policy.config
    what, where = _KINDS[policy.config.sampling.kind]
    name = repo or config.task or "policy"
    front = [
        "library_name: isdt-policy", "pipeline_tag: robotics",
        f"tags: [robotics, imitation-learning, diffusion-policy, {policy.config.sampling.kind.replace('_', '-')}, isdt-policy]",
        *([f"license: {about.license}"] if about.license else []), *_index(name, config.task, result),
    ]  # fmt: skip
    lines = [
        "---",
        *front,
        "---",
        "",
        f"# {name}",
        "",
        f"{what}. Made with isdt-policy {__version__}{'; ' + where if where else ''}.",
    ]
    parts = ["\n".join(lines), markdown(["", ""], _facts(policy, about)), f"## Results\n\n{_results(result)}"]
    if about.command:
        parts.append(f"## Training\n\n```sh\n{about.command}\n```")
    return "\n\n".join([*parts, _use(policy, repo)])


def _facts(policy: Policy, about: About) -> list[tuple[str, str]]:
    config = policy.config
    parameters = sum(p.numel() for p in policy.parameters())
    cameras = ", ".join(f"{key} ({'x'.join(map(str, spec.shape))} uint8)" for key, spec in config.images.items())
    observations = ", ".join(f"{key} ({size})" for key, size in config.obs_dims.items())
    rate = f"{config.recorded.rate_hz:g} Hz" if config.recorded else ""
    facts = [
        ("task", config.task or "none named"),
        ("demonstrations", about.data),
        ("observations", f"{observations or 'no states'}, {config.n_obs_steps} steps"),
        ("cameras", cameras or "none"),
        ("actions", f"{config.action_dim}, {config.action_type or 'meaning not recorded'}"),
        ("rate", rate),
        ("window", f"predicts {config.horizon} actions, executes {config.n_action_steps}"),
        ("initial noise", f"standard normal times {config.noise_scale:g}"),
        ("network", f"{network_name(config.network)}, {parameters / 1e6:.2f} M parameters, {config.interpolant} path"),
        ("training", f"{about.steps} steps" if about.steps else ""),
        ("licence", about.license or "not stated"),
    ]
    return [(name, value) for name, value in facts if value]


def _use(policy: Policy, repo: str | None) -> str:
    shapes = ", ".join(
        f"{key!r}: {(s.size,) if s.kind == 'state' else s.shape}" for key, s in policy.config.observations.items()
    )
    where = f"hub:{repo}" if repo else "FOLDER"
    simulated = f"isdt eval checkpoint={where} episodes=100\n" if policy.config.task else ""
    return f"""## Use

```sh
pip install 'isdt-policy[hub,export]'
{simulated}isdt export checkpoint={where} out=policy.onnx
```

```python
from isdt_policy.deploy.hub import HubPolicy
from isdt_policy.deploy.runtime import Runtime

runtime = Runtime(HubPolicy.from_pretrained("{repo or "FOLDER"}"))
runtime.reset(seed=0)
action = runtime.act(observation)  # {{{shapes}}}
```
"""


def _index(name: str, task: str, result: Result | None) -> list[str]:
    """Results as the hub lists them."""
    if result is None:
        return []
    metrics = []
    for arm, numbers in result.arms.items():
        rate, kind = numbers.success_rate or numbers.score, "success_rate" if numbers.success_rate else "score"
        shown = {"type": kind, "name": f"{kind}, {arm.name}", "value": round(rate.value, 4)}
        metrics.append(f"    - {json.dumps(shown)}")
    where = json.dumps({"name": task or "own", "type": task or "own"})
    head = ["model-index:", f"- name: {json.dumps(name)}", "  results:", '  - task: {"type": "robotics"}']
    return [*head, f"    dataset: {where}", "    metrics:", *metrics]


def _results(result: Result | None) -> str:
    if result is None:
        return "Not evaluated. `isdt eval checkpoint=...` measures success with intervals."
    rows = []
    for arm, numbers in result.arms.items():
        rate, score, success = numbers.success_rate, numbers.score, NOT_REPORTED
        if rate is not None:
            success = f"{100 * rate.value:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
        rows.append([arm, success, f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]", numbers.n])
    seeds = result.seeds
    return f"""{markdown(["network evaluations per chunk", "success", "score", "episodes"], rows)}

95 % intervals. Seeds {min(seeds)} to {max(seeds)} ({result.seed_purpose}), commit {result.origin.commit}.
Every episode is in eval_info.json.

```sh
{result.origin.command}
```"""
