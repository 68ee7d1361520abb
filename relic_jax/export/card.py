"""The model card: a README.md with a front matter that model hubs read, written from what is known of the run."""

from __future__ import annotations

import json
from typing import Any

from relic_jax.evaluation.report import PARTS, Report
from relic_jax.loading import LoadedPolicy
from relic_jax.spaces import is_image

USES = {
    "model.safetensors": """\
```python
import relic_jax

agent = relic_jax.load_policy("FOLDER").agent()
action = agent.step(observation)
action = agent.step(observation, reward, terminated, truncated)  # and so on
```

`relic-jax evaluate FOLDER` and `relic-jax play FOLDER` run it in its environment.""",
    "arrays": """\
The parameters are an orbax checkpoint (`params` in `arrays/`); `relic_jax.load_policy("FOLDER")` reads them too.""",
    "policy.stablehlo": """\
Needs jax and flatbuffers (with which jax reads the file) and nothing else; `run.py` lies in this folder. Runs on CPU
and CUDA, for any batch.

```python
from run import load

agent = load("FOLDER")
action = agent.step(observation)
action = agent.step(observation, reward, terminated, truncated)  # and so on
```""",
    "policy.onnx": """\
Needs numpy and onnxruntime and nothing else; `run.py` lies in this folder. For any batch and any length of context.

```python
from run import load

agent = load("FOLDER")
action = agent.step(observation)
action = agent.step(observation, reward, terminated, truncated)  # and so on
```

The graph takes the context's keys and values whole and gives back what the step adds to them (`new_…`).""",
}


def model_card(
    name: str, loaded: LoadedPolicy, about: dict[str, Any], check: dict[str, Any], figure: bool, note: str
) -> str:
    """The content of README.md. name: of the model. about: its config.json. check: its verification.json.

    figure: whether there is a curve.png. note: comes after the results.
    """
    sections = [
        _front_matter(name, about),
        f"# {name}",
        _introduction(loaded, about),
        "## Results\n\n" + _results(about["evaluation"], about["weights"]["dtype"], figure),
        *([note] if note else []),
        "## Use\n\n" + _use(about),
        "## Input and output\n\n" + _spaces(about),
        "## Intended use and limits\n\n" + _limits(loaded, about),
        "## Training\n\n" + _training(about["training"]),
        "## Verification\n\n" + _verification(check),
    ]
    return "\n\n".join(sections) + "\n"


def _use(about: dict[str, Any]) -> str:
    text = USES[about["artefact"]]
    if about["spaces"]["action"].get("masked"):
        text = text.replace("agent.step(observation)", "agent.step(observation, legal=mask)")
        text = text.replace("terminated, truncated)", "terminated, truncated, legal=mask)")
    return text


def _front_matter(name: str, about: dict[str, Any]) -> str:
    env = about["training"]["config"]["env"]["name"]
    lines = ["---", "library_name: relic-jax", "pipeline_tag: reinforcement-learning", "tags:"]
    tags = ("reinforcement-learning", "in-context-reinforcement-learning", "jax", "relic", env)
    lines += [f"- {json.dumps(tag)}" for tag in tags]
    if about["evaluation"]:
        report = Report.from_json(about["evaluation"])
        lines += ["model-index:", f"- name: {json.dumps(name)}", "  results:"]
        lines += ["  - task:", "      type: reinforcement-learning", "      name: in-context reinforcement learning"]
        lines += ["    dataset:", f"      name: {json.dumps(env)}", f"      type: {json.dumps(env)}", "    metrics:"]
        for episode in sorted({1, len(report.returns.mean)}):
            mean, low, high = (getattr(report.returns, part)[episode - 1] for part in PARTS)
            lines += ["    - type: mean_reward", f"      name: return in episode {episode} of one context"]
            lines += [f"      value: {json.dumps(f'{mean:.1f} [{low:.1f}, {high:.1f}]')}", "      verified: false"]
    return "\n".join([*lines, "---"])


def _introduction(loaded: LoadedPolicy, about: dict[str, Any]) -> str:
    architecture, weights = about["architecture"], about["weights"]
    if loaded.policy.is_recurrent:
        net, kind = architecture["recurrent"], architecture["memory"].upper()
        where, size = f"the state of its {kind}", f"{kind}, layers {net['layers']}, width {net['width']}"
        method = "partial updates (ReLIC, Elawady et al. 2024, arXiv 2410.02751) and a recurrent memory (RL², Duan et "
        method += "al. 2016, arXiv 1611.02779)"
    else:
        net, where = architecture["transformer"], "the context of a transformer, step by step,"
        size = f"{net['layers']} layers of width {net['width']} with {net['heads']} heads, sink `{net['sink']}`"
        method = "partial updates and Sink-KV attention (ReLIC, Elawady et al. 2024, arXiv 2410.02751)"
    return (
        f"A policy that learns in context: it keeps what happened in its task in {where} and gets better from episode "
        f"to episode with its weights frozen. Trained by reinforcement learning with {method} with relic-jax.\n\n"
        f"Environment `{loaded.config.env.name}`; {weights['parameters']:,} parameters in {weights['dtype']}; {size}."
    )


