"""A policy as one graph: normalisers, encoder and the chosen number of network evaluations, in ONNX or torch.export's pt2.

Graph: noise and raw observation histories in, actions in the environment's units out. Noise is an input, so a graph is a
pure function and agrees with the policy to rounding.

    inputs   noise (batch, horizon, action_dim); one "obs.<key>" (batch, n_obs_steps, d) per key; all float32. A picture is uint8
             (batch, n_obs_steps, height, width, 3): crop and scale are inside
    output   action_pred (batch, horizon, action_dim)

With prefix=True it continues started chunks (see `freezing`): noise has an axis of draws, (batch, noise_draws,
horizon, action_dim), and there are two more inputs, known (batch, horizon, action_dim) and weight (batch, horizon).
Such a graph also acts freely: weight = 0 everywhere.

What the runner needs to know (window, keys, limits, origin) is inside the file as JSON. So is a SHA-256 of the ONNX file: `runner`
refuses a file with a flipped bit.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor, nn

from isdt_policy import __version__
from isdt_policy.deploy.freezing import (
    CANDIDATES,
    PrefixPolicy,
    candidate_noise,
    inpaint,
    inpainting_grid,
    require_flow_map,
)
from isdt_policy.deploy.limits import Limits
from isdt_policy.deploy.runner import DIGEST, METADATA, VERSIONS, ZEROS, OnnxPolicy
from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.extras import require
from isdt_policy.shared.files import check_writable, write_bytes

if TYPE_CHECKING:
    from onnx import ModelProto

FORMATS = ("onnx", "pt2")
WEIGHTS = ("float32", "int8")
NARROW = 16  # inputs or outputs below which a product stays in float32


class PolicyGraph(nn.Module):
    """What is exported; call signature as in the module docstring.

    Args:
        policy: trained, with its statistics.
        nfe: network evaluations, or a sampler's name.
        prefix: continue started chunks.
    """

    def __init__(self, policy: Policy, nfe: int | str = 1, prefix: bool = False) -> None:
        super().__init__()
        self.policy, self.prefix = policy, prefix
        self.plan = policy.plan(nfe)
        if prefix:
            require_flow_map(policy)
            self.times = inpainting_grid(nfe)
            self.draws = CANDIDATES + len(self.times) - 2
        elif self.plan.stochastic:
            raise InputError(f"nfe={nfe} draws noise on its way, which a graph cannot; export compositions: nfe=2.")

    def forward(self, noise: Tensor, *rest: Tensor) -> Tensor:
        policy = self.policy
        obs = dict(zip(policy.obs_keys, rest))
        cond = policy.encode(obs)
        if not self.prefix:
            return policy.normalizer.unnormalize_action(self.plan.run(policy.flow_map, noise, cond), obs)
        known, weight = rest[len(policy.obs_keys) :]
        x = inpaint(policy.flow_map, noise, cond, self.times, policy.normalizer.normalize_action(known, obs), weight)
        return torch.where((weight == 1)[..., None], known, policy.normalizer.unnormalize_action(x, obs))

    def input_names(self) -> list[str]:
        """Names of the arguments of `forward`, in order."""
        return ["noise", *(f"obs.{key}" for key in self.policy.obs_keys), *(["known", "weight"] if self.prefix else [])]

    def example(self, batch: int = 2) -> tuple[Tensor, ...]:
        """Arguments of the right shapes; zeros for the observations, normal noise."""
        config = self.policy.config
        shape = (config.horizon, config.action_dim)
        noise = torch.randn(batch, *((self.draws,) if self.prefix else ()), *shape)
        specs = config.observations.values()
        obs = [torch.from_numpy(np.zeros((batch, config.n_obs_steps, *s.shape), s.dtype)) for s in specs]
        return (noise, *obs, *((torch.zeros(batch, *shape), torch.zeros(batch, config.horizon)) if self.prefix else ()))


@dataclass(frozen=True)
class FileFormat:
    """What is written.

    Attributes:
        format: "onnx" or "pt2".
        nfe, prefix: see `PolicyGraph`.
        weights: "int8" (ONNX) stores the convolutions of the network as 8-bit integers with one scale per channel, and rounds
            their inputs to 8 bits while it runs. It takes a quarter of the bytes and makes an error in the actions. The encoder
            and the layers of times and observations keep float32.
    """

    format: str = "onnx"
    nfe: int | str = 1
    prefix: bool = False
    weights: str = "float32"

    def __post_init__(self) -> None:
        for name, value, allowed in (("format", self.format, FORMATS), ("weights", self.weights, WEIGHTS)):
            if value not in allowed:
                raise InputError(f"{name}='{value}' is not one of {', '.join(allowed)}.{nearest(value, allowed)}")
        if self.weights != "float32" and self.format != "onnx":
            raise InputError(f"weights={self.weights} belongs to format=onnx.")


def export(
    policy: Policy,
    out: str | Path,
    file: FileFormat = FileFormat(),
    *,
    limits: Limits | None = None,
    source: str = "",
) -> Path:
    """Write a policy as one file.

    Args:
        policy: trained, with its statistics; moved to the CPU.
        out: file to write, replaced if it exists.
        file: see `FileFormat`.
        limits: limits of the commands; the file holds them for the runner.
        source: where the weights come from; the file says so.

    Raises:
        InputError: an nfe that does not suit the policy, a package that is missing, or a place that cannot be written.
    """
    policy.normalizer.check()
    if file.format == "onnx":
        for package in ("onnx", "onnxscript"):  # torch's exporter is written in the second
            require(package, "export", "format=onnx")
    out = Path(out)
    check_writable(out)
    graph = PolicyGraph(policy.cpu().eval(), file.nfe, file.prefix).eval()
    metadata = {**describe(policy, file.nfe, file.prefix, limits, source), "weights": file.weights}
    example = graph.example()
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = ({0: batch}, tuple({0: batch} for _ in example[1:]))
    with torch.no_grad():
        program = torch.export.export(graph, example, dynamic_shapes=shapes, strict=False)
    if file.format == "pt2":
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={METADATA: json.dumps(metadata)})
        data = buffer.getvalue()
    else:
        data = _onnx(program, example, graph.input_names(), metadata, file.weights)
    write_bytes(out, data)
    return out


def describe(policy: Policy, nfe: int | str, prefix: bool, limits: Limits | None, source: str) -> dict[str, object]:
    """What travels inside an exported file, as JSON values."""
    config = policy.config
    return {
        "format": VERSIONS[bool(config.images)],
        "task": config.task,
        "obs_dims": dict(config.obs_dims),
        **({"images": config.to_json()["images"]} if config.images else {}),
        "action_dim": config.action_dim,
        "action_type": config.action_type,
        "n_obs_steps": config.n_obs_steps,
        "n_action_steps": config.n_action_steps,
        "horizon": config.horizon,
        "steps": str(nfe),
        "evaluations": len(inpainting_grid(nfe)) - 1 if prefix else policy.plan(nfe).evaluations,
        "noise_draws": CANDIDATES + len(inpainting_grid(nfe)) - 2 if prefix else 0,
        "recorded": None if config.recorded is None else asdict(config.recorded),
        "limits": {} if limits is None else limits.as_dict(),
        "source": source,
        "weights_sha256": weights_hash(policy),
        "isdt_policy": __version__,
        "torch": torch.__version__,
        "config": json.loads(json.dumps(asdict(config))),
    }


def weights_hash(policy: nn.Module) -> str:
    """SHA-256 over names, shapes and values of parameters and statistics."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_pt2(path: str | Path) -> tuple[nn.Module, dict[str, object]]:
    """Load a pt2 file: (graph with the inputs of `PolicyGraph`, metadata). Only for files from people you trust.

    Raises:
        InputError: the file cannot be read, or is no policy.
    """
    extra = {METADATA: ""}
    try:
        program = torch.export.load(str(path), extra_files=extra)
    except Exception as error:  # the loader raises whatever its zip and JSON readers do
        raise InputError(f"{path} cannot be read as pt2: {str(error).splitlines()[0]}") from error
    if not extra[METADATA]:
        raise InputError(f"{path} is a pt2 file, but not one written by isdt export.")
    return program.module(), json.loads(extra[METADATA])


