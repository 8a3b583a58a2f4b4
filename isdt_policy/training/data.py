"""From demonstrations to training windows and a policy that is fitted to their statistics."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from isdt_policy.datasets.augment import MemoryStore, with_goals_in_hindsight, with_mirror_images
from isdt_policy.datasets.own_task import OwnTask, Renamed, Told, own_task, with_action
from isdt_policy.datasets.pictures import Seen, is_picture, picture_sources, with_pictures
from isdt_policy.datasets.store import DemoStore
from isdt_policy.datasets.windows import Store, WindowDataset, train_val_split
from isdt_policy.envs import TaskSpec, task_spec
from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.envs.registry import check_recorded
from isdt_policy.method.normalization import Normalizer, action_statistics
from isdt_policy.method.policy import Policy
from isdt_policy.method.policy_config import PolicyConfig
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.looks import Looks
from isdt_policy.training.settings import DataConfig

Episodes = NDArray[np.int64]
_BLOCK = 4096  # windows read at a time for their statistics
_LOOKS = 256  # pictures that say how a camera's pictures look


@dataclass(frozen=True)
class Demonstrations:
    """What a run learns from.

    Attributes:
        spec: the task.
        keys: observations that the policy reads.
        train: windows of the training episodes.
        validation: windows of the held-out episodes; None if there are none.
        finish: what the finish of a run learns from, if that is more than `train`; None if not.
        notes: what people should know about them, one line each.
        own: the task as it was made from the store; None for a registered one.
        sources: shape of the pictures that a camera gave, where the store holds them resized.
    """

    spec: TaskSpec
    keys: tuple[str, ...]
    train: WindowDataset
    validation: WindowDataset | None
    finish: WindowDataset | None
    notes: tuple[str, ...]
    own: OwnTask | None = None
    sources: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


def read_demonstrations(data: DataConfig, task: str, policy: PolicyConfig) -> Demonstrations:
    """Open a store, choose its episodes and cut windows for a policy.

    Args:
        data: which demonstrations.
        task: its id; the store must have been recorded for it. Empty: a task is made from the store.
        policy: its window (`horizon`, `n_obs_steps`, `n_action_steps`) and its `action_reference`.

    Raises:
        InputError: no such store, task, key or mask; demonstrations of another task; or no training window.
    """
    spec, own, recorded = opened(data, task)
    keys = _obs_keys(data, spec, recorded, policy.action_reference)

    store, episodes, held_out = _augmented(recorded, data, spec, nudges=data.nudges == "always")
    seen = with_pictures(store, spec, keys)  # once: what was drawn or decoded is shared

    # Which of them hold a window.
    needed = max(1, policy.horizon - (policy.n_obs_steps - 1) - (policy.n_action_steps - 1))
    lengths = np.diff(store.episode_ends, prepend=0)
    short, short_held_out = (int((lengths[chosen] < needed).sum()) for chosen in (episodes, held_out))
    if len(episodes) and short == len(episodes):
        raise InputError(
            f"no training episode of '{data.path}' is long enough for a window: the longest has {lengths[episodes].max()} "
            f"steps, policy.horizon={policy.horizon} needs {needed}. Lower policy.horizon."
        )

    def windows(store: Store, chosen: Episodes) -> WindowDataset:
        return WindowDataset(
            store, keys, policy.horizon, policy.n_obs_steps, policy.n_action_steps, episodes=chosen, task=spec
        )  # fmt: skip

    train = windows(seen, episodes)
    finish = None
    if data.nudges == "finish":
        more, chosen, _ = _augmented(recorded, data, spec, nudges=True)
        finish = windows(with_pictures(more, spec, keys), chosen)
    validation = windows(seen, held_out) if len(held_out) > short_held_out else None
    made = (", mirror images included" if data.mirror else "") + (", goals in hindsight" if data.hindsight else "")
    made += f", nudges: {data.nudges}" if data.nudges != "off" else ""
    notes = [f"data      {data.path}: {len(episodes)} episodes, {train.n_windows} windows{made}"]
    if short or short_held_out:
        notes.append(
            f"          {short} training and {short_held_out} held-out episodes have fewer than {needed} steps, too few for "
            "a window"
        )
    if len(held_out) and validation is None:
        notes.append("          no held-out episode holds a window, so there is no validation")
    sources = picture_sources(seen) if isinstance(seen, Seen) else {}
    return Demonstrations(spec, keys, train, validation, finish, (*(own.notes if own else ()), *notes), own, sources)


def _augmented(
    recorded: DemoStore | Renamed, data: DataConfig, spec: TaskSpec, nudges: bool
) -> tuple[DemoStore | Renamed | MemoryStore, Episodes, Episodes]:
    """The store with what is made of its episodes, and the numbers of the training and of the held-out episodes in it.

    What was made of one recording stays on the same side of the split.
    """
    episodes, held_out = split(recorded, data)
    store: DemoStore | Renamed | MemoryStore = recorded
    if data.hindsight:
        store = with_goals_in_hindsight(store, spec, nudges)
    if data.mirror:
        store = with_mirror_images(store, spec)
    if isinstance(store, MemoryStore):
        episodes, held_out = store.made_from(episodes), store.made_from(held_out)
    return store, episodes, held_out


def data_sha256(data: DataConfig, keys: Sequence[str], task: str) -> str:
    """SHA-256 of what a run learns from: the recorded steps of what it reads, and which episodes it learns from.

    Args:
        data: which demonstrations.
        keys: observations that the policy reads.
        task: its id, or empty; it may derive them from other keys.
    """
    spec, _, store = opened(data, task)
    digest = hashlib.sha256()
    for numbers in (store.episode_ends, *split(store, data)):
        digest.update(f"{len(numbers)} ".encode() + np.asarray(numbers, "<i8").tobytes())
    for key in sorted({*keys, *spec.stored_keys, "action"} & {*store.keys}):
        values = store.read(key)
        digest.update(f"{key} {values.dtype} {values.shape[1:]} ".encode() + values.tobytes())
    return digest.hexdigest()


def split(store: DemoStore | Renamed, data: DataConfig) -> tuple[Episodes, Episodes]:
    """Numbers of the training and of the held-out episodes, both rising."""
    episodes, held_out = train_val_split(store.n_episodes, data.val_ratio, data.split_seed)
    if data.val_mask:
        held_out = _masked(store, data.val_mask)
        episodes = np.setdiff1d(np.arange(store.n_episodes), held_out)
    if data.mask:
        named = _masked(store, data.mask)
        episodes = np.intersect1d(episodes, named)
        held_out = held_out if data.val_mask else np.intersect1d(held_out, named)
    if data.max_train_episodes:
        episodes = episodes[: data.max_train_episodes]
    return episodes, held_out


def fitted_policy(config: PolicyConfig, sigma_data: float | None, data: Demonstrations, seed: int) -> Policy:
    """Build a policy with fresh weights and the statistics of the training windows.

    Args:
        config: what is chosen; observations and action of the data are filled in.
        sigma_data: standard deviation of the normalised actions; None measures it.
        data: demonstrations.
        seed: of the weights.

    Raises:
        InputError: actions of another size than the task's, settings that do not fit each other, or a network that does
            not fit into memory.
    """
    statistics = data.train.statistics()
    pictures = data.train.image_shapes
    observations = {key: ObsSpec(np.shape(statistics[key]["min"])) for key in data.keys if key not in pictures}
    sizes = {key: spec.size for key, spec in observations.items()}
    looks = _looks(data.train, tuple(pictures))
    for key, shape in pictures.items():
        seen = config.image_encoder.seen(shape, key)
        observations[key] = dataclasses.replace(seen, source=data.sources.get(key), looks=looks[key])
    action_dim, expected = int(np.size(statistics["action"]["min"])), int(np.prod(data.spec.action.shape))
    if action_dim != expected:
        raise InputError(
            f"the demonstrations have actions of {action_dim} entries, task '{data.spec.id}' takes {expected}."
        )
    n = data.train.n_windows
    blocks = (data.train.numbers(np.arange(i, min(i + _BLOCK, n))) for i in range(0, n, _BLOCK))
    statistics["action"] = action_statistics(blocks, config.action_reference)

    torch.manual_seed(seed)
    normalizer = Normalizer(sizes, config.horizon, action_dim, config.action_reference)
    parts = _action_parts(config, data.spec)
    normalizer.fit(statistics, config.obs_normalization, config.action_normalization, parts)
    complete = dataclasses.replace(
        config,
        task="" if data.own else data.spec.id,
        recorded=data.own.recorded if data.own else None,
        observations=observations,
        action_dim=action_dim,
        action_type=data.spec.action_type,
        sigma_data=normalizer.action_spread(statistics["action"]) if sigma_data is None else sigma_data,
    )
    try:
        policy = Policy(complete, normalizer=normalizer)
        if policy.cameras is not None:
            policy.cameras.load_pretrained()
        return policy
    except (MemoryError, RuntimeError, TypeError, OverflowError) as error:
        # The CPU's allocator has no error class of its own: it raises a RuntimeError, "can't allocate memory". A size of more
        # than 64 bits is a TypeError, "Overflow when unpacking long long".
        known = ("allocate", "verflow", "storage size", "too large")
        if not isinstance(error, MemoryError | OverflowError) and not any(word in str(error) for word in known):
            raise
        raise InputError(
            "there is no memory for a network of this size; make it smaller: network.down_dims=..."
        ) from error


def _looks(windows: WindowDataset, keys: Sequence[str]) -> dict[str, Looks]:
    """How pictures look, from some hundred of all windows."""
    if not keys:
        return {}
    some = np.unique(np.linspace(0, windows.n_windows - 1, _LOOKS).astype(np.int64))
    newest = windows.batch(some)["obs"]
    return {key: Looks.of(newest[key][:, -1].view(np.uint8)) for key in keys}


def _action_parts(config: PolicyConfig, spec: TaskSpec) -> tuple[int, ...]:
    """Sizes of the parts of the task's action; refuses a task that does not say what they are where that matters."""
    unnamed = any(part.kind == "other" and part.size > 3 for part in spec.action_parts)
    if config.action_normalization == "gaussian_vectors" and unnamed:
        raise InputError(
            f"policy.action_normalization=gaussian_vectors scales the parts of an action, and task '{spec.id}' does not say what "
            "they are. Name them in its TaskSpec (action_parts), or use gaussian_per_step."
        )
    return tuple(part.size for part in spec.action_parts)


