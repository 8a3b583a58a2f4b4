# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Train a policy and watch it
#
# PushT: a round finger pushes a block onto its goal. We train on the demonstrations that come with the package, for about two
# minutes, which is too short, and see how far that gets. Then we take a policy that was trained long enough.
#
# `pip install ".[all]"` in the clone is all it takes. Two cores and no GPU will do.

# %%
import json

import matplotlib.pyplot as plt
import numpy as np

from isdt_policy import Policy, Protocol, compose_config, evaluate, make_env, train

STEPS = 300  # the recipe takes 6000
SEEDS = range(200_000, 200_010)  # selection seeds: for looking, not for reporting

# %% [markdown]
# ## Train
#
# `compose_config` takes what the command line takes: the same run is `isdt train experiment=pusht_demo training.steps=300 ...`.
# The first half of the steps learns the velocity of the flow, the second half the jumps that make one evaluation enough.

# %%
settings = [f"training.steps={STEPS}", f"training.diagonal_steps={STEPS // 2}", "training.warmup_steps=20"]
quick = ["training.compile=false", "training.log_every=5", "name=tutorial", "if_exists=overwrite"]
run = train(compose_config(["experiment=pusht_demo", *settings, *quick]))

# %% [markdown]
# A run is a folder. `log.jsonl` has its numbers:

# %%
log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
steps, losses = zip(*[(entry["step"], entry["diagonal"]) for entry in log if "diagonal" in entry])
plt.semilogy(steps, losses)
plt.xlabel("step")
plt.ylabel("error of the velocity")
plt.show()

# %% [markdown]
# ## Evaluate
#
# Every seed is one episode. The rate comes with its 95 % interval: ten episodes say little, and the interval says so.

# %%
mine, trained = Policy.from_pretrained(run), Policy.from_pretrained("zoo:pusht_human")
for name, policy in {"two minutes": mine, "zoo": trained}.items():
    summary = evaluate(policy, Protocol("pusht"), SEEDS, arms=[1])[1]
    rate = summary.success_rate
    print(f"{name:<12} success {rate.value:.0%} [{rate.low:.0%}, {rate.high:.0%}]  score {summary.score.value:.2f}")

# %% [markdown]
# ## Watch
#
# The loop is an ordinary Gymnasium loop. The policy sees the two newest observations and answers with six actions.

# %%
env = make_env("pusht", obs_keys=trained.obs_keys, render_mode="rgb_array")
obs, _ = env.reset(seed=SEEDS[0])
history, pictures, done = [obs] * trained.n_obs_steps, [env.render()], False
while not done:
    stacked = {key: np.stack([o[key] for o in history[-trained.n_obs_steps :]])[None] for key in trained.obs_keys}
    for action in trained.predict_action(stacked, nfe=1)["action"][0]:
        obs, reward, terminated, truncated, info = env.step(action)
        history.append(obs)
        done = terminated or truncated
        if done:
            break
    pictures.append(env.render())

chosen = np.linspace(0, len(pictures) - 1, 6).astype(int)
figure, axes = plt.subplots(1, len(chosen), figsize=(12, 2))
for axis, number in zip(axes, chosen):
    axis.imshow(pictures[number])
    axis.axis("off")
plt.show()

# %% [markdown]
# Next: `make demo` trains for as long as it takes, `isdt eval checkpoint=RUN` writes a report with films, and
# [the quickstart](../../docs/quickstart.md) has the same in lines for a shell.
