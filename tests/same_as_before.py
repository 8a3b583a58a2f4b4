"""What another commit computed, and whether this checkout computes the same bits.

    python tests/same_as_before.py 30c8659          # both on this machine, then every difference by name
    python tests/same_as_before.py record out.json  # this checkout alone

A change of the house must not change a number. Bits differ between processors and versions of torch, so both sides run
here and now: the other commit is checked out beside this one and imported without being installed. Only the command line
is used, in the words of the older side, so what is compared is what users type. Needs the `dev` environment (robosuite
included) and about ten minutes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "same_as_before"
MAIN = "import sys; from isdt_policy.cli import main; sys.exit(main())"
OBJECTIVES = [
    "consistency", "consistency_discrete", "diffusion", "eulerian", "flow_matching", "isd_t", "isd_t_even", "isd_t_light",
    "isd_t_paper", "isd_t_quarter", "lagrangian", "meanflow", "mip", "progressive", "regression", "shortcut",
]  # fmt: skip
FORMATS = {"diffusion_policy": "v2.zarr.zip", "robomimic": "demos.hdf5", "lerobot": "lerobot", "minari": "minari"}


def main() -> int:
    what, *rest = sys.argv[1:] or ["--help"]
    if what in ("-h", "--help"):
        print(__doc__)
        return 0
    if what == "record":
        Path(rest[0]).write_text(json.dumps(record(ROOT), indent=1) + "\n")
        return 0
    WORK.mkdir(parents=True, exist_ok=True)
    other = WORK / "checkout"
    commit = subprocess.run(
        ["git", "rev-parse", what], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    kept = WORK / f"{commit}.json"
    if not kept.exists():
        subprocess.run(["git", "worktree", "remove", "--force", other], cwd=ROOT, capture_output=True)
        subprocess.run(["git", "worktree", "add", "--force", "--detach", other, commit], cwd=ROOT, check=True)
        kept.write_text(json.dumps(record(other), indent=1) + "\n")
        subprocess.run(["git", "worktree", "remove", "--force", other], cwd=ROOT, check=True)
    before, now = json.loads(kept.read_text()), record(ROOT)
    names = sorted(set(before) | set(now))
    different = [name for name in names if before.get(name) != now.get(name)]
    for name in different:
        print(f"differs: {name}: {before.get(name)} -> {now.get(name)}")
    print(f"{len(names) - len(different)} of {len(names)} the same as {what}")
    return 1 if different else 0


def record(checkout: Path) -> dict[str, str]:
    """Digests of what a checkout computes, by name."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        isdt = _Isdt(checkout, here)
        found: dict[str, str] = {}
        isdt("data", "generate", "task=lift_abs", "episodes=3", "out=lift.zarr", "workers=1")
        found["generate lift_abs"] = store(here / "lift.zarr")
        isdt("data", "generate", "task=pusht", "episodes=3", "out=pusht.zarr", "workers=1")
        found["generate pusht"] = store(here / "pusht.zarr")
        for task, more in {
            "pusht": ["experiment=pusht_demo", "data.path=pusht.zarr"],
            "lift": ["experiment=lift", "data.path=lift.zarr"],
        }.items():
            for objective in OBJECTIVES:
                name = f"{task}_{objective}"
                extra = ["policy.interpolant=trigonometric"] if objective == "diffusion" else []
                warm = (
                    [f"training.diagonal_steps={WARM_START.get(objective, 10)}"]
                    if objective not in NO_WARM_START
                    else []
                )
                isdt(
                    "train", *more, f"objective={objective}", f"name={name}", *extra, *warm, "training.steps=50",
                    "training.batch_size=32", "training.threads=1", "training.compile=false", "training.amp=off",
                    "training.device=cpu", "training.tensorboard=false", "network.down_dims=[16,32]",
                )  # fmt: skip
                found[f"train {name}"] = tensors(here / "outputs" / name / "checkpoints/last/policy/model.safetensors")
        for task, run in {"pusht": "pusht_isd_t", "lift": "lift_isd_t"}.items():
            isdt(
                "eval", f"checkpoint=outputs/{run}", "steps=[1,2]", "baselines=[euler10]", "episodes=20",
                f"out=eval_{task}", "report=false", "videos=0", *(["max_steps=60"] if task == "lift" else []),
            )  # fmt: skip
            found[f"eval {task}"] = episodes(here / f"eval_{task}")
            isdt(
                "eval", "policy=expert", f"task={task}", "episodes=20", f"out=expert_{task}", "report=false", "videos=0"
            )
            found[f"expert {task}"] = episodes(here / f"expert_{task}")
        isdt("export", "checkpoint=outputs/pusht_isd_t", "format=onnx", "out=policy.onnx")
        found["export onnx"] = onnx(here / "policy.onnx")
        for form, target in FORMATS.items():
            isdt("data", "convert", "pusht.zarr", target, f"to={form}")
            isdt("data", "convert", target, f"back_{form}.zarr")
            found[f"convert {form}"] = store(here / f"back_{form}.zarr")
        recordings = Path(os.environ.get("ISDT_DATA", ROOT.parent / "shared" / "data"))
        for source in sorted((recordings / "robomimic_samples").glob("*.hdf5")):
            isdt("data", "convert", str(source), f"{source.stem}.zarr", may_fail=True)
            found[f"convert {source.name}"] = store(here / f"{source.stem}.zarr")
        return found