def _onnx(
    program: torch.export.ExportedProgram,
    example: tuple[Tensor, ...],
    names: list[str],
    metadata: dict[str, object],
    weights: str,
) -> bytes:
    import onnx

    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's advice to its own developers
            result = torch.onnx.export(
                program,
                example,
                input_names=names,
                output_names=["action_pred"],
                dynamo=True,
                verbose=False,
                optimize=True,
            )
    finally:
        quiet.setLevel(level)
    assert result is not None
    model = result.model_proto
    # The exporter notes where in the source every node comes from: half the file, and paths of the exporting machine.
    for part in (model.graph, *model.functions):
        for item in (*part.node, *part.value_info, *getattr(part, "input", ()), *getattr(part, "initializer", ())):
            for name in ("metadata_props", "doc_string"):
                if hasattr(item, name):
                    item.ClearField(name)
    if weights == "int8":
        model = _int8(model)
    onnx.checker.check_model(model)
    for key, value in ((METADATA, json.dumps(metadata)), (DIGEST, ZEROS)):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    # The digest is over the file with zeros in its own place, which has the same length.
    data: bytes = model.SerializeToString()
    if data.count(ZEROS.encode()) != 1:
        raise RuntimeError("the digest's placeholder is not unique in the file")
    return data.replace(ZEROS.encode(), b"sha256:" + hashlib.sha256(data).hexdigest().encode())


