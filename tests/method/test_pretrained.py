"""Trunks of other packages, by a stand-in for timm: PyTorch's CPU builds and torchvision's do not go together here."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from isdt_policy.method.networks.image_encoder import CameraEncoder, ImageEncoderConfig
from isdt_policy.method.networks.pretrained import FrozenNorm, Pretrained, check_installed
from isdt_policy.shared.errors import InputError


class Model(nn.Module):
    """A convolution and a BatchNorm; pretrained ones are all 0.5."""

    default_cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.5)}  # noqa: RUF012

    def __init__(self, pretrained, flat=False):
        super().__init__()
        self.convolution, self.norm, self.flat = nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), flat
        if pretrained:
            nn.init.constant_(self.convolution.weight, 0.5)
            self.norm.running_mean.fill_(2.0)

    def forward_features(self, x):
        x = self.norm(self.convolution(x))
        return x.flatten(2) if self.flat else x


@pytest.fixture
def timm(monkeypatch):
    module = types.ModuleType("timm")
    module.__spec__ = types.SimpleNamespace(name="timm")
    module.list_models = lambda: ["tiny", "tiny_vit"]
    module.is_model = lambda name: name in module.list_models()
    module.create_model = lambda name, pretrained, num_classes: Model(pretrained, flat=name == "tiny_vit")
    monkeypatch.setitem(sys.modules, "timm", module)
    return module


def test_pictures_are_scaled_once_and_as_the_weights_expect_it(timm):
    trunk = Pretrained("timm:tiny", freeze=False)
    trunk.model = nn.Identity()
    bytes_ = torch.randint(0, 256, (2, 3, 5, 5)).float()
    expected = (bytes_ / 255 - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.25, 0.5])[
        :, None, None
    ]
    torch.testing.assert_close(trunk(bytes_ / 127.5 - 1), expected)


def test_the_weights_are_loaded_once_and_no_batch_statistics_are_left(timm):
    encoder = CameraEncoder(ImageEncoderConfig("timm:tiny", keypoints=4, features=4))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules())
    assert not (encoder.trunk.model.model.convolution.weight == 0.5).all()
    encoder.trunk.load_pretrained()
    assert (encoder.trunk.model.model.convolution.weight == 0.5).all()
    assert (encoder.trunk.model.model.norm.mean == 2).all()
    again = CameraEncoder(ImageEncoderConfig("timm:tiny", keypoints=4, features=4))
    again.load_state_dict(encoder.state_dict())
    pictures = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    assert torch.equal(again(pictures), encoder(pictures))
    assert torch.equal(encoder.train()(pictures), encoder.eval()(pictures))


def test_a_frozen_norm_is_a_batch_norm_that_does_not_learn_statistics():
    norm = nn.BatchNorm2d(5)
    for value in (norm.weight.data, norm.bias.data, norm.running_mean):
        value.normal_()
    norm.running_var.uniform_(0.1, 2)
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(FrozenNorm(norm)(x), norm.eval()(x))


def test_a_pretrained_trunk_learns_at_its_own_rate_or_not_at_all(timm, tmp_path):
    from isdt_policy.training.run import build_trainer

    for freeze, expected in ((False, 0.01), (True, None)):
        trainer = build_trainer(_settings(tmp_path, f"images.freeze={freeze}", "training.trunk_lr=0.01"))[0]
        weights = trainer.policy.cameras.encoders[0].trunk.model.model.convolution.weight
        assert (weights == 0.5).all()
        assert torch.equal(trainer.ema.module.cameras.encoders[0].trunk.model.model.convolution.weight, weights)
        for _ in range(3):  # networks begin with zeros behind the encoder
            trainer.train_step()
        factors = {id(p): group["factor"] for group in trainer.optimizer.param_groups for p in group["params"]}
        assert factors.get(id(weights)) == expected
        assert factors[id(trainer.policy.cameras.encoders[0].out.weight)] == 1
        assert bool((weights == 0.5).all()) is freeze
        trainer.run.mkdir()
        trainer.save(None)
        state = trainer.policy.state_dict()
        again = build_trainer(_settings(tmp_path, f"images.freeze={freeze}", "training.trunk_lr=0.01"))[0]
        again.resume()
        assert all(torch.equal(again.policy.state_dict()[name], value) for name, value in state.items())
        import shutil

        shutil.rmtree(trainer.run)


def _settings(tmp_path, *more):
    from isdt_policy.datasets.store import DemoWriter
    from isdt_policy.training.config import compose_config

    store, rng = tmp_path / "s.zarr", np.random.default_rng(0)
    if not store.exists():
        with DemoWriter(store, task="pusht") as writer:
            state = np.cumsum(rng.uniform(0, 9, (20, 5)), axis=0).astype(np.float32) + 100
            pictures = rng.integers(0, 256, (20, 96, 96, 3), np.uint8)
            writer.append({"state": state, "action": state[:, :2], "pixels": pictures})
    return compose_config([
        f"data.path={store}", f"run_dir={tmp_path / 'run'}", "data.obs_keys=[pixels,agent_pos]", "data.val_ratio=0",
        "images.trunk=timm:tiny", "images.keypoints=4", "images.features=4", "training.batch_size=2", "training.steps=3",
        "network.down_dims=[8,16]", "policy.cond_dim=8", "policy.encoder_hidden=[8]", "training.threads=1", "training.loggers=[]",
        "objective=flow_matching", *more,
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("trunk", "message"),
    [
        ("timm:tinny", "images.trunk=timm:tinny: timm has no such model. Did you mean 'tiny'?"),
        ("timm:tiny_vit", "images.trunk=timm:tiny_vit answers with 2 axes a picture"),
        ("tim:tiny", "images.trunk='tim:tiny' is not one of conv, resnet"),
    ],
)
def test_what_is_no_trunk_is_one_line(timm, trunk, message):
    with pytest.raises(InputError) as error:
        CameraEncoder(ImageEncoderConfig(trunk))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_package_that_is_not_installed_is_named_before_anything_is_read(monkeypatch, tmp_path, capsys):
    from isdt_policy.cli import main

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"needs timm, which is not installed|does not import"):
        check_installed("timm:resnet18")
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", "task=pusht", "images.trunk=timm:resnet18", "data.path=nowhere.zarr", "training.steps=1"]) == 2
    )
    said = capsys.readouterr().err
    assert "images.trunk=timm:resnet18 needs timm" in said
    assert "pip install 'isdt-policy[vision]'" in said
    assert len(said.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_package_built_for_another_pytorch_is_one_line(timm):
    def broken(*_, **__):
        raise RuntimeError("operator torchvision::nms does not exist")

    timm.create_model = broken
    with pytest.raises(
        InputError, match=r"the network of timm:tiny cannot be loaded .operator torchvision::nms does not exist"
    ):
        CameraEncoder(ImageEncoderConfig("timm:tiny"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"freeze": True}, "images.freeze is for pretrained trunks"),
        ({"trunk": "timm:tiny", "width": 0.5}, "images.width=0.5: a pretrained trunk has the width"),
        ({"jitter": 1.5}, "images.jitter must be from 0 to 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        ImageEncoderConfig(**settings)
