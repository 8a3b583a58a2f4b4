"""The worked example of CONTRIBUTING.md runs as it is printed."""

import re
import sys
import types
from pathlib import Path

import torch

from isdt_policy.method import closed_forms
from isdt_policy.method.flow_map import FlowMap
from isdt_policy.method.interpolants import INTERPOLANTS
from isdt_policy.method.objectives import OBJECTIVES
from isdt_policy.training.config import build


def test_the_objective_in_the_worked_example_works(monkeypatch):
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    module = types.ModuleType("huber")
    monkeypatch.setitem(sys.modules, "huber", module)  # dataclasses look their module up
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    objective = module.Huber(delta=0.2)

    path = INTERPOLANTS["trigonometric"]()
    location = torch.tensor([0.2, -0.4])
    exact = FlowMap(closed_forms.point_mass(path, location), path)
    x, cond = location.expand(16, 4, 2), torch.zeros(16, 3)
    generator = torch.Generator().manual_seed(0)
    assert objective(exact, x, cond, cond[0], generator, keep=torch.ones(16, 4, dtype=torch.bool)).total < 1e-6
    off = FlowMap(lambda *a: exact.network(*a) + 10.0, path)
    assert abs(objective(off, x, cond, cond[0], generator).total - 9.8) < 0.01  # linear, not 100

    monkeypatch.setitem(OBJECTIVES, "huber", module.Huber)
    built = build("objective", OBJECTIVES["huber"], {"delta": 0.3})
    assert built.delta == 0.3
    assert built.sampling.kind == "velocity"