def _int8(model: ModelProto) -> ModelProto:
    """The same graph with the products of the network's convolutions in 8-bit integers."""
    import tempfile

    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Convolutions are products along the time axis, so MatMul; what has no such axis is a Gemm: encoder, times, FiLM. The
    # first and the last layer are narrow: they would save nothing, and their error is the noise's and the action's.
    # Weights take 7 of the 8 bits (`reduce_range`): processors without VNNI add two products of 8 bits in 16, which
    # saturates, and the actions would be wrong there without a word. https://github.com/microsoft/onnxruntime/issues/14642
    constants = {constant.name: constant.dims for constant in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    others = [n.name for n in products if n.op_type == "Gemm" or min(constants.get(n.input[1], [0])) < NARROW]
    others += [f"{name}_MatMul" for name in others]  # what the quantiser makes of a Gemm
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        logging.getLogger().disabled, before = True, logging.getLogger().disabled  # advice about preprocessing
        try:
            quantize_dynamic(
                model, path, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
                reduce_range=True, nodes_to_exclude=others, extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
        finally:
            logging.getLogger().disabled = before
        return onnx.load(str(path))


def parity(
    policy: Policy, path: str | Path, *, nfe: int | str = 1, prefix: bool = False, inputs: int = 1000, seed: int = 0
) -> float:
    """Largest difference between a policy and its exported file, in normalised actions.

    Observations are drawn from N(0, 1) in normalised units, pictures from all bytes (at most 64 inputs then); with `prefix`, the
    known actions likewise and the weights from {0, 1}.
    """
    config, rng = policy.config, np.random.default_rng(seed)
    inputs = min(inputs, 64) if config.images else inputs
    obs = {}
    for key, dim in config.obs_dims.items():
        x = torch.from_numpy(rng.standard_normal((inputs, config.n_obs_steps, dim), dtype=np.float32))
        obs[key] = policy.normalizer.obs[key].inverse(x).numpy()  # type: ignore[operator]
    for key, spec in config.images.items():
        obs[key] = rng.integers(0, 256, (inputs, config.n_obs_steps, *spec.shape), np.uint8)
    seeds = np.stack([np.full(inputs, seed), np.arange(inputs)], axis=1)
    shape = (inputs, config.horizon, config.action_dim)
    if prefix:
        y = torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
        given = {key: torch.from_numpy(value) for key, value in obs.items()}
        known = policy.normalizer.unnormalize_action(y, given).numpy()
        weight = rng.choice([0.0, 1.0], shape[:2]).astype(np.float32)
        expected = PrefixPolicy(policy).continue_action(obs, known, weight, nfe=nfe, noise_seeds=seeds)
    else:
        expected = policy.predict_action(obs, nfe=nfe, noise_seeds=seeds)
    if Path(path).suffix == ".onnx":
        runner = OnnxPolicy(path)
        got = (
            runner.continue_action(obs, known, weight, noise_seeds=seeds)
            if prefix
            else runner.predict_action(obs, noise_seeds=seeds)
        )["action_pred"]
    else:
        graph, metadata = load_pt2(path)
        noise = candidate_noise(shape, cast(int, metadata["noise_draws"]) if prefix else 1, seeds)
        arguments = [noise if prefix else noise[:, 0], *(obs[key] for key in policy.obs_keys)]
        arguments += [known, weight] if prefix else []
        with torch.no_grad():
            got = graph(*(torch.from_numpy(a) for a in arguments)).numpy()
    scale = policy.normalizer.action.scale.cpu().numpy()
    return float(np.abs((got - expected["action_pred"]) * scale).max())
