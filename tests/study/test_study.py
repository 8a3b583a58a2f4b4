"""The study: densities and distances with known values, cells that resume, rows that train, tables that add up."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from isdt_policy import closed_forms
from isdt_policy.errors import InputError
from isdt_policy.flow_map import FlowMap
from isdt_policy.interpolants import INTERPOLANTS
from isdt_policy.networks.mlp import MLP
from isdt_policy.objectives import ISD
from isdt_policy.study import command
from isdt_policy.study.candidates import BoundedISD
from isdt_policy.study.cells import Cell, read_json, run_cells
from isdt_policy.study.densities import DENSITIES
from isdt_policy.study.metrics import gradient_norms, gradient_trace, sampling_floor, sliced_wasserstein
from isdt_policy.study.pusht import PushtSettings, pusht_config, run_pusht
from isdt_policy.study.rows import ROWS, Row, chosen_rows
from isdt_policy.study.table import toy_tables
from isdt_policy.study.toys import ToySettings, run_toy

TINY = ToySettings(steps=4, batch_size=16, width=16, depth=1, samples=64, repeats=1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# Densities and distances.


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_has_zero_mean_and_unit_variance_and_follows_its_generator(name):
    points = DENSITIES[name](100_000, generator())
    assert points.shape == (100_000, 2)
    assert points.dtype == torch.float32
    assert points.mean(dim=0).abs().max() < 0.015  # four standard errors
    assert (points.var(dim=0) - 1).abs().max() < 0.025
    assert torch.equal(points[:10], DENSITIES[name](100_000, generator())[:10])
    assert not torch.equal(points[:10], DENSITIES[name](100_000, generator(1))[:10])


def test_the_checkerboard_leaves_its_light_squares_empty_and_fills_the_dark_ones_alike():
    points = DENSITIES["checkerboard"](40_000, generator())
    column, row = (points / (math.sqrt(3) / 2) + 2).floor().long().T
    assert ((column + row) % 2 == 0).all()
    counts = torch.bincount(4 * row + column, minlength=16)
    assert (counts > 0).sum() == 8
    assert counts[counts > 0].min() > 4700


def test_the_eight_gaussians_stand_on_a_circle_an_eighth_of_it_wide():
    points = DENSITIES["eight_gaussians"](40_000, generator())
    octant = torch.round(torch.atan2(points[:, 1], points[:, 0]) / (math.pi / 4)).long() % 8
    centres = torch.stack([points[octant == k].mean(dim=0) for k in range(8)])
    assert torch.allclose(centres.norm(dim=1), torch.full((8,), 1.392), atol=0.02)
    assert (points[octant == 0].std(dim=0) - 1.392 / 8).abs().max() < 0.01


def test_sliced_wasserstein_of_a_shift_is_two_over_pi_of_it():
    points = DENSITIES["two_moons"](500, generator())
    assert sliced_wasserstein(points, points[torch.randperm(500)]) == pytest.approx(0, abs=1e-6)
    for shift in ([0.7, 0.0], [0.0, 0.7], [0.7 * 0.6, 0.7 * 0.8]):
        distance = sliced_wasserstein(points, points + torch.tensor(shift))
        assert distance == pytest.approx(0.7 * 2 / math.pi, rel=0.01)
    with pytest.raises(ValueError, match="equal size"):
        sliced_wasserstein(points, points[:10])


def test_the_sampling_floor_halves_when_the_sample_is_four_times_as_large():
    g = generator()
    floors = [sampling_floor(lambda n=n: DENSITIES["two_moons"](n, g), repeats=60) for n in (250, 1000)]
    assert floors[0] / floors[1] == pytest.approx(2, rel=0.2)


def test_a_single_spike_moves_the_maximum_and_not_the_99_percent():
    norms = [1.0 + i / 1000 for i in range(1000)]
    calm, spiked = gradient_norms(norms), gradient_norms([*norms[:-1], 1e6])
    assert calm["p99"] == spiked["p99"] == norms[989]
    assert spiked["max"] == 1e6
    assert calm["p99_over_median"] == pytest.approx(norms[989] / 1.4995)
    assert gradient_norms([]) is None
    trace = gradient_trace([1.0] * 50 + [3.0] * 50, bins=2)
    assert trace == [[50, 1.0, 1.0], [100, 3.0, 3.0]]


# The bounded residual.


@pytest.mark.parametrize("interpolant", INTERPOLANTS)
def test_a_bounded_residual_changes_nothing_below_its_bound_and_caps_the_gradient_above(interpolant):
    path = INTERPOLANTS[interpolant]()
    torch.manual_seed(0)
    network = MLP(action_dim=2, cond_dim=1, horizon=1, width=32, depth=2, time_dim=16).double()
    torch.nn.init.normal_(network.out.weight, std=0.3)
    flow_map = FlowMap(network, path)
    x, cond, null = torch.randn(64, 1, 2).double(), torch.zeros(64, 1).double(), torch.zeros(1).double()

    def gradient(objective):
        network.zero_grad()
        objective(flow_map, x, cond, null, generator()).total.backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    plain = gradient(ISD(weight_power=0.0))
    diagonal = gradient(ISD(weight_power=0.0, off_diagonal_weight=0.0))
    assert torch.allclose(gradient(BoundedISD(bound=1e9)), plain)
    assert torch.allclose(gradient(BoundedISD(off_diagonal_weight=0.0)), diagonal)
    # All residuals are far above a tiny bound, so the term is proportional to it.
    small, half = (gradient(BoundedISD(bound=b)) - diagonal for b in (1e-4, 5e-5))
    assert torch.allclose(small, 2 * half, rtol=1e-3, atol=1e-12)
    assert small.norm() < (plain - diagonal).norm() / 100


def test_the_exact_map_is_a_fixed_point_of_the_bounded_residual():
    path = INTERPOLANTS["linear"]()
    mean, std = torch.tensor([0.3, -0.8]).double(), torch.tensor([0.5, 1.2]).double()
    x = mean + std * torch.randn(64, 1, 2).double()
    flow_map = FlowMap(closed_forms.gaussian(path, mean, std), path)
    loss = BoundedISD(eps=1e-4)(flow_map, x, torch.zeros(64, 1).double(), torch.zeros(1).double(), generator())
    assert loss.terms["off_diagonal"] < 1e-6


# Cells.


def counting_cell(calls, name="a", **settings):
    return Cell(name, settings, lambda: calls.append(name) or {"value": len(calls)})


def test_a_finished_cell_is_read_and_not_run_again(tmp_path):
    calls = []
    first = run_cells([counting_cell(calls, "a"), counting_cell(calls, "x/b")], tmp_path, "study")
    (tmp_path / "a.json").unlink()
    second = run_cells([counting_cell(calls, "a"), counting_cell(calls, "x/b")], tmp_path, "study")
    assert calls == ["a", "x/b", "a"]
    assert second[1] == first[1]
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_cell_that_fails_leaves_no_file_and_keeps_those_before_it(tmp_path):
    def fail():
        raise RuntimeError("killed")

    calls = []
    with pytest.raises(RuntimeError):
        run_cells([counting_cell(calls), Cell("b", {}, fail)], tmp_path, "study")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_cell_of_other_settings_or_of_another_program_is_refused_before_anything_runs(tmp_path):
    calls = []
    run_cells([counting_cell(calls, steps=3)], tmp_path, "study")
    with pytest.raises(InputError, match="steps=3, now steps=4"):
        run_cells([counting_cell(calls, "new"), counting_cell(calls, steps=4)], tmp_path, "study")
    assert calls == ["a"]
    (tmp_path / "a.json").write_text('{"schema"')
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InputError, match="not a result"):
        read_json(tmp_path / "a.json")


# Toys.


@pytest.mark.parametrize("name", ROWS)
def test_every_row_trains_and_samples(name):
    result = run_toy(ROWS[name], "two_moons", 0, TINY)
    assert result["steps_done"] == 4
    assert [math.isfinite(d) for d in result["distance"]] == [True] * 4
    json.dumps(result, allow_nan=False)


def test_a_cell_is_a_function_of_its_settings_and_of_nothing_else():
    def run(**changes):
        torch.manual_seed(int(np.random.default_rng().integers(1000)))
        settings = {"seed": 0, "settings": TINY, **changes}
        result = run_toy(ROWS["isd_t"], "checkerboard", **settings)
        return result["distance"], result["gradient"]

    assert run() == run()
    assert run() != run(seed=1)
    assert run() != run(settings=dataclasses.replace(TINY, lr=1e-4))


def test_a_run_that_overflows_is_counted_as_diverged_with_its_step():
    row = Row("p = 0 on the edge", "isd", {"weight_power": 0.0})
    result = run_toy(row, "two_moons", 0, dataclasses.replace(TINY, lr=1e25, steps=50))
    assert result["diverged"]
    assert f"step {result['steps_done']}" in result["reason"]
    json.dumps(result, allow_nan=False)


def test_self_distillation_learns_a_one_step_map_that_flow_matching_does_not():
    settings = ToySettings(steps=300, batch_size=128, width=48, depth=2, samples=512, repeats=1)
    distilled, velocity = (
        run_toy(ROWS[name], "eight_gaussians", 0, settings)["distance"] for name in ("isd_t", "flow_matching")
    )
    assert distilled[0] < 0.6 * velocity[0]
    assert velocity[3] < 0.5 * velocity[0]


# PushT.


@pytest.mark.parametrize(
    "name",
    ["isd_t", "weight_half", "trigonometric", "unpreconditioned", "warm_start", "consistency", "naive_divided",
     "flow_matching", "ddim"],
)  # fmt: skip
def test_a_pusht_cell_trains_what_its_row_says(name, tmp_path):
    row = ROWS[name]
    config = pusht_config(row, 7, PushtSettings(steps=10), tmp_path / "run", threads=1)
    assert config["objective"]["name"] == row.objective
    assert {key: config["objective"][key] for key in row.settings} == row.settings
    assert config["policy"]["interpolant"] == row.interpolant
    assert config["policy"]["precondition"] == row.precondition
    assert config["training"]["seed"] == 7
    assert config["training"]["diagonal_steps"] == (5 if name == "warm_start" else 0)
    expected = {"flow_matching": "velocity", "ddim": "diffusion"}
    kind = "consistency" if name.startswith("consistency") else expected.get(name, "flow_map")
    assert config["policy"]["sampling"]["kind"] == kind


def test_a_pusht_cell_refuses_an_option_that_its_network_has_not(tmp_path):
    row = Row("wrong", "isd", network={"wings": 2})
    with pytest.raises(InputError, match=r"network\.wings"):
        pusht_config(row, 0, PushtSettings(), tmp_path / "run", threads=1)


def test_a_pusht_cell_of_a_candidate_runs_to_its_scores(tmp_path):
    settings = PushtSettings(steps=2, episodes=1, compile=False)
    result = run_pusht(ROWS["isd_t"], 0, settings, tmp_path / "run", threads=1)
    assert result["steps_done"] == 2
    assert [s["n"] for s in result["success"]] == [1] * 4
    assert 0 <= result["score"][0]["value"] <= 1
    assert not (tmp_path / "run").exists()
    json.dumps(result, allow_nan=False)


# The command.


def test_the_command_writes_table_and_figures_and_adds_cells_to_what_is_there(tmp_path, capsys):
    common = [
        "densities=[two_moons]",
        f"out={tmp_path}",
        "steps=3",
        "batch_size=16",
        "width=8",
        "samples=64",
        "repeats=1",
    ]
    assert command.main(["toys", "rows=[isd_t,meanflow]", "seeds=1", "report=false", *common]) == 0
    assert not (tmp_path / "toys.md").exists()
    cells = tmp_path / "toys" / "cells" / "two_moons"
    before = (cells / "isd_t_0.json").stat().st_mtime_ns
    assert command.main(["toys", "rows=[isd_t,meanflow]", "seeds=2", *common]) == 0
    assert (cells / "isd_t_0.json").stat().st_mtime_ns == before
    assert sorted(p.stem for p in cells.iterdir()) == ["isd_t_0", "isd_t_1", "meanflow_0", "meanflow_1"]
    assert "| MeanFlow |" in capsys.readouterr().out
    table = (tmp_path / "toys.md").read_text()
    assert "of 2 |" in table
    assert "steps 3" in table
    for name in ("toys_samples.png", "toys_quality.png", "toys_gradients.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="steps=3, now steps=4"):
        command.main(["toys", "rows=[isd_t]", *common[:2], "steps=4", *common[3:]])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["toyz"], "Did you mean 'toys'"),
        (["toys", "rows=[isdt]"], "unknown row 'isdt'.*Did you mean 'isd_t'"),
        (["toys", "densities=[moons]"], "unknown density"),
        (["toys", "step=3"], "Did you mean 'steps'"),
        (["toys", "seeds=0"], "at least 1"),
        (["pusht", "densities=[two_moons]"], "toys"),
        (["report", "out=/nowhere"], "no cells"),
    ],
)
def test_wrong_arguments_get_one_line(args, message):
    with pytest.raises(InputError, match=message):
        command.main(args)


def test_a_table_gives_mean_and_range_over_seeds_and_counts_divergence():
    def cell(seed, ratio, diverged):
        gradient = {"median": 1.0, "p99": 2.0 + seed, "max": 8.0, "p99_over_median": 2.0 + seed}
        result = {"ratio": ratio, "floor": 0.02, "noise": 0.2, "gradient": gradient, "diverged": diverged}
        settings = {"row": "isd_t", "title": "iSD-T", "density": "two_moons", "seed": seed}
        return {"settings": settings, "result": result}

    table = toy_tables([cell(1, [2.0, 1.5, None, 1.0], True), cell(0, [1.0, 1.5, None, 2.0], False)])
    assert "| iSD-T | 1.50 [1.00 to 2.00] | 1.50 [1.50 to 1.50] | no value | 1.50 [1.00 to 2.00] |" in table
    assert "| 1.00 | 3.0 | 8.0 | 1 of 2 |" in table
    assert "plain noise 10.0 floors" in table


def test_rows_are_chosen_by_name_once_each():
    assert list(chosen_rows(["meanflow", "isd_t", "meanflow"])) == ["meanflow", "isd_t"]
    assert list(chosen_rows([])) == list(ROWS)
