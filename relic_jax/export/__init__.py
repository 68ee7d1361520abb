"""Export policies as safetensors, StableHLO, ONNX or orbax. Every export is verified against the original policy."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import jax

from relic_jax import runtime, settings, step, trust
from relic_jax.config import ConfigError, to_data
from relic_jax.errors import VerificationError as VerificationError
from relic_jax.export import card, onnx_graph, runner, stablehlo, verify, weights
from relic_jax.export.weights import DTYPES, Dtype
from relic_jax.files import new_folder, storage_failure, write_checksums
from relic_jax.loading import LoadedPolicy, is_export, load_policy
from relic_jax.models.policy import Policy
from relic_jax.parameters import fingerprint
from relic_jax.rl.memory_budget import check_context
from relic_jax.runtime import CHECKSUMS, POLICY_FORMAT, Backend, read_about
from relic_jax.types import Params

ExportFormat = Literal["safetensors", "stablehlo", "onnx", "orbax"]
ARTEFACTS = {
    "safetensors": "model.safetensors",
    "stablehlo": "policy.stablehlo",
    "onnx": "policy.onnx",
    "orbax": "arrays",
}
_EVALUATION = (
    *("env", "split", "split_hash", "tasks", "episodes", "repeats", "seeds", "expert_episodes", "context_limit"),
    *("env_options", "reference_returns", "return", "success", "metrics", "gain", "later_gain", "reference_agents"),
)
_LARGE = 256 * 2**20  # bytes of keys and values per environment, above which verification uses only one


@settings.with_standard
def export_policy(
    loaded: LoadedPolicy,
    to: Path,
    *,
    format: ExportFormat = "safetensors",  # the name of the option
    dtype: Dtype = "float32",
    context: int | None = None,
    name: str | None = None,
    preset: str | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Write a policy to a folder atomically.

    Args:
        loaded: The policy.
        to: The folder.
        format: Format of the export.
        dtype: Dtype of the weights. Other than float32 only with safetensors.
        context: Number of steps that the context has room for, which StableHLO fixes. None:
            `LoadedPolicy.default_context`.
        name: Name of the model. None: the name of its run.
        preset: Name of the preset that it was trained with.
        note: Text for the model card, after the results.

    Returns:
        The content of its verification.json.

    Raises:
        ConfigError: If an argument is invalid. Nothing is written then.
        VerificationError: If the export differs from the policy.
    """
    context = loaded.default_context if context is None else context
    check_request(to, format, dtype, context, loaded.spaces.horizon)
    check_context(loaded.policy.config, context)
    if format == "onnx":
        onnx_graph.load_onnx()
        onnx_graph.check(loaded.policy)
    params = weights.rounded(loaded.params, dtype)
    about = describe(loaded, params, format, dtype, context, preset)
    try:
        with new_folder(to) as folder:
            write_artefact(folder, loaded.policy, params, about, format, dtype)
            (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n")
            write_checksums(folder)
            check = verified(folder, loaded, params, about, format, dtype)
            (folder / "verification.json").write_text(json.dumps(check, indent=1) + "\n")
            figure = write_figure(folder, loaded)
            write_checksums(folder)  # of all files
            name = name or loaded.training.get("run") or to.name
            (folder / "README.md").write_text(card.model_card(name, loaded, about, check, figure, note))
    except (ConfigError, VerificationError):
        raise
    except Exception as error:  # libraries wrap OSError
        reason = storage_failure(error) or (error.strerror if isinstance(error, OSError) else None)
        if reason is None:
            raise
        raise ConfigError(f"to is '{to}'; allowed: a folder that can be written ({reason})") from None
    return check


def check_request(to: Path, format: str, dtype: str, context: int, horizon: int) -> None:
    """Raise ConfigError at the first invalid argument of `export_policy`. ``horizon`` is the environment's."""
    if format not in ARTEFACTS:
        raise ConfigError(f"format is {format!r}; allowed: {', '.join(map(repr, ARTEFACTS))}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; allowed: {', '.join(map(repr, DTYPES))}")
    if dtype != "float32" and format != "safetensors":
        raise ConfigError(f"dtype is {dtype!r}; allowed: 'float32' with format {format!r}")
    if context < horizon:
        raise ConfigError(f"context is {context}; allowed: {horizon} or more (the longest episode)")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        there = read_about(to).get("artefact") if to.is_dir() and is_export(to) else None
        if there != ARTEFACTS[format]:
            allowed = f"a new folder, or an earlier export of format {format!r}"
            raise ConfigError(f"to is '{to}', which has other content; allowed: {allowed}")
    parent = next(path for path in to.absolute().parents if path.exists())
    if not parent.is_dir():
        raise ConfigError(f"to is '{to}'; allowed: a folder that can be created ('{parent}' is a file)")


def describe(
    loaded: LoadedPolicy,
    params: Params,
    format: ExportFormat,
    dtype: Dtype,
    context: int,
    preset: str | None,
) -> dict[str, Any]:
    """Return the content of config.json. See `export_policy` for the arguments."""
    policy, trial = loaded.policy, loaded.config.trial
    config = to_data(loaded.config)
    evaluation = loaded.evaluation and loaded.evaluation.to_json()
    training = {**loaded.training, **({} if preset is None else {"preset": preset})}
    return {
        "format": POLICY_FORMAT,
        "library": {"name": "relic-jax", "version": importlib.metadata.version("relic-jax")},
        "artefact": ARTEFACTS[format],
        "checksums": CHECKSUMS,
        "weights": {
            "dtype": dtype,
            "fingerprint": fingerprint(params),
            "parameters": sum(x.size for x in jax.tree.leaves(params)),
        },
        "architecture": config.pop("policy"),
        "spaces": step.described_spaces(loaded.spaces, policy, trial.show_last_reward, trial.action_repeat),
        "step": step.description(policy, "float32", context),
        "training": {**training, "config": config},
        "owner": trust.sign(loaded.config) if loaded.own else None,
        "evaluation": evaluation and {name: evaluation[name] for name in _EVALUATION if name in evaluation},
    }


def write_artefact(
    folder: Path,
    policy: Policy,
    params: Params,
    about: dict[str, Any],
    format: ExportFormat,
    dtype: Dtype,
) -> None:
    """Write the policy. StableHLO and ONNX exports also get code to run them, and the weights for `load_policy`."""
    if format == "orbax":
        from relic_jax import checkpoint

        checkpoint.write_params(folder, params)
        return
    weights.write(folder / "model.safetensors", params, dtype, {"format": POLICY_FORMAT})
    if format == "safetensors":
        return
    if format == "onnx":
        (folder / "policy.onnx").write_bytes(onnx_graph.build(policy, params))
    else:
        (folder / "policy.stablehlo").write_bytes(stablehlo.build(policy, params, about["step"]["context"]))
    runner.write_runner(folder)


def verified(
    folder: Path,
    loaded: LoadedPolicy,
    params: Params,
    about: dict[str, Any],
    format: ExportFormat,
    dtype: Dtype,
) -> dict[str, Any]:
    """Load the export, run it beside the policy and return the differences. Raises VerificationError if too large."""
    policy, context = loaded.policy, about["step"]["context"]
    other: Backend
    if format == "onnx":
        policy, other = onnx_graph.in_float32(policy), runtime.Onnx(folder / "policy.onnx", about)
    elif format == "stablehlo":
        other = runtime.stable_hlo(folder / "policy.stablehlo", about)
    else:
        reloaded = load_policy(folder)
        other = verify.live(about, reloaded.policy, reloaded.params)
    transformer = policy.config.transformer
    batch = 1 if context * transformer.layers * transformer.width * 8 > _LARGE else 2
    found = verify.compare(about, verify.live(about, policy, params), other, batch=batch, context=context)
    narrow = transformer.dtype == "bfloat16"
    tolerance = verify.TOLERANCE_BFLOAT16 if narrow else verify.TOLERANCE
    found = {"format": format, "dtype": dtype, "context": context, "tolerance": tolerance, **found}
    if dtype != "float32":
        original = verify.live(about, policy, loaded.params)
        found["largest_difference_by_rounding"] = verify.compare(
            about, original, verify.live(about, policy, params), batch=batch, context=context
        )["largest_difference"]
    if loaded.policy.config.transformer.dtype != transformer.dtype:
        found["reference"] = "the policy with activations in float32, which the graph uses"
    if not found["largest_scaled_difference"] <= tolerance:
        raise VerificationError(
            f"the {format} export differs from the policy by {found['largest_scaled_difference']:.2g}, more than "
            f"{tolerance:.0e}; nothing was written"
        )
    return found


def write_figure(folder: Path, loaded: LoadedPolicy) -> bool:
    """Copy the figure of the evaluation, if the policy has one, and return whether it does."""
    source = next(
        (p for p in (loaded.path / "curve.png", loaded.path.parent.parent / "curve.png") if p.is_file()), None
    )
    if loaded.evaluation is None or source is None:
        return False
    shutil.copyfile(source, folder / "curve.png")
    return True


__all__ = ["ARTEFACTS", "DTYPES", "Dtype", "ExportFormat", "VerificationError", "export_policy"]
