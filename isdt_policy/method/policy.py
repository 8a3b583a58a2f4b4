"""The policy users hold: observation history, normaliser, network and sampler in one object that saves and loads.

Timeline of one prediction (n_obs_steps To = 2, horizon T = 16, n_action_steps Ta = 8), as in Diffusion Policy:

    observations   o o
    predicted      a a a a a a a a a a a a a a a a      "action_pred": T actions; the first belongs to the oldest observation
    executed         a a a a a a a a                    "action": [To - 1 : To - 1 + Ta], the first belongs to the newest
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn

from isdt_policy.method import from_hub
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import INTERPOLANTS
from isdt_policy.method.networks.image_encoder import PLAIN, Cameras, Look
from isdt_policy.method.networks.obs_encoder import StateEncoder
from isdt_policy.method.networks.preconditioning import Preconditioned
from isdt_policy.method.normalization import Normalizer
from isdt_policy.method.observed import observed
from isdt_policy.method.policy_config import PolicyConfig
from isdt_policy.method.policy_files import find_policy as find_policy
from isdt_policy.method.policy_files import read_policy, sha256
from isdt_policy.method.policy_files import weights_sha256 as weights_sha256
from isdt_policy.method.replay import Replay
from isdt_policy.method.samplers import Plan, plan
from isdt_policy.method.shapes import Chunks, Embeddings, no_type_check
from isdt_policy.shared.errors import InputError, at_least
from isdt_policy.shared.values import parse_json

# A matrix product chooses its algorithm by the number of rows, and algorithms differ in the last bits. With a fixed number of
# rows an episode's actions do not depend on how many others are evaluated beside it.
INFERENCE_ROWS = 16


class Policy(nn.Module):
    """A few-step policy. Satisfies `isdt_policy.envs.protocol.Policy`.

    Args:
        config: what to build.
        inference_rows: rows of every network call of `predict_action`. Smaller batches are filled up to it and larger ones cut, so
            that the bits of a row's answer do not depend on the rows beside it.
        normalizer: fitted to the training data; None makes one that has to be fitted or loaded before the policy acts.

    Example:
        policy = Policy.from_pretrained("outputs/pusht_demo")
        policy.reset()
        chunk = policy.predict_action({"agent_pos": history, "keypoints": ...}, nfe=1)["action"]

    Attributes:
        fingerprint: `weights_sha256` of the files that a policy was loaded from; "" for one that was not loaded.
    """

    fingerprint = ""

    def __init__(
        self, config: PolicyConfig, inference_rows: int = INFERENCE_ROWS, normalizer: Normalizer | None = None
    ) -> None:
        super().__init__()
        at_least(1, inference_rows=inference_rows)
        self.config = config
        self._inference_rows = inference_rows
        self._replays: dict[str, Replay] = {}
        path = INTERPOLANTS[config.interpolant]()
        core = config.network.build(config.action_dim, config.cond_dim, config.horizon)
        self.network = Preconditioned(core, path, config.sigma_data, config.precondition)
        self.cameras = Cameras(config.images, config.n_obs_steps, config.image_encoder) if config.images else None
        self.encoder = StateEncoder(
            config.obs_dims,
            config.n_obs_steps,
            config.cond_dim,
            config.encoder_hidden,
            config.encoder_octaves,
            extra=self.cameras.n_features if self.cameras is not None else 0,
        )
        self.null = nn.Parameter(torch.zeros(config.cond_dim))
        self.normalizer = normalizer or Normalizer(
            config.obs_dims, config.horizon, config.action_dim, config.action_reference
        )
        self.flow_map = FlowMap(self.network, path)
        self.sampling = config.sampling

    # What evaluation reads.

    @property
    def n_obs_steps(self) -> int:
        """Observations that the policy sees at once, the newest last."""
        return self.config.n_obs_steps

    @property
    def n_action_steps(self) -> int:
        """Actions of a prediction that are executed before the policy is asked again."""
        return self.config.n_action_steps

    @property
    def noise_scale(self) -> float:
        """Scale of the initial noise, 0 to 1."""
        return self.config.noise_scale

    @property
    def horizon(self) -> int:
        """Control steps that the network predicts at once."""
        return self.config.horizon

    @property
    def obs_keys(self) -> tuple[str, ...]:
        """Keys of the observations that the policy reads."""
        return tuple(self.config.observations)

    @property
    def task(self) -> str:
        """Id of the task that it was trained on; "" if none is known."""
        return self.config.task

    @property
    def inference_rows(self) -> int:
        """Rows of every network call of `predict_action`."""
        return self._inference_rows

    @property
    def computes_on(self) -> str:
        """The GPU's name, or the kind of another device. With the rows of a call it decides about the last bits of answers."""
        device = self.null.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    # Acting.

    def alone(self) -> Policy:
        """The same policy for one robot: the same modules and weights, one row a network call.

        It saves the work on rows that nobody asked for. The last bits of its answers differ from those of the policy that
        evaluations use.
        """
        return self.freeze(rows=1)

    @torch.inference_mode()
    def freeze(self, *nfe: int | str, rows: int = 1) -> Policy:
        """The same policy, ready for calls of so many rows: the same modules and weights, and on a GPU one launch a call.

        A GPU records what it does for each of `nfe` (a CUDA graph) and replays it: some hundreds of launches cost more than what
        they start. A CPU computes as ever. So do other values of nfe, and samplers that draw on the way or belong to diffusion
        policies. Weights may be changed in place later; a frozen policy is not moved to another device.

        Args:
            nfe: ways in which it will be asked, see `predict_action`.
            rows: of every network call, see `inference_rows`. With another number the last bits of answers are others.

        Raises:
            InputError: an nfe that is unknown or does not suit this policy, or rows below 1.
        """
        at_least(1, rows=rows)
        policy = copy.copy(self)
        policy._inference_rows, policy._replays = rows, {}
        for asked in nfe:
            chosen = self.plan(asked)
            if not chosen.stochastic and self.sampling.kind != "diffusion":
                policy._replays[str(asked)] = Replay(partial(self._recorded, chosen), self.blank(rows))
        return policy

    def _recorded(self, chosen: Plan, given: Sequence[Tensor]) -> Tensor:
        """What a GPU records: from observations, in the order of the configuration, and noise to actions."""
        *seen, noise = given
        return self._answer(chosen, dict(zip(self.config.observations, seen)), noise, [])

    def blank(self, rows: int) -> list[Tensor]:
        """Inputs of `_recorded` that say nothing."""
        device, seen = self.null.device, self.config.observations.values()
        one = [spec.shape if spec.kind == "image" else (spec.size,) for spec in seen]
        shapes = [((rows, self.n_obs_steps, *shape), getattr(torch, spec.dtype)) for shape, spec in zip(one, seen)]
        shapes.append(((rows, self.horizon, self.config.action_dim), torch.float32))
        return [torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in shapes]

    def acting(self, n_action_steps: int | None = None, noise_scale: float | None = None) -> Policy:
        """The same policy with another way of acting; None keeps what the configuration says.

        Args:
            n_action_steps: actions executed of each chunk.
            noise_scale: scale of the initial noise.

        Raises:
            InputError: a value that does not fit, see `PolicyConfig`.
        """
        given = {"n_action_steps": n_action_steps, "noise_scale": noise_scale}
        changes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        policy = copy.copy(self)
        policy.config = dataclasses.replace(self.config, **changes)
        policy._replays = {}
        return policy

    def reset(self) -> None:
        """Forget earlier episodes. The policy itself keeps no history: callers hand it in with every call."""

    def encode(self, obs: Mapping[str, Tensor], look: Look = PLAIN) -> Embeddings:
        """Embedding of raw observation histories {key: (batch, n_obs_steps, d)} -> (batch, cond_dim).

        Args:
            obs: states, and pictures as bytes (batch, n_obs_steps, height, width, 3).
            look: how pictures are looked at; as a policy that acts does, unless training says otherwise.
        """
        seen = None if self.cameras is None else self.cameras(obs, look)
        return self.encoder(self.normalizer.normalize_obs(obs), seen)

    @no_type_check
    @torch.inference_mode()
    def predict_action(
        self,
        obs: Mapping[str, NDArray[np.generic] | Tensor],
        *,
        nfe: int | str = 1,
        noise_seeds: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Action chunks for a batch of observation histories; see `isdt_policy.envs.protocol.Policy`.

        Args:
            obs: {key: (batch, n_obs_steps, d)} in the environment's units, pictures as bytes (batch, n_obs_steps, height, width,
                3). Keys beyond `obs_keys` are ignored.
            nfe: 1, 2, ... composes the flow map; "euler10", "heun5", "restart2" are baselines of the same network. For
                policies of other kinds see `samplers.plan`; a diffusion policy takes "ddim10", "ddpm100".
            noise_seeds: (batch, 2) integers; row i's noise is a function of row i alone. None draws fresh noise.

        Raises:
            InputError: a missing key, a wrong shape, NaN, or an nfe that is unknown or does not suit this policy.
        """
        chosen = self.plan(nfe)
        device = self.null.device
        seen, batch = observed(self.config, obs)
        drawn, row_seeds = self._noise(batch, noise_seeds)
        noise = torch.from_numpy(drawn)
        rows, replay = self.inference_rows, self._replays.get(str(nfe))
        chunks = []
        for start in range(0, batch, rows):
            part = {
                key: torch.as_tensor(np.require(seen[key][start : start + rows], spec.dtype, "W"))
                for key, spec in self.config.observations.items()
            }
            z, seeds = noise[start : start + rows], row_seeds[start : start + rows]
            n = z.shape[0]
            if n < rows:
                part = {key: torch.cat([x, x[:1].expand(rows - n, *x.shape[1:])]) for key, x in part.items()}
                z = torch.cat([z, z[:1].expand(rows - n, *z.shape[1:])])
                seeds += seeds[:1] * (rows - n)
            if replay is not None:
                answer = replay([*part.values(), z])
            else:
                answer = self._answer(chosen, {key: x.to(device) for key, x in part.items()}, z.to(device), seeds)
            chunks.append(answer[:n].cpu())
        pred = torch.cat(chunks).numpy()
        first = self.n_obs_steps - 1
        return {"action": pred[:, first : first + self.n_action_steps], "action_pred": pred}

    def _answer(self, chosen: Plan, obs: Mapping[str, Tensor], noise: Tensor, seeds: list[int]) -> Tensor:
        """Actions (rows, horizon, action_dim) in the environment's units, from what is on the device."""
        x = self._run(chosen, noise, self.encode(obs), seeds)
        return self.normalizer.unnormalize_action(x, obs)

    @no_type_check
    def plan(self, nfe: int | str) -> Plan:
        """What `nfe` means for this policy; `plan(nfe).evaluations` is its cost.

        Raises:
            InputError: unknown nfe, or a sampler that this network was not trained for.
        """
        # "limits" scales actions to [-1, 1]; the other modes to unit variance, where five standard deviations hold all.
        clip = 1.0 if self.config.action_normalization == "limits" else 5.0
        chosen = plan(nfe, self.sampling, clip)
        scale = self.config.noise_scale
        if scale == 1:
            return chosen

        def run(flow_map: FlowMap, noise: Chunks, cond: Embeddings, **later: object) -> Chunks:
            return chosen.run(flow_map, scale * noise, cond, **later)

        return dataclasses.replace(chosen, run=run)

    def sample(self, noise: Chunks, cond: Embeddings, nfe: int | str = 1) -> Chunks:
        """Normalised chunks from standard normal noise (batch, horizon, action_dim) and embeddings (batch, cond_dim).

        A stochastic sampler's later draws are a function of the row's number alone.
        """
        return self._run(self.plan(nfe), noise, cond, list(range(noise.shape[0])))

    def _run(self, chosen: Plan, noise: Chunks, cond: Embeddings, seeds: list[int]) -> Chunks:
        if not chosen.stochastic:
            return chosen.run(self.flow_map, noise, cond)
        # One generator per row: a row's later noise does not depend on the rows beside it.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return chosen.run(self.flow_map, noise, cond, generators=generators)

    def _noise(self, batch: int, seeds: NDArray[np.int64] | None) -> tuple[NDArray[np.float32], list[int]]:
        """Initial noise (batch, horizon, action_dim), and a seed per row for the noise that a sampler draws later."""
        shape = (self.horizon, self.config.action_dim)
        if seeds is None:
            fresh = np.random.default_rng()
            sources = [fresh] * batch
        else:
            seeds = np.asarray(seeds)
            if seeds.shape != (batch, 2):
                raise InputError(
                    f"noise_seeds has shape {seeds.shape}, expected ({batch}, 2): (episode seed, decision index)."
                )
            sources = [np.random.default_rng([abs(int(n)) for n in row]) for row in seeds]
        noise = np.stack([source.standard_normal(shape, dtype=np.float32) for source in sources])
        return noise, [int(source.integers(2**62)) for source in sources]

    # Saving and loading.

    def save_pretrained(self, path: str | Path) -> None:
        """Write config.json and model.safetensors into a new or existing directory.

        config.json holds the SHA-256 of the weights, so that damaged or exchanged weights are found on loading.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path / "model.safetensors")
        digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
        config = {"weights_sha256": digest, **self.config.to_json()}
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, path: str | Path, inference_rows: int = INFERENCE_ROWS, revision: str | None = None
    ) -> Policy:
        """Load a policy, ready to act, from a saved directory, a checkpoint, a run directory (its last checkpoint), zoo or hub.

        Args:
            path: where it was saved, "zoo:pusht_human", or "hub:USER/NAME" on the Hugging Face Hub.
            inference_rows: see `Policy`.
            revision: branch, tag or commit; `path` is then "USER/NAME" on the hub.

        Raises:
            InputError: nothing there, a file that is damaged, or weights that do not fit the configuration.
        """
        folder, text, data = read_policy(path if revision is None else from_hub.named(path, revision))
        try:
            raw = parse_json(text)
        except ValueError as error:
            raise InputError(f"{folder / 'config.json'} cannot be read: {error}") from error
        if not isinstance(raw, dict):
            raise InputError(f"{folder / 'config.json'} does not hold an object; copy the folder again.")
        digest = raw.pop("weights_sha256", None)  # absent in folders written by earlier versions
        config = PolicyConfig.from_json(raw, str(folder / "config.json"))
        try:
            policy = cls(config, inference_rows)
            if digest not in (None, hashlib.sha256(data).hexdigest()):
                raise InputError(
                    f"{folder / 'model.safetensors'} is damaged or belongs to another policy: its SHA-256 is not the one in "
                    "config.json. Copy the folder again."
                )
            weights = load(data)
            policy.load_state_dict(weights)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{folder / 'model.safetensors'} cannot be read: {error}") from error
        except (RuntimeError, TypeError, AttributeError, OverflowError, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            detail = str(error).splitlines()
            raise InputError(
                f"{folder}: the weights do not fit config.json ({detail[min(1, len(detail) - 1)].strip()})."
            ) from error
        policy.normalizer.check()
        policy.fingerprint = sha256(text, data)
        return policy.eval()