def opened(data: DataConfig, task: str) -> tuple[TaskSpec, OwnTask | None, DemoStore | Renamed]:
    """The task, how it was made if it was made from the store, and the store with its action.

    Raises:
        InputError: no such store, task or key; demonstrations of another task; or something that only the user can say.
    """
    if task:
        spec, store = task_spec(task), DemoStore.open(data.path)  # a store that cannot be opened named no task
        _check_unsaid(data, task)
        check_recorded(spec, store.attrs, data.path)
        return spec, None, with_action(store, data.action_key)
    store = DemoStore.open(data.path)
    own = own_task(store, Told(tuple(data.obs_keys), data.action_key, data.actions, data.rate_hz))
    return own.spec, own, with_action(store, own.action_key)


def _check_unsaid(data: DataConfig, task: str) -> None:
    """Refuse what only a robot's own recordings may be told."""
    for name in ("actions", "rate_hz"):
        if getattr(data, name):
            raise InputError(f"data.{name} is for recordings without a registered task; task '{task}' says it itself.")


def _obs_keys(data: DataConfig, spec: TaskSpec, store: DemoStore | Renamed, reference: str) -> tuple[str, ...]:
    keys = tuple(data.obs_keys) or spec.default_obs_keys
    # A picture goes by the task's name, whatever the recording calls it: that is what the environment gives.
    names = {other: key for key, others in spec.recorded_as.items() for other in others}
    keys = tuple(dict.fromkeys(names.get(key, key) for key in keys))
    pictures = [key for key in keys if is_picture(store, spec, key)]
    for key in keys:
        if key not in pictures:
            _check_observed(key, spec, store)
    absent = [key for key in reference.split(",") if reference and (key not in keys or key in pictures)]
    if absent:
        raise InputError(
            f"policy.action_reference='{','.join(absent)}' is not among the states the policy reads "
            f"({', '.join(key for key in keys if key not in pictures)}); add it to data.obs_keys."
        )
    return keys