NO_WARM_START = {"consistency", "consistency_discrete", "diffusion", "flow_matching", "mip", "regression"}
WARM_START = {"meanflow": 3000}  # longer than the run: all of its steps


class _Isdt:
    """`isdt` of a checkout, run in a folder."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self.folder, self.tree = folder, folder / "as_installed"
        as_installed(checkout, self.tree)

    def __call__(self, *args: str, may_fail: bool = False) -> None:
        env = {**os.environ, "PYTHONPATH": str(self.tree), "OMP_NUM_THREADS": "1", "MUJOCO_GL": "egl"}
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *args], cwd=self.folder, env=env, capture_output=True, text=True
        )
        print(f"isdt {' '.join(args)}: {done.returncode}", file=sys.stderr, flush=True)
        if done.returncode and not may_fail:
            raise SystemExit(f"isdt {' '.join(args)} failed:\n{done.stderr[-2000:]}")


def as_installed(checkout: Path, tree: Path) -> None:
    """The packages of a checkout, linked in the layout in which they install."""
    folders: dict[str, str] = tomllib.loads((checkout / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-dir"
    ]
    package = tree / "isdt_policy"
    package.mkdir(parents=True)
    for entry in (checkout / folders["isdt_policy"]).iterdir():
        (package / entry.name).symlink_to(entry)
    for name, path in folders.items():
        if name != "isdt_policy":
            (package / name.removeprefix("isdt_policy.")).symlink_to(checkout / path)


def digest(arrays: dict[str, Any]) -> str:
    total = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return total.hexdigest()


def tensors(path: Path) -> str:
    from safetensors.numpy import load_file

    return digest(load_file(path))


def store(path: Path) -> str:
    import zarr

    if not path.exists():
        return "absent"
    group = zarr.open_group(str(path), mode="r")
    arrays = {name: array[:] for part in ("data", "meta") if part in group for name, array in group[part].arrays()}
    if "episode_info" in arrays:  # a list in version 0.1, now an object per line: what they say is compared
        text = bytes(arrays["episode_info"]).decode()
        info = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
        arrays["episode_info"] = np.frombuffer(json.dumps(info).encode(), np.uint8)
    return digest(arrays)


def episodes(folder: Path) -> str:
    lines = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    rows = sorted((row["arm"], row["seed"], row["digest"], row["success"], row["max_reward"]) for row in lines)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def onnx(path: Path) -> str:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)
    rng = np.random.default_rng(0)
    feed = {}
    for item in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in item.shape]
        feed[item.name] = rng.standard_normal(shape).astype(np.float32)
    return digest(dict(zip((o.name for o in session.get_outputs()), session.run(None, feed))))


if __name__ == "__main__":
    shutil.rmtree(WORK / "checkout", ignore_errors=True)
    raise SystemExit(main())
