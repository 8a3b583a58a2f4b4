"""A policy on the Hugging Face Hub, through huggingface_hub's mixin: weights, configuration, limits, a card from an evaluation.

A class beside the policy: the core does not depend on the hub's client. Only safetensors and JSON travel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isdt_policy import __version__
from isdt_policy.deploy.card import About, model_card
from isdt_policy.deploy.limits import FILE, Limits
from isdt_policy.eval.result import Result
from isdt_policy.method.policy import Policy
from isdt_policy.shared.errors import InputError
from isdt_policy.shared.extras import require

require("huggingface_hub", "hub", "The Hugging Face Hub")  # before the import, which would say less
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download  # noqa: E402
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError  # noqa: E402

FILES = ("config.json", "model.safetensors", FILE, "eval_info.json")
# The first base is the HTTP library's own error, of which broken connections are another kind.
_FAILURES: tuple[type[Exception], ...] = (
    HfHubHTTPError.__bases__[0],
    HFValidationError,
    LocalTokenNotFoundError,
    OSError,
)


class HubPolicy(ModelHubMixin, Policy):  # type: ignore[misc]  # their save_pretrained takes more than a path
    """A policy with the hub's `save_pretrained(folder)`, `from_pretrained(name_or_folder)` and `push_to_hub(name)`.

    A folder holds config.json, model.safetensors and README.md, and limits.json and eval_info.json if there are any.

    Attributes:
        limits: limits of the commands, or None.
        results: the evaluation that the card shows, or None.
        about: licence, demonstrations and command, for the card.

    Example:
        HubPolicy.from_run("outputs/pusht_demo").push_to_hub("me/pusht")
        policy = HubPolicy.from_pretrained("me/pusht")
    """

    limits: Limits | None = None
    results: Result | None = None
    repo: str | None = None
    about: About = About()

    @classmethod
    def from_run(
        cls,
        checkpoint: str | Path,
        *,
        limits: Limits | None = None,
        results: str | Path | None = None,
        license: str = "",
    ) -> HubPolicy:
        """Load a trained policy and what is known of it.

        Args:
            checkpoint: run directory, checkpoint or folder of save_pretrained.
            limits: limits of the commands.
            results: eval_info.json; None takes <checkpoint>/eval/eval_info.json if that is there and of these weights.
            license: identifier for the card, such as "mit".

        Raises:
            InputError: no policy there, or results of other weights.
        """
        policy = cls._load(checkpoint)
        policy.limits, policy.about = limits, About.of_run(checkpoint, license)
        info_path = Path(checkpoint) / "eval" / "eval_info.json" if results is None else Path(results)
        if info_path.is_file():
            result = Result.load(info_path)
            if result.origin.policy.fingerprint == policy.fingerprint:
                policy.results = result
            elif results is not None:
                raise InputError(f"{info_path} is an evaluation of other weights than those at {checkpoint}.")
        elif results is not None:
            raise InputError(f"no results at '{info_path}'. Make some: isdt eval checkpoint={checkpoint}")
        return policy

    @classmethod
    def _load(cls, folder: str | Path) -> HubPolicy:
        policy = Policy.from_pretrained.__func__(cls, folder)  # type: ignore[attr-defined]
        assert isinstance(policy, HubPolicy)
        return policy

    # What the mixin calls.

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> HubPolicy:
        if not Path(model_id).is_dir():
            kept = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            chosen = {key: options[key] for key in kept if key in options}
            model_id = snapshot_download(model_id, allow_patterns=list(FILES), **chosen)
        policy = cls._load(model_id)
        if (Path(model_id) / FILE).is_file():
            policy.limits = Limits.load(Path(model_id) / FILE)
        if (Path(model_id) / "eval_info.json").is_file():
            policy.results = Result.load(model_id)
        return policy

    def _save_pretrained(self, save_directory: Path) -> None:
        if set(path.name for path in save_directory.iterdir()) - {*FILES, "README.md"}:
            raise InputError(f"{save_directory} holds files of something else; give a new folder.")
        Policy.save_pretrained(self, save_directory)
        if self.limits is not None:
            self.limits.save(save_directory)
        if self.results is not None:
            self.results.save(save_directory)

    def generate_model_card(self, *args: object, **kwargs: object) -> ModelCard:
        """Return the card: task, window, results with intervals, the commands that made and use it."""
        return ModelCard(model_card(self, self.results, self.repo, self.about))

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> HubPolicy:  # type: ignore[override]
        """Load from the hub ("me/pusht") or from a local folder; `options` are the mixin's (revision, token, ...).

        Raises:
            InputError: no such repository, it cannot be reached, or it holds no policy.
        """
        try:
            loaded: HubPolicy = super().from_pretrained(str(name), **options)
        except _FAILURES as error:
            raise InputError(f"'{name}' cannot be loaded from the hub: {str(error).splitlines()[0]}") from error
        return loaded

    def push_to_hub(self, repo_id: str, *, private: bool | None = True, **options: Any) -> str:  # type: ignore[override]
        """Upload and return the commit's address; `options` are the mixin's. Needs a token (`hf auth login`).

        Raises:
            InputError: the hub refuses, or cannot be reached.
        """
        self.repo = repo_id
        message = options.pop("commit_message", f"isdt-policy {__version__}")
        try:
            return str(super().push_to_hub(repo_id, private=private, commit_message=message, **options))
        except _FAILURES as error:
            raise InputError(f"upload to '{repo_id}' failed: {str(error).splitlines()[0]}") from error
