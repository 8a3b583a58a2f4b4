# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # A policy behind a controller
#
# A robot does not wait while a network computes. Here the simulator moves at its rate whether the policy has answered or not, and
# every action passes safety limits.

# %%
import json
from pathlib import Path

from isdt_policy import Policy, make_env
from isdt_policy.cli import main as isdt
from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.runtime import Runtime
from isdt_policy.deploy.safety import Safety

EPISODES = 10
STEPS = 200

# %% [markdown]
# ## How much does a slow answer cost?
#
# On a virtual clock only the injected latency takes time, so this is repeatable. `sync` stands still until the answer is there;
# `async` carries the old chunk out meanwhile.

# %%
for mode in ("sync", "async"):
    how = [f"mode={mode}", "latency=200ms", "clock=virtual", f"episodes={EPISODES}", f"out={mode}.json"]
    isdt(["deploy", "checkpoint=zoo:pusht_human", *how])
    numbers = json.loads(Path(f"{mode}.json").read_text())
    print(f"{mode}: stood still in {numbers['held']} of {numbers['periods']} periods\n")

# %% [markdown]
# Standing still costs little here, where nothing moves by itself. `async` never stands still, and acts on what it saw earlier: it
# pays for that in success. [Deployment](../../docs/deploy.md) has the third mode, `rtc`, and what each costs.
#
# ## The loop itself
#
# What `isdt deploy` does, in the lines that would stand in your controller: read sensors, ask the runtime, pass the safety stage,
# send. The limits: inside the table, and no more than 40 px in a step.

# %%
policy = Policy.from_pretrained("zoo:pusht_human").alone()
runtime = Runtime(policy)
limits = Limits(low=[0.0, 0.0], high=[512.0, 512.0], step=[40.0, 40.0])
safety = Safety(limits, action_dim=2, rate_hz=10, positions=True)  # an action is a place to go to

env = make_env("pusht", obs_keys=policy.obs_keys)
observation, _ = env.reset(seed=200_000)
runtime.reset(seed=200_000)
best = 0.0
for _ in range(STEPS):
    command = safety(runtime.act(observation))
    observation, reward, terminated, truncated, info = env.step(command)
    best = max(best, info["coverage"])
    if terminated or truncated:
        break
print(f"best coverage {best:.2f}; the limits intervened: {dict(safety.counts)}")

# %% [markdown]
# ## One file, without torch
#
# Export writes the network, its statistics and its limits into one file, compares 1000 answers with the policy, and refuses a file
# that differs.

# %%
isdt(["export", "checkpoint=zoo:pusht_human", "out=policy.onnx"])
isdt(["deploy", "checkpoint=policy.onnx", "clock=virtual", "latency=20ms", f"episodes={EPISODES}"])

# %% [markdown]
# Next: [deployment](../../docs/deploy.md) has servers, real-time chunking and limits; `isdt serve` puts a policy
# behind a websocket.
