"""Everything needed to build a policy and to act with it, and how that is written to config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from isdt_policy.envs.protocol import ObsSpec
from isdt_policy.method.interpolants import INTERPOLANTS
from isdt_policy.method.networks import NetworkConfig, read_network, write_network
from isdt_policy.method.networks.image_encoder import ImageEncoderConfig
from isdt_policy.method.networks.unet1d import UNet1dConfig
from isdt_policy.method.samplers import FLOW_MAP, Sampling
from isdt_policy.shared.errors import InputError, nearest
from isdt_policy.shared.looks import Looks
from isdt_policy.shared.recorded import Recorded
from isdt_policy.shared.values import fitting

# Version 1 lists states by their sizes ("obs_dims"); it is still what is written for a policy that reads states alone, so
# that earlier installations read it. Version 2 adds pictures ("images", "image_encoder").
FORMAT_VERSIONS = (1, 2)


_PLAIN = ("int", "float", "str", "bool")  # fields whose JSON value is the field's own
_LARGEST = 2**16  # of any size that a config.json may name; nothing is allocated beyond it


@dataclass(frozen=True)
class PolicyConfig:
    """Everything needed to build a policy and to act with it; saved as config.json beside the weights.

    Attributes:
        task: task id of the environment registry, or "" for data without one.
        observations: what the policy reads, by key, in reading order.
        action_dim: features of one action.
        n_obs_steps, horizon, n_action_steps: see the timeline above.
        interpolant: "linear" or "trigonometric".
        network: sizes of the network, of a class in `NETWORKS`.
        cond_dim, encoder_hidden, encoder_octaves: size of the observation embedding, hidden widths of its MLP, and how
            many sines and cosines it reads of every entry (see `StateEncoder`).
        image_encoder: how pictures are read, if any are.
        precondition: scale network input and output to unit variance.
        sigma_data: standard deviation of the normalised actions.
        obs_normalization, action_normalization: "limits", "gaussian" or (actions) "gaussian_per_step", "gaussian_vectors"; see
            `Affine.fit` and `Normalizer.fit`.
        action_reference: observation key whose newest value is the frame of the chunk (see `normalization.frame_of`), or
            "" for absolute chunks.
        action_type: what an action means, checked against the environment.
        noise_scale: of the initial noise when acting, 1 as in training; towards 0 every draw is nearer to the middle of what
            the policy would draw. Later noise of a stochastic sampler and chunks that continue started ones keep 1.
        sampling: what the objective taught the network; it decides what `nfe` may be.
        recorded: the robot as its recordings show it, for a policy without a registered task; None for the others.
    """

    task: str
    observations: Mapping[str, ObsSpec]
    action_dim: int
    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    interpolant: str = "linear"
    network: NetworkConfig = UNet1dConfig()  # noqa: RUF009 - frozen
    cond_dim: int = 128
    encoder_hidden: tuple[int, ...] = (256, 256)
    encoder_octaves: int = 0
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()  # noqa: RUF009 - frozen
    precondition: bool = True
    sigma_data: float = 0.5
    obs_normalization: str = "limits"
    action_normalization: str = "limits"
    action_reference: str = ""
    action_type: str = ""
    noise_scale: float = 1.0
    sampling: Sampling = FLOW_MAP
    recorded: Recorded | None = None

    def __post_init__(self) -> None:
        if min(self.n_obs_steps, self.horizon, self.n_action_steps) < 1:
            raise InputError("n_obs_steps, horizon and n_action_steps must be at least 1.")
        if self.n_action_steps > self.horizon - self.n_obs_steps + 1:
            raise InputError(
                f"n_action_steps={self.n_action_steps} does not fit: a window of horizon={self.horizon} with "
                f"n_obs_steps={self.n_obs_steps} holds {self.horizon - self.n_obs_steps + 1} actions from now on."
            )
        if any(type(width) is not int or not 0 < width <= _LARGEST for width in self.encoder_hidden):
            raise InputError(f"encoder_hidden={list(self.encoder_hidden)}: widths are whole numbers above 0.")
        if not 0 < self.cond_dim <= _LARGEST or not 0 <= self.encoder_octaves <= 64:
            raise InputError(
                f"cond_dim={self.cond_dim} must be above 0, and encoder_octaves={self.encoder_octaves} from 0 to 64."
            )
        if self.interpolant not in INTERPOLANTS:
            known = ", ".join(INTERPOLANTS)
            raise InputError(
                f"interpolant='{self.interpolant}' is not one of {known}.{nearest(self.interpolant, INTERPOLANTS)}"
            )
        if not 0 <= self.noise_scale <= 1:
            raise InputError(f"noise_scale must be in [0, 1], got {self.noise_scale}.")
        if self.sampling.kind == "diffusion":
            if self.interpolant != "trigonometric":
                raise InputError(
                    f"a diffusion policy preserves variance and needs policy.interpolant=trigonometric, got '{self.interpolant}'."
                )
            self.sampling.schedule.scheduler()  # refuses a missing diffusers before anything is trained or evaluated

    @property
    def obs_dims(self) -> dict[str, int]:
        """Features per key of the states it reads."""
        return {key: spec.size for key, spec in self.observations.items() if spec.kind == "state"}

    @property
    def images(self) -> dict[str, ObsSpec]:
        """The pictures it reads."""
        return {key: spec for key, spec in self.observations.items() if spec.kind == "image"}

    def to_json(self) -> dict[str, object]:
        """As config.json holds it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["observations"], values["image_encoder"]
        pictures = {key: _picture(spec) for key, spec in self.images.items()}
        if values.pop("recorded") is not None:
            values["recorded"] = asdict(self.recorded)  # type: ignore[arg-type]
        seen = {"images": pictures, "image_encoder": asdict(self.image_encoder)}
        return {
            "format_version": FORMAT_VERSIONS[bool(pictures)],
            "task": values.pop("task"),
            "obs_dims": self.obs_dims,
            **(seen if pictures else {}),
            **values,
            "network": write_network(self.network),
            "sampling": asdict(self.sampling),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, object], source: str = "config.json") -> PolicyConfig:
        """The inverse of `to_json`; what an earlier version did not write takes its default.

        Args:
            source: name of the file, for messages.

        Raises:
            InputError: another format, an unknown key (with the nearest name), or a value that is not allowed.
        """
        raw = dict(values)
        version = raw.pop("format_version", None)
        if version not in FORMAT_VERSIONS:
            raise InputError(f"{source}: policy format {version}, this version reads 1 and 2.")
        known = {field.name for field in fields(cls)} - {"observations"} | {"obs_dims", "images"}
        unknown = sorted(set(raw) - known)
        if unknown:
            raise InputError(f"{source}: unknown key '{unknown[0]}'.{nearest(unknown[0], known)}")
        missing = sorted({"task", "obs_dims", "action_dim"} - set(raw))
        if missing:
            raise InputError(f"{source} has no '{missing[0]}'; it is not complete. Copy the folder again.")
        sections = {
            "obs_dims": dict,
            "network": dict,
            "sampling": dict,
            "encoder_hidden": list,
            "images": dict,
            "image_encoder": dict,
        }
        for name, kind in sections.items():
            if not isinstance(raw.get(name, kind()), kind):
                raise InputError(f"{source}: '{name}' must be {'an object' if kind is dict else 'a list'}.")
        try:
            return cls._typed(raw, source)
        except InputError:
            raise
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise InputError(f"{source} is damaged ({error}); copy the folder again.") from error

    @classmethod
    def _typed(cls, raw: dict[str, object], source: str) -> PolicyConfig:
        """Values of JSON as this class has them; what they raise is told by `from_json`."""
        plain = {field.name for field in fields(cls) if field.type in _PLAIN}
        for name, value in fitting(cls, {name: raw[name] for name in plain & raw.keys()}).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value <= _LARGEST:
                raise ValueError(f"{name} is {value!r}")
        dims: dict[str, int] = raw.pop("obs_dims")  # type: ignore[assignment]
        if any(type(size) is not int or not 0 < size <= _LARGEST for size in dims.values()):
            raise ValueError(f"obs_dims is {dims}")
        states = {key: ObsSpec((size,)) for key, size in dims.items()}
        raw["observations"] = {**states, **_pictures(raw.pop("images", {}), source)}
        if "image_encoder" in raw:
            raw["image_encoder"] = _image_encoder(raw["image_encoder"], source)
        if "encoder_hidden" in raw:
            raw["encoder_hidden"] = tuple(raw["encoder_hidden"])  # type: ignore[arg-type]
        if "network" in raw:
            raw["network"] = read_network(raw["network"])  # type: ignore[arg-type]
        if "sampling" in raw:
            raw["sampling"] = Sampling.read(raw["sampling"])  # type: ignore[arg-type]
        if "recorded" in raw:
            raw["recorded"] = Recorded.read(raw["recorded"], source)
        return cls(**raw)  # type: ignore[arg-type]


