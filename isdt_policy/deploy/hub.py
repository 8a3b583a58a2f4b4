"""Policies on the Hugging Face Hub: a folder with weights, configuration, limits and a card made from an evaluation.

Functions beside the policy rather than a mixin in it: the policy's own save_pretrained and from_pretrained keep their
signatures, and the core does not depend on the hub's client. Only safetensors and JSON travel.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from isdt_policy import __version__
from isdt_policy.deploy.safety import Limits
from isdt_policy.errors import InputError
from isdt_policy.policy import Policy, find_policy

FILES = ("config.json", "model.safetensors")


def build_folder(
    checkpoint: str | Path,
    out: str | Path,
    *,
    limits: Limits | None = None,
    results: str | Path | None = None,
    repo: str | None = None,
) -> Path:
    """Write what `push` uploads: config.json, model.safetensors, limits.json, README.md, eval_info.json if there is one.

    Args:
        checkpoint: run directory, checkpoint or folder of save_pretrained.
        out: new or empty folder.
        limits: of the commands.
        results: eval_info.json; None takes <checkpoint>/eval/eval_info.json if that is there.
        repo: name on the hub, for the card's commands.

    Raises:
        InputError: no policy there, a folder that is not empty, results of other weights.
    """
    from isdt_policy.eval.command import checkpoint_hash

    source, out = find_policy(checkpoint), Path(out)
    policy = Policy.from_pretrained(source)  # refuses what would not load again
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty; give a new folder: out=PATH.")
    info_path = Path(checkpoint) / "eval" / "eval_info.json" if results is None else Path(results)
    info: dict[str, Any] | None = None
    if info_path.is_file():
        info = json.loads(info_path.read_text())
        if info is not None and info["policy"]["fingerprint"] != checkpoint_hash(str(source)):
            if results is not None:
                raise InputError(f"{info_path} is an evaluation of other weights than those at {source}.")
            info = None
    elif results is not None:
        raise InputError(f"no results at '{info_path}'. Make some: isdt eval checkpoint={checkpoint}")
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(source / name, out / name)
    if limits is not None:
        limits.save(out)
    if info is not None:
        shutil.copyfile(info_path, out / "eval_info.json")
    (out / "README.md").write_text(model_card(policy, info, repo))
    return out


def model_card(policy: Policy, info: dict[str, Any] | None, repo: str | None = None) -> str:
    """Return the card: task, window, results with intervals, the commands that made and use it."""
    config = policy.config
    name = repo or "FOLDER"
    parameters = sum(p.numel() for p in policy.parameters())
    lines = [
        "---",
        "library_name: isdt-policy",
        "pipeline_tag: robotics",
        "tags: [robotics, imitation-learning, diffusion-policy, flow-map, isdt-policy]",
        "---",
        "",
        f"# {name if repo else config.task or 'policy'}",
        "",
        "A one-step diffusion policy, trained from scratch by improved self-distillation of flow maps "
        "([arXiv 2601.22679](https://arxiv.org/abs/2601.22679)) with isdt-policy "
        f"{__version__}.",
        "",
        "| | |",
        "|---|---|",
        f"| task | {config.task or 'none named'} |",
        f"| observations | {', '.join(f'{key} ({dim})' for key, dim in config.obs_dims.items())}, {config.n_obs_steps} steps |",
        f"| actions | {config.action_dim}, {config.action_type or 'meaning not recorded'} |",
        f"| window | predicts {config.horizon} actions, executes {config.n_action_steps} |",
        f"| network | {config.network['name']}, {parameters / 1e6:.2f} M parameters, {config.interpolant} path |",
        "",
        "## Results",
        "",
    ]
    if info is None:
        lines.append("Not evaluated. `isdt eval checkpoint=...` measures success with intervals.")
    else:
        lines += ["| network evaluations per chunk | success | score | episodes |", "|---|---|---|---|"]
        for arm, s in info["arms"].items():
            rate, score = s["success_rate"], s["score"]
            lines.append(
                f"| {arm} | {100 * rate['value']:.0f} % [{100 * rate['low']:.0f}, {100 * rate['high']:.0f}] | "
                f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}] | {s['n']} |"
            )
        seeds = info["seeds"]
        lines += [
            "",
            f"95 % intervals. Seeds {min(seeds)} to {max(seeds)} ({info['seed_purpose']}), commit {info['commit']}.",
            "Every episode is in eval_info.json.",
            "",
            "```sh",
            info["command"],
            "```",
        ]
    lines += [
        "",
        "## Use",
        "",
        "```python",
        "from isdt_policy.deploy.hub import from_hub",
        "from isdt_policy.deploy.runtime import Runtime",
        "",
        f'runtime = Runtime(from_hub("{name}"))',
        "runtime.reset(seed=0)",
        f"action = runtime.act(observation)  # {{{', '.join(f'{key!r}: ({dim},)' for key, dim in config.obs_dims.items())}}}",
        "```",
        "",
    ]
    return "\n".join(lines)


def push(folder: str | Path, repo: str, *, private: bool = True) -> str:
    """Upload a folder made by `build_folder` and return its address. Needs a token (`hf auth login`).

    Raises:
        InputError: huggingface_hub is missing, or the hub refuses.
    """
    hub = _client()
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        return str(
            hub.upload_folder(repo_id=repo, folder_path=str(folder), commit_message=f"isdt-policy {__version__}")
        )
    except (
        hub.errors.HfHubHTTPError,
        hub.errors.HFValidationError,
        hub.errors.LocalTokenNotFoundError,
        OSError,
    ) as error:
        raise InputError(f"upload to '{repo}' failed: {str(error).splitlines()[0]}") from error


def from_hub(repo: str, *, revision: str | None = None) -> Policy:
    """Load a policy from the hub, or from a local folder of the same layout.

    Raises:
        InputError: no such repository, or it holds no policy.
    """
    if Path(repo).is_dir():
        return Policy.from_pretrained(repo)
    hub = _client()
    try:
        folder = hub.snapshot_download(repo, revision=revision, allow_patterns=[*FILES, "limits.json"])
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
        raise InputError(f"'{repo}' cannot be loaded from the hub: {str(error).splitlines()[0]}") from error
    return Policy.from_pretrained(folder)


def _client() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise InputError("the hub needs huggingface_hub: pip install 'isdt-policy[hub]'") from error
    return huggingface_hub