def _check_observed(key: str, spec: TaskSpec, store: DemoStore | Renamed) -> None:
    """Refuse an observation with which a policy could be trained but not act."""
    known = spec.observations.get(key)
    if key == "action":
        raise InputError("data.obs_keys: 'action' is what the policy answers, so it cannot read it. Leave it out.")
    if "." in key:
        raise InputError(
            f"data.obs_keys: '{key}' has a '.', which no part of a policy can be named. Rename it in the task and the data: "
            f"isdt data convert SOURCE TARGET rename={key}:{key.replace('.', '_')}"
        )
    if known is not None and len(known.shape) != 1:
        raise InputError(
            f"data.obs_keys: task '{spec.id}' gives '{key}' with shape {known.shape}, and policies read vectors. Give it as "
            f"({int(np.prod(known.shape))},) in the task and in the data."
        )
    recorded = store.read(key, 0, 1).shape[1:] if key in store.keys else ()
    if known is not None and key in store.keys and np.prod(recorded) != np.prod(known.shape):
        raise InputError(
            f"'{store.path}' holds '{key}' with shape {recorded}, task '{spec.id}' gives {known.shape}: a policy that "
            "learns from one cannot act in the other."
        )


def _masked(store: DemoStore | Renamed, name: str) -> Episodes:
    masks = store.masks
    if name not in masks:
        known = ", ".join(masks) or "none"
        raise InputError(f"'{store.path}' has no episode mask '{name}'.{nearest(name, masks)} Masks: {known}.")
    return np.asarray(masks[name], np.int64)
