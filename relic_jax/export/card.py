"""Write the model card of an export: a README.md with front matter for model hubs."""

from __future__ import annotations

import json
from typing import Any

from relic_jax.evaluation.report import PARTS, Curve, Report
from relic_jax.evaluation.searchers import describe_agents
from relic_jax.loading import LoadedPolicy
from relic_jax.spaces import is_image

USES = {
    "model.safetensors": """\
```python
import relic_jax

agent = relic_jax.load_policy("FOLDER").agent()
action = agent.step(observation)
action = agent.step(observation, reward, terminated, truncated)  # all later steps
```

`relic-jax evaluate FOLDER` and `relic-jax play FOLDER` run it in its environment.""",
    "arrays": """\
The parameters are an orbax checkpoint (`params` in `arrays/`); `relic_jax.load_policy("FOLDER")` reads them too.""",
    "policy.stablehlo": """\
Needs only jax and flatbuffers, with which jax reads the file, and `run.py` in this folder. Runs on CPU and CUDA with
any batch size.

```python
from run import load

agent = load("FOLDER")
action = agent.step(observation)
action = agent.step(observation, reward, terminated, truncated)  # all later steps
```""",
    "policy.onnx": """\
Needs only numpy and onnxruntime, and `run.py` in this folder. Runs with any batch size and any length of the context.

```python
from run import load

agent = load("FOLDER")
action = agent.step(observation)
action = agent.step(observation, reward, terminated, truncated)  # all later steps
```

The graph's inputs are all keys and values of the context. Its outputs are those of the new step (`new_…`).""",
}