def _picture(spec: ObsSpec) -> dict[str, object]:
    """A camera, as config.json and exported files hold it."""
    found: dict[str, object] = {"shape": list(spec.shape), "crop": list(spec.crop or spec.shape[:2])}
    if spec.source is not None:
        found["source"] = list(spec.source)
    if spec.looks is not None:
        found["looks"] = {**asdict(spec.looks), "colour": list(spec.looks.colour)}
    return found


def _pictures(values: object, source: str) -> dict[str, ObsSpec]:
    """Cameras of a config.json."""
    assert isinstance(values, Mapping)
    found = {}
    for key, entry in values.items():
        try:
            shape, crop = (tuple(int(n) for n in entry[name]) for name in ("shape", "crop"))
            before = None if entry.get("source") is None else tuple(int(n) for n in entry["source"])
        except (TypeError, KeyError, ValueError, AttributeError):
            raise InputError(f"{source}: images.{key} must have 'shape' and 'crop', lists of whole numbers.") from None
        try:
            looks = Looks.read(entry.get("looks"))
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(f"{source}: images.{key}.looks is damaged ({error}); copy the folder again.") from None
        if len(shape) != 3 or shape[2] != 3 or len(crop) != 2 or not all(0 < c <= n for c, n in zip(crop, shape)):
            raise InputError(
                f"{source}: images.{key} has shape {shape} and crop {crop}; the crop must fit (height, width, 3)."
            )
        if before is not None and (len(before) != 3 or before[2] != 3 or not all(0 < n <= _LARGEST for n in before)):
            raise InputError(f"{source}: images.{key} has source {before}, which is no (height, width, 3).")
        found[str(key)] = ObsSpec(shape, "image", "uint8", crop=(crop[0], crop[1]), source=before, looks=looks)
    return found


def _image_encoder(values: object, source: str) -> ImageEncoderConfig:
    assert isinstance(values, Mapping)
    known = [field.name for field in fields(ImageEncoderConfig)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise InputError(f"{source}: image_encoder has no '{unknown[0]}'.{nearest(unknown[0], known)}")
    return ImageEncoderConfig(**values)
