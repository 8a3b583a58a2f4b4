"""The study: densities and distances with known values, cells that resume, rows that train, tables that add up."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from isdt_policy import cli
from isdt_policy.lab.study.cells import Cell, read_json, run_cells
from isdt_policy.lab.study.densities import DENSITIES
from isdt_policy.lab.study.metrics import (
    gradient_norms,
    gradient_trace,
    sampling_floor,
    sliced_wasserstein,
    stray_share,
)
from isdt_policy.lab.study.pusht import PUSHT_ROWS, pusht_config, run_pusht
from isdt_policy.lab.study.rows import ROWS, Row, build_objective, chosen, describe
from isdt_policy.lab.study.settings import PushtSettings, ToySettings
from isdt_policy.lab.study.side_by_side import train_side_by_side
from isdt_policy.lab.study.table import single_runs, toy_tables
from isdt_policy.lab.study.toys import run_toys, toy_policy
from isdt_policy.shared.errors import InputError
from isdt_policy.training.trainer import Trainer, TrainingConfig

ROOT = Path(__file__).parents[2]
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


def test_strays_are_the_points_where_there_is_no_data():
    g = generator()
    reference, fresh, more = (DENSITIES["checkerboard"](n, g) for n in (4000, 2000, 2000))
    assert stray_share(more, reference, fresh) == pytest.approx(0.01, abs=0.008)
    side = math.sqrt(3) / 2
    light = torch.cat(
        [more[:500], more[500:1000] + torch.tensor([side, 0.0])]
    )  # shifted by one square: all in the gaps
    assert stray_share(light, reference, fresh) == pytest.approx(0.5, abs=0.06)  # but for those within reach of an edge


def test_a_single_spike_moves_the_maximum_and_not_the_99_percent():
    norms = [1.0 + i / 1000 for i in range(1000)]
    calm, spiked = gradient_norms(norms), gradient_norms([*norms[:-1], 1e6])
    assert calm["p99"] == spiked["p99"] == norms[989]
    assert spiked["max"] == 1e6
    assert calm["p99_over_median"] == pytest.approx(norms[989] / 1.4995)
    assert gradient_norms([]) is None
    trace = gradient_trace([1.0] * 50 + [3.0] * 50, bins=2)
    assert trace == [[50, 1.0, 1.0], [100, 3.0, 3.0]]


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


class Fixed:
    """Points as the trainer reads demonstrations: windows of one action beside an observation that is always zero."""

    def __init__(self, points):
        self.points, self.n_windows = points[:, None].numpy(), len(points)

    def batch(self, indices):
        n = len(indices)
        obs = {"none": np.zeros((n, 1, 1), np.float32)}
        return {"obs": obs, "action": self.points[indices], "is_pad": np.zeros((n, 1), bool)}


@pytest.mark.parametrize("name", ["isd_t", "trigonometric", "warm_start", "central"])
def test_training_side_by_side_is_the_ordinary_trainer(name, tmp_path):
    """One density: the same points and draws lead to the same weights, up to the order of summation."""
    row = ROWS[name]
    config = TrainingConfig(
        seed=3, steps=6, batch_size=16, lr=1e-2, diagonal_steps=int(6 * row.warm_start), weight_decay=0.0,
        warmup_steps=2, grad_clip=0.55, amp="off", loggers=(),
    )  # fmt: skip
    data = Fixed(DENSITIES["two_moons"](1000, generator()))

    def policy():
        torch.manual_seed(0)
        return toy_policy(row, TINY)

    trainer = Trainer(policy(), build_objective(row), data, None, config, tmp_path)
    order = np.concatenate([trainer.indices(step) for step in range(6)])
    norms = [trainer.train_step()["grad_norm"] for _ in range(6)]
    mine = policy()
    (progress,) = train_side_by_side([mine], build_objective(row), [torch.from_numpy(data.points[order, 0])], config)
    assert progress.norms == pytest.approx(norms, rel=1e-4)
    assert min(norms) < config.grad_clip < max(norms)  # the clip has bitten at some steps
    before = dict(policy().named_parameters())
    for key, expected in trainer.ema.module.named_parameters():
        torch.testing.assert_close(dict(mine.named_parameters())[key], expected, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(p, before[key]) for key, p in mine.named_parameters())


@pytest.mark.parametrize("name", ["isd_t", "times_one"])
def test_networks_side_by_side_do_not_touch_each_other(name):
    """Each trains as it would beside others of any data: with draws of its own, and past a neighbour that overflows."""
    row, config = ROWS[name], TrainingConfig(seed=0, steps=4, batch_size=16, weight_decay=0.0, warmup_steps=1)
    points = DENSITIES["two_moons"](64, generator())

    def first(neighbour):
        torch.manual_seed(0)
        policies = [toy_policy(row, TINY), toy_policy(row, TINY)]
        progress = train_side_by_side(policies, build_objective(row), [points, neighbour], config)
        return [policy.state_dict() for policy in policies], progress

    (expected, _), calm = first(torch.zeros(64, 2))
    (actual, stopped), progress = first(torch.full((64, 2), float("inf")))
    assert all(torch.equal(actual[key], value) for key, value in expected.items())
    assert all(value.isfinite().all() for value in stopped.values())
    assert [len(p.norms) for p in calm] == [4, 4]
    assert [len(p.norms) for p in progress] == [4, 0]
    assert not progress[0].reason
    assert "step 0" in progress[1].reason


@pytest.mark.parametrize("name", ROWS)
def test_every_row_trains_and_samples(name):
    results = run_toys(ROWS[name], ["two_moons", "checkerboard"], [4, 5], TINY)
    runs = [("two_moons", 4), ("checkerboard", 4), ("two_moons", 5), ("checkerboard", 5)]
    assert [(r["density"], r["seed"]) for r in results] == runs
    assert [r["steps_done"] for r in results] == [4] * 4
    assert [math.isfinite(d) for r in results for d in r["distance"]] == [True] * 16
    json.dumps(results, allow_nan=False)


def test_a_cell_is_a_function_of_its_settings_and_of_nothing_else():
    def run(**changes):
        torch.manual_seed(int(np.random.default_rng().integers(1000)))
        settings = {"seeds": [0], "settings": TINY, **changes}
        (result,) = run_toys(ROWS["isd_t"], ["checkerboard"], **settings)
        return result["distance"], result["gradient"]

    assert run() == run()
    assert run() != run(seeds=[1])
    assert run() != run(settings=dataclasses.replace(TINY, lr=1e-4))


def test_a_run_that_overflows_is_counted_as_diverged_with_its_step():
    row = Row("p = 0 on the edge", "isd", {"weight_power": 0.0})
    (result,) = run_toys(row, ["two_moons"], [0], dataclasses.replace(TINY, lr=1e25, steps=50))
    assert result["diverged"]
    assert f"step {result['steps_done']}" in result["reason"]
    json.dumps(result, allow_nan=False)


def test_self_distillation_learns_a_one_step_map_that_flow_matching_does_not():
    settings = ToySettings(steps=300, batch_size=128, width=48, depth=2, samples=512, repeats=1)
    distilled, velocity = (
        run_toys(ROWS[name], ["eight_gaussians"], [0], settings)[0]["distance"] for name in ("isd_t", "flow_matching")
    )
    assert distilled[0] < 0.6 * velocity[0]
    assert velocity[3] < 0.5 * velocity[0]
    assert distilled[0] < 2 * distilled[3]  # ten steps are not a different model, even this early


# PushT.


@pytest.mark.parametrize(
    "name",
    ["isd_t", "weight_half", "trigonometric", "unpreconditioned", "cold_start", "consistency", "naive_divided",
     "meanflow", "flow_matching", "ddim"],
)  # fmt: skip
def test_a_pusht_cell_trains_what_its_row_says(name, tmp_path):
    row = PUSHT_ROWS[name]
    config = pusht_config(row, 7, PushtSettings(steps=10), tmp_path / "run", threads=1)
    assert config["objective"]["name"] == row.objective
    assert {key: config["objective"][key] for key in row.settings} == row.settings
    assert config["policy"]["interpolant"] == row.interpolant
    assert config["policy"]["precondition"] == row.precondition
    assert config["training"]["seed"] == 7
    cold = ("cold_start", "consistency", "flow_matching", "ddim")  # the last three have no such phase
    assert config["training"]["diagonal_steps"] == (0 if name in cold else 5)
    expected = {"flow_matching": "velocity", "ddim": "diffusion"}
    kind = "consistency" if name.startswith("consistency") else expected.get(name, "flow_map")
    assert config["policy"]["sampling"]["kind"] == kind


def test_a_pusht_cell_refuses_an_option_that_its_network_has_not(tmp_path):
    row = Row("wrong", "isd", network={"wings": 2})
    with pytest.raises(InputError, match=r"network\.wings"):
        pusht_config(row, 0, PushtSettings(), tmp_path / "run", threads=1)


@pytest.mark.parametrize(
    ("study", "rows"),
    [("method_study/toys", ROWS), ("method_study/pusht", PUSHT_ROWS), ("method_study_long/toys", ROWS)],
)
def test_the_committed_cells_are_of_the_rows_as_they_are_now(study, rows):
    """A changed default would make a row of the table something that nobody can run again."""
    cells = sorted((ROOT / "results" / study / "cells").glob("*.json"))
    assert cells
    for path in cells:
        settings = json.loads(path.read_text())["settings"]
        assert json.loads(json.dumps(describe(rows[settings["row"]]))) == settings["of_row"], path.name


def test_the_committed_pusht_cells_make_the_committed_table(tmp_path):
    committed = ROOT / "results/method_study"
    shutil.copytree(committed / "pusht", tmp_path / "pusht")
    assert cli.main(["study", "report", f"out={tmp_path}"]) == 0
    assert (tmp_path / "pusht.md").read_text() == (committed / "pusht.md").read_text()
    assert (tmp_path / "pusht.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
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
        "seeds=[0,1]",
        "steps=3",
        "batch_size=16",
        "width=8",
        "samples=64",
        "repeats=1",
    ]
    assert cli.main(["study", "toys", "rows=[isd_t]", "report=false", *common]) == 0
    assert not (tmp_path / "toys.md").exists()
    cells = tmp_path / "toys" / "cells"
    before = (cells / "isd_t.json").stat().st_mtime_ns
    assert cli.main(["study", "toys", "rows=[isd_t,meanflow]", *common]) == 0
    assert (cells / "isd_t.json").stat().st_mtime_ns == before
    assert sorted(p.stem for p in cells.iterdir()) == ["isd_t", "meanflow"]
    assert "| MeanFlow |" in capsys.readouterr().out
    table = (tmp_path / "toys.md").read_text()
    assert "of 2 |" in table
    assert "steps 3" in table
    for name in ("toys_samples.png", "toys_quality.png", "toys_gradients.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["study", "toys", "rows=[isd_t]", *common[:3], "steps=4", *common[4:]]) == 2
    assert "steps=3, now steps=4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["toyz"], "Did you mean 'toys'"),
        (["toys", "rows=[isdt]"], "unknown row 'isdt'. Did you mean 'isd_t'"),
        (["toys", "densities=[moons]"], "'moons' is not one of eight_gaussians, checkerboard, two_moons"),
        (["toys", "step=3"], "Did you mean 'steps'"),
        (["toys", "seeds=3"], "seeds is a list: seeds=[3]"),
        (["toys", "seeds=[-1]"], "from 0 on"),
        (["toys", "steps=0"], "steps=0 must be at least 1"),
        (["pusht", "densities=[two_moons]"], "unknown key 'densities'"),
        (["report", "out=/nowhere"], "no cells"),
    ],
)
def test_wrong_arguments_get_one_line(args, message, capsys):
    assert cli.main(["study", *args]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_table_gives_mean_and_range_over_seeds_and_counts_divergence():
    def run(seed, ratio, diverged):
        gradient = {"median": 1.0, "p99": 2.0 + seed, "max": 8.0, "p99_over_median": 2.0 + seed}
        result = {"ratio": ratio, "floor": 0.02, "noise": 0.2, "gradient": gradient, "diverged": diverged}
        return {"density": "two_moons", "seed": seed, **result}

    runs = [run(1, [2.0, 1.5, None, 1.0], True), run(0, [1.0, 1.5, None, 2.0], False)]
    cells = single_runs([{"settings": {"row": "isd_t", "title": "iSD-T"}, "result": runs}])
    table = toy_tables(cells, {("two_moons", "isd_t"): 0.057})
    assert "| iSD-T | 1.50 [1.00 to 2.00] | 1.50 [1.50 to 1.50] | no value | 1.50 [1.00 to 2.00] | 6 % |" in table
    assert "| 1.50 [1.00 to 2.00] | no value |" in toy_tables(cells)
    assert "| 1.00 | 3.0 | 8.0 | 1 of 2 |" in table
    assert "plain noise 10.0 floors" in table


def test_rows_are_chosen_by_name_once_each():
    assert chosen("row", ["meanflow", "isd_t", "meanflow"], list(ROWS)) == ["meanflow", "isd_t"]
    assert chosen("row", [], list(ROWS)) == list(ROWS)
