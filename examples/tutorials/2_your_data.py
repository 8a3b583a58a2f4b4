# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Your data
#
# From a recording to a store, what is wrong with it, and a training. `isdt(["data", "doctor", ...])` is what
# `isdt data doctor ...` is in a shell.

# %%
import numpy as np

from isdt_policy import DemoStore, Policy, make_env
from isdt_policy.cli import main as isdt
from isdt_policy.datasets.recorder import Recorder
from isdt_policy.datasets.writer import DemoWriter
from isdt_policy.envs.experts import expert

EPISODES = 20
STEPS = 200

# %% [markdown]
# ## Record
#
# Here the scripted expert of PushT stands in for you and your robot. What counts is the order: see, act, and note what was seen
# *before* the action together with the action. The last observation is noted too, with the command that was still standing: without
# it nothing in the recording shows that the task was finished.


# %%
def record(recorder: Recorder, seed: int, late: bool = False) -> None:
    """One episode. `late` makes the usual mistake: it reads the sensors after the action."""
    env, teacher = make_env("pusht", obs_keys=["state"]), expert("pusht")
    obs, _ = env.reset(seed=seed)
    done = False
    while not done:
        action = teacher.predict_action({"state": obs["state"][None, None]})["action"][0, 0]
        before = obs
        obs, _, terminated, truncated, _ = env.step(action)
        recorder.step({"state": np.float32((obs if late else before)["state"])}, action)
        done = terminated or truncated
    recorder.step({"state": np.float32(obs["state"])}, action)
    recorder.end()


with DemoWriter("tutorial.zarr", task="pusht", overwrite=True) as writer:
    for seed in range(EPISODES):
        record(Recorder(writer), seed)

store = DemoStore.open("tutorial.zarr")
print(f"{store.n_episodes} episodes, {store.n_steps} steps, action {store.shape('action')}")

# %% [markdown]
# ## Check
#
# The doctor reads all of it and names episode and step, with advice.

# %%
isdt(["data", "doctor", "tutorial.zarr"])

# %% [markdown]
# And what does it say of a recorder that reads its sensors too late? Every action then stands beside what it has already done.

# %%
with DemoWriter("late.zarr", task="pusht", overwrite=True) as writer:
    for seed in range(EPISODES):
        record(Recorder(writer), seed, late=True)
isdt(["data", "doctor", "late.zarr"])

# %% [markdown]
# ## Train
#
# `pusht_demo` says which observations PushT's policies read; they are computed from `state`. A few steps show that all fits
# together: leave the settings in `quick` out to train in earnest.

# %%
quick = [
    f"training.steps={STEPS}",
    f"training.diagonal_steps={STEPS // 2}",
    "training.warmup_steps=20",
    "training.compile=false",
]
isdt(["train", "experiment=pusht_demo", "data.path=tutorial.zarr", "name=tutorial_data", "if_exists=overwrite", *quick])
print(Policy.from_pretrained("outputs/tutorial_data").obs_keys)

# %% [markdown]
# Next: [data](../../docs/data.md) has every format that can be read, and [your own environment](../../docs/own_env.md) tells how a
# task of your own is described.