def _results(evaluation: dict[str, Any] | None, dtype: str, figure: bool) -> str:
    if not evaluation:
        return "This policy was not evaluated before it was exported."
    report = Report.from_json(evaluation)
    kind_of_tasks = "held-out" if report.split == "test" else "training"
    count = f"{report.tasks} {kind_of_tasks} tasks (split {report.split_hash}), {report.repeats} trials of each"
    text = (
        f"{count}, {report.episodes} episodes in one context, actions sampled, weights frozen; 95% bootstrap "
        "intervals.\n\n| episode | return | success |\n|---|---|---|\n"
    )
    total = len(report.returns.mean)
    for episode in sorted({1, 2, 3, 5, 10, 20, total} & set(range(1, total + 1))):
        cells = []
        for curve, scale, digits, unit in ((report.returns, 1, 1, ""), (report.success, 100, 0, "%")):
            mean, low, high = (scale * getattr(curve, part)[episode - 1] for part in PARTS)
            cells.append(f"{mean:.{digits}f}{unit} [{low:.{digits}f}, {high:.{digits}f}]")
        text += f"| {episode} | {cells[0]} | {cells[1]} |\n"
    references = [f"{name} {value:.1f}" for name, value in report.reference_returns.items() if value is not None]
    text += f"\nFor comparison, mean return of other policies on the same tasks: {', '.join(references)}."
    text += f" Measured before the weights were rounded to {dtype}." if dtype != "float32" else ""
    return text + ("\n\n![In-context learning curve](curve.png)" if figure else "")


def _spaces(about: dict[str, Any]) -> str:
    spaces, observed = about["spaces"], []

    def describe(spec: dict[str, Any], name: str) -> None:
        for key, item in spec.get("keys", {}).items():
            describe(item, f"{name}.{key}")
        for index, item in enumerate(spec.get("items", ())):
            describe(item, f"{name}.{index}")
        if "shape" in spec:
            kind = "image " if is_image(spec) else ""
            observed.append(f"`{name}`: {kind}{spec['dtype']} {spec['shape']}")

    describe(spaces["observation"], "observation")
    action = spaces["action"]
    if action["type"] == "discrete":
        does = f"one of {action['n']} actions, an integer"
    elif action["type"] == "multi_discrete":
        does = f"{len(action['nvec'])} choices at a time among {action['nvec']}, integers"
    else:
        does = f"{len(action['low'])} numbers, float32, from {action['low']} to {action['high']}"
    if action.get("masked"):
        size = action.get("n") or sum(action["nvec"])
        does += f"; only legal ones, by a mask that every step is given (`legal`: bool [{size}])"
    if spaces.get("action_names"):
        does += f" ({_named(spaces['action_names'])})"
    if spaces.get("observation_names"):
        observed[-1] += f" ({_named(spaces['observation_names'])})"
    text = f"Sees {', '.join(observed)}, its previous action and reward. Does: {does}."
    text += f" Episodes of at most {spaces['horizon']} steps."
    repeat = spaces["action_repeat"]
    text += f" Each action lasts {repeat} steps of the environment, whose rewards are summed." if repeat > 1 else ""
    last = "is shown with the first observation of the next" if spaces["show_last_reward"] else "is not shown"
    return f"{text} An episode's last reward {last} (the agent sees to that)."


def _named(names: list[str]) -> str:
    """'0 left, 1 right'."""
    return ", ".join(f"{index} {name}" for index, name in enumerate(names))


def _limits(loaded: LoadedPolicy, about: dict[str, Any]) -> str:
    trial, context = loaded.config.trial.steps, about["step"]["context"]
    room = "has no limit of steps here" if loaded.policy.is_recurrent else f"is set up here for contexts of {context:,}"
    return (
        f"For research on in-context reinforcement learning, in tasks like those of "
        f"`{loaded.config.env.name}`; it knows no others. It was trained on trials of {trial:,} steps and {room}. It "
        "explores at the start of every new task, so its first episodes are worse than the later ones. Nothing was "
        "done to make its actions safe outside of a simulator."
    )


def _training(training: dict[str, Any]) -> str:
    names = ("preset", "command", "commit", "env_steps", "seconds", "device", "jax", "run", "original")
    rows = [f"| {name} | {_cell(name, training[name])} |" for name in names if training.get(name) is not None]
    rows.append(f"| seed | {training['config']['seed']} |")
    return "\n".join(["| | |", "|---|---|", *rows]) + "\n\nThe whole configuration is in `config.json`."


def _cell(name: str, value: Any) -> str:
    if name == "env_steps":
        return f"{value:,} environment steps"
    if name == "seconds":
        return f"{value:,.0f}"
    return f"`{value}`"


def _verification(check: dict[str, Any]) -> str:
    text = (
        f"After it was written, this export was loaded and run beside the policy it came from, {check['steps']} steps "
        f"of {check['batch']} environments across {check['episode_ends']} ends of episodes. Largest difference in any "
        f"output: {check['largest_difference']:.2g} ({check['largest_scaled_difference']:.2g} of the output's largest "
        "number, where that is more than 1)."
    )
    rounding = check.get("largest_difference_by_rounding")
    if rounding is not None:
        text += f" Rounding the weights to {check['dtype']} changed outputs by up to {rounding:.2g}."
    return text + " All numbers: `verification.json`."
