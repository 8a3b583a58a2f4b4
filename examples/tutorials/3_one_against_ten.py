# ---
# jupyter:
#   jupytext: {text_representation: {extension: .py, format_name: percent}}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # One evaluation against ten
#
# One network, asked in three ways: one jump from noise to actions, two jumps, and ten small steps along its own velocity, as a
# diffusion policy would. What does the shortcut cost, and what does it save?

# %%
import matplotlib.pyplot as plt
import numpy as np

from isdt_policy import Policy, Protocol, evaluate, make_env

SEEDS = range(200_000, 200_020)
DRAWS = 64
policy = Policy.from_pretrained("zoo:pusht_human")

# %% [markdown]
# ## Success and time
#
# All arms run on the same seeds, with the same noise.

# %%
result = evaluate(policy, Protocol("pusht"), SEEDS, arms=[1, 2, "euler10"])
for arm in result.arms:
    summary = result[arm]
    rate, time = summary.success_rate, summary.latency.single_row_ms
    print(
        f"{arm.name:<8} success {rate.value:.0%} [{rate.low:.0%}, {rate.high:.0%}]   one answer takes {time.p50:.1f} ms"
    )

# %% [markdown]
# Twenty episodes leave wide intervals. [The results](../../docs/results.md) have 500 per training seed.
#
# ## The same noise, drawn three ways
#
# At one observation, the first position that each draw asks for. If one jump were exact, its points would lie where the ten steps
# bring them.

# %%
obs, _ = make_env("pusht", obs_keys=policy.obs_keys).reset(seed=SEEDS[0])
batch = {key: np.broadcast_to(value, (DRAWS, policy.n_obs_steps, *value.shape)) for key, value in obs.items()}
noise = np.array([[draw, 0] for draw in range(DRAWS)])
points = {nfe: policy.predict_action(batch, nfe=nfe, noise_seeds=noise)["action"][:, -1] for nfe in (1, 2, "euler10")}

figure, axis = plt.subplots(figsize=(5, 5))
for nfe, xy in points.items():
    axis.scatter(*xy.T, s=12, label=f"nfe={nfe}")
axis.set_aspect("equal")
axis.legend()
axis.set_xlabel("x, px")
axis.set_ylabel("y, px")
plt.show()

for nfe in (1, 2):
    apart = np.linalg.norm(points[nfe] - points["euler10"], axis=1)
    print(f"nfe={nfe}: {np.median(apart):.2f} px from the ten steps in the median, {apart.max():.2f} px at most")

# %% [markdown]
# Next: `isdt diagnose checkpoint=zoo:pusht_human data=bundled:pusht_expert` measures this over all observations, and
# [what one step costs](../../docs/one_step.md) says where it matters.