def model_card(
    name: str, loaded: LoadedPolicy, about: dict[str, Any], check: dict[str, Any], figure: bool, note: str
) -> str:
    """Return the content of README.md.

    Args:
        name: Name of the model.
        loaded: The policy.
        about: Content of its config.json.
        check: Content of its verification.json.
        figure: Whether there is a curve.png.
        note: Text after the results.
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
            value = _interval(report.returns, episode, f".{report.digits}f")
            lines += ["    - type: mean_reward", f"      name: return in episode {episode} of one context"]
            lines += [f"      value: {json.dumps(value)}", "      verified: false"]
    return "\n".join([*lines, "---"])


def _introduction(loaded: LoadedPolicy, about: dict[str, Any]) -> str:
    architecture, weights = about["architecture"], about["weights"]
    if loaded.policy.is_recurrent:
        policy = loaded.config.policy
        net, kind = architecture[policy.traits.section], policy.memory.upper()
        where, size = f"the state of its {kind}", f"{kind}, layers {net['layers']}, width {net['width']}"
        source = {"gated-delta": "Yang et al. 2024, arXiv 2412.06464", "lru": "Orvieto et al. 2023, arXiv 2303.06349"}
        size += f" ({source[policy.memory]})" if policy.memory in source else ""
    else:
        net, where = architecture["transformer"], "the context of a transformer"
        size = f"{net['layers']} layers of width {net['width']} with {net['heads']} heads, sink `{net['sink']}`"
    env = f"`{loaded.config.env.name}`{loaded.config.env.options.text}"
    return (
        f"A policy that learns in context: it stores the history of its task in {where} and improves from episode to "
        "episode while the weights are frozen. It was trained with relic-jax by reinforcement learning"
        f"{_method(loaded)}{_pretraining(loaded)}.\n\n"
        f"Environment {env}; {weights['parameters']:,} parameters in {weights['dtype']}; {size}."
    )


def _method(loaded: LoadedPolicy) -> str:
    """Return the methods of the training and of the network, with their sources."""
    recurrent, sink = loaded.policy.is_recurrent, loaded.config.policy.transformer.sink
    relic = ["partial updates"] * (loaded.config.trial.updates > 1)
    relic += ["Sink-KV attention"] * (not recurrent and sink not in ("none", "token"))
    methods = [f"{' and '.join(relic)} (ReLIC, Elawady et al. 2024, arXiv 2410.02751)"] if relic else []
    methods += ["a recurrent memory (RL², Duan et al. 2016, arXiv 1611.02779)"] * recurrent
    return f" with {' and '.join(methods)}" if methods else ""


def _pretraining(loaded: LoadedPolicy) -> str:
    pretrain = loaded.config.pretrain
    if not pretrain.steps:
        return ""
    return f", after {pretrain.steps} steps of supervised training on trials of a scripted agent ({pretrain.agent})"


def _results(evaluation: dict[str, Any] | None, dtype: str, figure: bool) -> str:
    if not evaluation:
        return "This policy was not evaluated before the export."
    report = Report.from_json(evaluation)
    kind_of_tasks = "held-out" if report.split == "test" else "training"
    trials = "1 trial" if report.repeats == 1 else f"{report.repeats} trials"
    count = f"{report.tasks} {kind_of_tasks} tasks (split {report.split_hash}), {trials} of each"
    text = (
        f"{count}, {report.episodes} episodes in one context, actions sampled, weights frozen. Intervals are 95% "
        f"bootstrap intervals.\n\n| episode | {' | '.join(['return', 'success', *report.metrics])} |\n"
        f"|{'---|' * (3 + len(report.metrics))}\n"
    )
    form = f".{report.digits}f"
    curves = [(report.returns, form), (report.success, ".0%"), *((curve, ".2f") for curve in report.metrics.values())]
    total = len(report.returns.mean)
    for episode in sorted({1, 2, 3, 5, 10, 20, total} & set(range(1, total + 1))):
        cells = [_interval(curve, episode, form) for curve, form in curves]
        text += f"| {' | '.join([str(episode), *cells])} |\n"
    references = [f"{name} {value:{form}}" for name, value in report.reference_returns.items() if value is not None]
    text += f"\nFor comparison, mean return of other policies on the same tasks: {', '.join(references)}."
    agents = "".join(f"\n- {line}" for line in describe_agents(report))
    text += f" Measured before the weights were rounded to {dtype}." if dtype != "float32" else ""
    text += f"\n\nScripted agents on the same tasks:\n{agents}" if agents else ""
    return text + ("\n\n![In-context learning curve](curve.png)" if figure else "")


def _interval(curve: Curve, episode: int, form: str) -> str:
    mean, low, high = (format(getattr(curve, part)[episode - 1], form).removesuffix("%") for part in PARTS)
    return f"{mean}{'%' if form.endswith('%') else ''} [{low}, {high}]"


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
        does = f"an integer, one of {action['n']} actions"
    elif action["type"] == "multi_discrete":
        does = f"{len(action['nvec'])} integers, choices among {action['nvec']}"
    else:
        does = f"{len(action['low'])} float32 numbers from {action['low']} to {action['high']}"
    if action.get("masked"):
        size = action.get("n") or sum(action["nvec"])
        does += f"; only legal ones, according to a mask that every step takes (`legal`: bool [{size}])"
    if spaces.get("action_names"):
        does += f" ({_named(spaces['action_names'])})"
    if spaces.get("observation_names"):
        observed[-1] += f" ({_named(spaces['observation_names'])})"
    text = f"Input: {', '.join(observed)}, the previous action and reward. Output: {does}."
    text += f" Episodes have at most {spaces['horizon']} steps."
    repeat = spaces["action_repeat"]
    text += f" Each action is repeated for {repeat} environment steps, whose rewards are summed." if repeat > 1 else ""
    last = "an input at the first step of the next one" if spaces["show_last_reward"] else "not an input"
    return f"{text} The last reward of an episode is {last}, which the agent handles."


def _named(names: list[str]) -> str:
    """Format names with their indices, such as '0 left, 1 right'."""
    return ", ".join(f"{index} {name}" for index, name in enumerate(names))


def _limits(loaded: LoadedPolicy, about: dict[str, Any]) -> str:
    trial, context = loaded.config.trial.steps, about["step"]["context"]
    context_limit = "has no limit on the number of steps"
    room = context_limit if loaded.policy.is_recurrent else f"is exported for contexts of {context:,} steps"
    return (
        f"For research on in-context reinforcement learning, in tasks like those of "
        f"`{loaded.config.env.name}`. It was not trained on any others. It was trained on trials of {trial:,} steps "
        f"and {room}. It explores at the start of every new task, so its first episodes are worse than the later ones. "
        "No measures were taken to make its actions safe outside of a simulator."
    )


def _training(training: dict[str, Any]) -> str:
    names = ("preset", "command", "commit", "env_steps", "seconds", "device", "jax", "run", "original")
    rows = [f"| {name} | {_cell(name, training[name])} |" for name in names if training.get(name) is not None]
    rows.append(f"| seed | {training['config']['seed']} |")
    return "\n".join(["| | |", "|---|---|", *rows]) + "\n\nThe complete configuration is in `config.json`."


def _cell(name: str, value: Any) -> str:
    if name == "env_steps":
        return f"{value:,} environment steps"
    if name == "seconds":
        return f"{value:,.0f}"
    return f"`{value}`"


def _verification(check: dict[str, Any]) -> str:
    text = (
        f"This export was loaded and compared with the original policy over {check['steps']} steps of {check['batch']} "
        f"environments, which included {check['episode_ends']} ends of episodes. The largest difference in any output "
        f"was {check['largest_difference']:.2g} ({check['largest_scaled_difference']:.2g} relative to the output's "
        "largest number if that is more than 1)."
    )
    rounding = check.get("largest_difference_by_rounding")
    if rounding is not None:
        text += f" Rounding the weights to {check['dtype']} changed outputs by up to {rounding:.2g}."
    return text + " All numbers are in `verification.json`."
