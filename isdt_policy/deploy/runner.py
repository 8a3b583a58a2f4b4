"""An exported policy on ONNX Runtime: what a robot's computer runs. It imports neither torch nor any training code.

Example:
    policy = OnnxPolicy("policy.onnx")
    runtime = Runtime(policy)               # isdt_policy.deploy.runtime
    action = runtime.act({"agent_pos": ..., "keypoints": ...})
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.extras import require
from isdt_policy.shared.looks import Looks
from isdt_policy.shared.pixels import check_bytes, check_layout, fitted
from isdt_policy.shared.values import Json

VERSIONS = (2, 3)  # 3 is 2 with pictures
METADATA = "isdt_policy"
DIGEST = "isdt_policy_sha256"
ZEROS = "sha256:" + 64 * "0"
Inputs = dict[str, NDArray[np.generic]]


def check_digest(data: bytes, name: str = "file") -> None:
    """Refuse an ONNX file whose bytes are not those that were exported.

    Raises:
        InputError: changed bytes, or a file that `isdt export` did not write.
    """
    found = list(re.finditer(rb"sha256:[0-9a-f]{64}", data))
    if DIGEST.encode() not in data or len(found) != 1:
        raise InputError(f"{name} is not a policy written by isdt export, or is damaged: it holds no digest.")
    start, end = found[0].span()
    actual = hashlib.sha256(data[:start] + ZEROS.encode() + data[end:]).hexdigest()
    if actual.encode() != data[start + 7 : end]:
        raise InputError(
            f"{name} is damaged or was changed: its SHA-256 is not the one it was written with. Export it again."
        )


def _size(value: object) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise ValueError(f"{value!r} is no size")
    return value


class OnnxPolicy:
    """Satisfies `isdt_policy.envs.protocol.Policy`; the number of evaluations is fixed in the file.

    Args:
        path: file written by `isdt export format=onnx`.
        threads: threads of one inference; small networks are fastest with one or two.
        providers: onnxruntime's execution providers, in order of preference.

    Attributes:
        metadata: what the file says of itself (see `isdt_policy.deploy.export.describe`).

    Raises:
        InputError: onnxruntime is missing; the file is missing, damaged, changed, or of another format.
    """

    def __init__(
        self, path: str | Path, *, threads: int = 1, providers: tuple[str, ...] = ("CPUExecutionProvider",)
    ) -> None:
        onnxruntime = require("onnxruntime", "runtime", "ONNX policies")
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        check_digest(data, str(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Spinning threads win microseconds and take a core from the simulator or the robot's drivers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=list(providers))
            self.metadata: Json = json.loads(self._session.get_modelmeta().custom_metadata_map[METADATA])
            self._read(self.metadata, str(path))
        except InputError:
            raise
        except Exception as error:  # ONNX Runtime has many classes, none of which is public
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise InputError(f"{path} is not what isdt export writes ({reason}). Export it again.") from error

    def _read(self, m: Json, path: str) -> None:
        if m["format"] not in VERSIONS:
            raise InputError(f"{path}: exported format {m['format']}, this version reads 2 and 3.")
        self.obs_dims = {str(key): _size(value) for key, value in m["obs_dims"].items()}
        self.image_shapes = {key: tuple(map(_size, entry["shape"])) for key, entry in m.get("images", {}).items()}
        pictures = m.get("images", {}).items()
        self.image_sources = {k: tuple(map(_size, entry["source"])) for k, entry in pictures if entry.get("source")}
        self.image_looks = {key: looks for key, entry in pictures if (looks := Looks.read(entry.get("looks")))}
        self.obs_keys = (*self.obs_dims, *self.image_shapes)
        self.n_obs_steps, self.n_action_steps, self.horizon = (
            _size(m[name]) for name in ("n_obs_steps", "n_action_steps", "horizon")
        )
        self.action_dim, self.task, self.nfe = _size(m["action_dim"]), m["task"], m["steps"]
        expected = ((_size(m["noise_draws"]),) if m["noise_draws"] else ()) + (self.horizon, self.action_dim)
        noise = next(tuple(given.shape[1:]) for given in self._session.get_inputs() if given.name == "noise")
        if noise != expected:  # before so many numbers are drawn
            raise ValueError(f"it takes noise of {noise} and says {expected}")
        if m["noise_draws"]:
            self.continue_action = self._continue_action

    def reset(self) -> None:
        """Nothing to forget."""

    def predict_action(
        self,
        obs: Mapping[str, NDArray[np.generic]],
        *,
        nfe: int | str | None = None,
        noise_seeds: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Action chunks for a batch of observation histories {key: (batch, n_obs_steps, d)}.

        Args:
            nfe: the number in the file, or None.
            noise_seeds: (batch, 2) integers; the same noise as the trained policy draws from them. None draws fresh.

        Raises:
            InputError: another nfe than the file's, a missing key, a wrong shape, NaN.
        """
        inputs, batch = self._inputs(obs, nfe)
        draws = self.metadata["noise_draws"]
        shape = (self.horizon, self.action_dim)
        inputs["noise"] = self._noise(batch, noise_seeds, ((draws,) if draws else ()) + shape)
        if draws:
            inputs["known"] = np.zeros((batch, *shape), np.float32)
            inputs["weight"] = np.zeros((batch, self.horizon), np.float32)
        return self._run(inputs)

    def _continue_action(
        self,
        obs: Mapping[str, NDArray[np.generic]],
        known: NDArray[np.floating],
        weight: NDArray[np.floating],
        *,
        nfe: int | str | None = None,
        noise_seeds: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """See `isdt_policy.deploy.freezing.PrefixPolicy.continue_action`; only in files exported with prefix=true."""
        inputs, batch = self._inputs(obs, nfe)
        shape = (self.horizon, self.action_dim)
        inputs["noise"] = self._noise(batch, noise_seeds, (self.metadata["noise_draws"], *shape))
        inputs["known"], inputs["weight"] = np.asarray(known, np.float32), np.asarray(weight, np.float32)
        if inputs["known"].shape != (batch, *shape) or inputs["weight"].shape != (batch, self.horizon):
            raise InputError(
                f"known {np.shape(known)} or weight {np.shape(weight)} do not fit ({batch}, {self.horizon})."
            )
        return self._run(inputs)

    def _run(self, inputs: Inputs) -> dict[str, NDArray[np.float32]]:
        try:
            pred = np.asarray(self._session.run(["action_pred"], inputs)[0], np.float32)
        except Exception as error:  # of a file that says of itself what is not so
            raise InputError(f"the exported policy cannot be run: {' '.join(str(error).split())[:200]}") from error
        if pred.ndim != 3 or pred.shape[1:] != (self.horizon, self.action_dim):
            raise InputError(
                f"the exported policy answers {pred.shape}, and says (batch, {self.horizon}, {self.action_dim})."
            )
        first = self.n_obs_steps - 1
        return {"action": pred[:, first : first + self.n_action_steps], "action_pred": pred}

    def _inputs(self, obs: Mapping[str, object], nfe: int | str | None) -> tuple[Inputs, int]:
        if nfe is not None and str(nfe) != self.nfe:
            raise InputError(f"nfe={nfe}: this file was exported with nfe={self.nfe}; export another for {nfe}.")
        inputs: Inputs = {}
        batch = None
        shapes: dict[str, tuple[int, ...]] = {
            **{key: (dim,) for key, dim in self.obs_dims.items()},
            **self.image_shapes,
        }
        for key, shape in shapes.items():
            if key not in obs:
                raise InputError(f"the policy reads observation '{key}', given: {', '.join(obs)}.{nearest(key, obs)}")
            value = np.asarray(obs[key])
            if key in self.image_shapes:
                value = fitted(value, shape, self.image_sources.get(key))
                check_layout(value.shape[2:], key, shape)
                check_bytes(value.dtype, key)
            else:
                value = np.asarray(value, np.float32)
            if value.shape[1:] != (self.n_obs_steps, *shape) or batch not in (None, value.shape[0]):
                one = ", ".join(map(str, shape))
                raise InputError(
                    f"observation '{key}' has shape {value.shape}, expected (batch, n_obs_steps={self.n_obs_steps}, {one})."
                )
            if not np.isfinite(value).all():
                raise InputError(f"observation '{key}' holds NaN or infinity; the policy will not act on it.")
            inputs[f"obs.{key}"], batch = value, value.shape[0]
        if not batch:
            raise InputError("predict_action was given an empty batch.")
        return inputs, batch

    def _noise(self, batch: int, seeds: NDArray[np.int64] | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if seeds is None:
            return np.random.default_rng().standard_normal((batch, *shape), dtype=np.float32)
        seeds = np.asarray(seeds)
        if seeds.shape != (batch, 2):
            raise InputError(f"noise_seeds has shape {seeds.shape}, expected ({batch}, 2).")
        return np.stack(
            [
                np.random.default_rng([abs(int(n)) for n in row]).standard_normal(shape, dtype=np.float32)
                for row in seeds
            ]
        )
