"""Add a trained policy to the zoo, and make docs/zoo.md from its cards and results.

    python docs/make_zoo.py add pusht_demo outputs/pusht_demo     then write its card.json
    isdt eval checkpoint=zoo:pusht_demo 'arms=[1,2,euler10]' videos=0 report=false out=results/zoo/pusht_demo
    python docs/make_zoo.py                                       make the page

A test holds the page to what this makes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from isdt_policy.eval.result import Result
from isdt_policy.method import zoo
from isdt_policy.method.policy import find_policy
from isdt_policy.shared.tables import markdown

ROOT = Path(__file__).parents[1]

HEAD = """
# Zoo

Made by `python docs/make_zoo.py`. These trained policies come with the package. `zoo:NAME` may stand wherever a checkpoint may:

```sh
isdt eval checkpoint=zoo:pusht_human episodes=10      # ten seeds in a few seconds; report and videos in outputs/zoo_pusht_human
isdt deploy checkpoint=zoo:pusht_human window=true    # it drives the simulator in real time; window=true shows it
isdt export checkpoint=zoo:pusht_human out=policy.onnx
isdt serve checkpoint=zoo:pusht_human
isdt diagnose checkpoint=zoo:pusht_human data=bundled:pusht_expert
```

```python
from isdt_policy import Policy

policy = Policy.from_pretrained("zoo:pusht_human")
```

It sees the state of PushT (agent, block and goal), not images.

## What they do

Success on seeds that neither training nor selection has seen, with 95 % intervals, at one and two network evaluations per chunk of
six actions, and at ten steps of Euler's method.
"""

TAIL = """
- The numbers belong to the weights as they are stored. The network's weights are rounded to float16 in the file, which halves it
  (4 MB each), and compute in float32. A SHA-256 in config.json is checked whenever they are loaded.
- `results/zoo/` holds every episode. `isdt eval repeat results/zoo/pusht_human` runs them again: bit for bit on the same kind of
  processor with the same versions. On another kind, sums round otherwise in the last digits, and some episodes end otherwise.
- What is not claimed: nothing here was measured on a real robot, and one training seed stands for each recipe
  ([results](results.md) has several).
"""


def add(name: str, run: str) -> None:
    """Store the policy of a run, the weights of its network and encoder in half precision."""
    source, folder = find_policy(run), zoo.HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    stored = {key: value if key.startswith("normalizer.") else value.half() for key, value in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    config = {**json.loads((source / "config.json").read_text()), "weights_sha256": digest}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def page() -> str:
    """docs/zoo.md."""
    parts, rows = [], []
    for name in zoo.names():
        card = json.loads((zoo.HERE / name / "card.json").read_text())
        config = json.loads((zoo.HERE / name / "config.json").read_text())
        result = Result.load(ROOT / "results" / "zoo" / name)
        rates = [summary.success_rate for summary in result.arms.values()]
        cells = [f"{100 * r.value:.0f} % [{100 * r.low:.0f}, {100 * r.high:.0f}]" for r in rates if r is not None]
        seeds = f"{min(result.seeds)} to {max(result.seeds)}"
        rows.append([f"`zoo:{name}`", f"`{config['task']}`", card["demonstrations"], *cells, seeds])
        size = (zoo.HERE / name / "model.safetensors").stat().st_size / 1e6
        parts.append(
            f"## {name}\n\n{card['what']}\n\n```sh\n{card['command']}\n```\n\n"
            f"Training seed {card['seed']}, trained at commit {card['commit'][:7]} {card['where']}. {size:.1f} MB, SHA-256 of the "
            f"weights `{config['weights_sha256'][:16]}`. Licence: {card['licence']}\n"
        )
    head = ["policy", "task", "demonstrations", "1 evaluation", "2 evaluations", "Euler 10", "seeds"]
    return "\n".join([HEAD.lstrip(), markdown(head, rows), TAIL, *parts])


if __name__ == "__main__":
    if sys.argv[1:2] == ["add"]:
        add(*sys.argv[2:])
    else:
        (ROOT / "docs" / "zoo.md").write_text(page(), encoding="utf-8")
