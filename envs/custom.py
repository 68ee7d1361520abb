"""`python:MODULE:NAME`: a custom environment, from a module that Python can import (docs/custom-environments.md)."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp

from relic_jax import process
from relic_jax.config import ConfigError, EnvConfig, WorkerConfig
from relic_jax.environment.base import Discrete, Environment, Image, PyTree
from relic_jax.environment.reference_agents import Teacher

Require = Callable[[Any, str, Any, str], None]
"""`require` in `check`: raises ConfigError `…, whose MEMBER is VALUE; allowed: ALLOWED` if the condition is false."""


def make(env: EnvConfig, workers: WorkerConfig) -> Environment:
    """Return the custom environment of a name `python:MODULE:NAME`, after checking that it follows the interface.

    NAME is an `Environment`, or a callable without arguments that returns one. The current folder is searched first.

    Args:
        env: The configuration of the environment.
        workers: Not read.

    Returns:
        The environment.

    Raises:
        ConfigError: The module or the name cannot be imported, or the environment does not follow the interface.
    """
    del workers
    field = f"env is {env.name!r}"
    module, _, attribute = env.name.removeprefix("python:").partition(":")
    if not (all(part.isidentifier() for part in module.split(".")) and attribute.isidentifier()):
        raise ConfigError(f"{field}; allowed: python:MODULE:NAME")
    try:
        with _current_folder_first():
            found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever the module does when it is imported
        reason = str(error) if isinstance(error, (ImportError, AttributeError)) else _place(error)
        raise ConfigError(f"{field}; allowed: a name in a module that can be imported from here ({reason})") from None
    if not isinstance(found, Environment) and callable(found):
        try:
            found = found()
        except Exception as error:
            allowed = f"a relic_jax.environment.base.Environment, or what makes one without arguments ({_place(error)})"
            raise ConfigError(f"{field}; allowed: {allowed}") from None
    if not isinstance(found, Environment):
        raise ConfigError(
            f"{field}, a {type(found).__name__}; allowed: a relic_jax.environment.base.Environment, or what makes one"
        )
    try:
        check(found, field)
    except NotImplementedError as error:
        method = traceback.extract_tb(error.__traceback__)[-1].name
        if not hasattr(type(found), method):  # something else is not implemented, in a library that it uses
            raise
        raise ConfigError(f"{field}, which does not define {method}; allowed: one that does") from None
    return found


def _place(error: Exception) -> str:
    """Return the type, message, file and line of an error in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__}: {error}; {frames[-1].filename}, line {frames[-1].lineno}"


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """Search the current folder first. The path of a console script starts with the script's folder instead.

    The process of the command line keeps the change, for later imports of the module. Other processes restore theirs.
    """
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if not process.is_own() and here in sys.path:
            sys.path.remove(here)


def check(env: Environment, field: str) -> None:
    """Check that an environment follows the interface: shapes, dtypes and pytree structures.

    If it masks actions, a random episode is played. Episodes need not end by the horizon: trials truncate them.

    Args:
        env: The environment.
        field: Start of the error, e.g. `env is 'python:a:B'`.

    Raises:
        ConfigError: Names the first member that does not fit.
    """

    def require(condition: Any, member: str, value: Any, allowed: str) -> None:
        if not condition:
            raise ConfigError(f"{field}, whose {member} is {value}; allowed: {allowed}")

    try:
        hash(env)
    except TypeError as error:
        raise ConfigError(f"{field}; allowed: a frozen dataclass of hashable fields ({error})") from None
    horizon = getattr(env, "horizon", None)
    require(isinstance(horizon, int) and horizon > 0, "horizon", repr(horizon), "an int above 0, steps of an episode")
    for split in ("train", "test"):
        sizes = {x.shape[:1] for x in jax.tree.leaves(env.tasks(split))}
        one = len(sizes) == 1 and sizes.copy().pop() not in ((), (0,))
        require(one, f"tasks({split!r})", f"of leading axes {sorted(sizes)}", "arrays with one leading axis, of tasks")
    task = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), env.tasks("train"))
    key = jax.eval_shape(lambda: jax.random.key(0))
    actions = env.action_space
    action = jax.ShapeDtypeStruct(actions.shape, actions.dtype)
    masks = env.masks_actions
    require(isinstance(masks, bool), "masks_actions", repr(masks), "True or False, whether every TimeStep has `legal`")
    require(
        actions.mask_size or not masks, "masks_actions", masks, f"False with {actions}, of which none can be masked"
    )
    _check_specs(env.observation_spec, require)
    state, first = jax.eval_shape(env.reset, key, task)
    after, later = jax.eval_shape(env.step, key, state, action, task)
    require(_types(after) == _types(state), "state after step", _types(after), f"as after reset: {_types(state)}")
    number, flag = (jax.ShapeDtypeStruct((), dtype) for dtype in (jnp.float32, bool))
    expected = {"observation": env.observation_spec, "reward": number, "terminated": flag, "truncated": flag}
    expected["legal"] = jax.ShapeDtypeStruct((actions.mask_size,), bool) if masks else None
    for method, timestep in (("reset", first), ("step", later)):
        for name, spec in expected.items():
            found, allowed = _types(getattr(timestep, name)), _types(spec)
            declared = f" (masks_actions is {masks})" if name == "legal" else ""
            require(found == allowed, f"{name} from {method}", found, allowed + declared)
    _check_rungs(env, require)
    _check_recall(env, key, require)
    _check_agents(env, (key, state, task), require)
    if masks:
        playable, expert = _first_episode(env)
        require(playable, "first episode", "one with a step of no legal action", "at least one in every step")
        require(expert, "optimal_action", "not legal in its first episode", "a legal action in every step")


def _check_specs(specs: PyTree, require: Require) -> None:
    """Check that the arrays of the observation hold numbers, and that images have rank 3."""
    for path, spec in jax.tree_util.tree_leaves_with_path(specs):
        what = f"observation_spec{jax.tree_util.keystr(path)}"
        require(hasattr(spec, "shape") and hasattr(spec, "dtype"), what, type(spec).__name__, "a jax.ShapeDtypeStruct")
        numbers = any(jnp.issubdtype(spec.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
        require(numbers, what, spec.dtype, "floats, integers and booleans")
        if isinstance(spec, Image):
            fits = len(spec.shape) == 3 and min(spec.shape) > 0
            require(fits, what, f"an Image {list(spec.shape)}", "an Image [height, width, channels], each 1 or more")


def _check_rungs(env: Environment, require: Require) -> None:
    """Check the values of task options, and that `rung_tasks` is defined."""
    for option, values in env.rungs.items():
        require(isinstance(values, tuple), f"rungs[{option!r}]", repr(values), "a tuple of values, from easy to hard")
        if values:
            env.rung_tasks(option, values[0])


def _check_recall(env: Environment, key: Any, require: Require) -> None:
    """Check the labels of a trial, and the observations of a relabeled one."""
    classes, steps = env.recall_classes, env.horizon
    numbers = isinstance(classes, tuple) and all(isinstance(number, int) and number > 0 for number in classes)
    require(numbers, "recall_classes", repr(classes), "a tuple of numbers of classes, each 1 or more")
    if not classes:
        return
    trial = jax.tree.map(lambda x: jax.ShapeDtypeStruct((steps, *x.shape), x.dtype), env.observation_spec)
    answers, known = (jax.ShapeDtypeStruct(*x) for x in (((steps, len(classes)), jnp.int32), ((steps,), bool)))
    found, allowed = _types(jax.eval_shape(env.recall_labels, trial)), _types((answers, known))
    require(found == allowed, f"recall_labels of {steps} steps", found, allowed)
    if env.can_relabel:
        found, allowed = _types(jax.eval_shape(env.relabel, key, trial)), _types(trial)
        require(found == allowed, f"relabel of {steps} steps", found, allowed)


def _check_agents(env: Environment, inputs: tuple[Any, PyTree, PyTree], require: Require) -> None:
    """Check the scripted agents. inputs: a key, a state and a task."""
    (key, state, task), actions = inputs, env.action_space
    first, action = (jax.ShapeDtypeStruct(*x) for x in (((), bool), (actions.shape, actions.dtype)))
    for name, agent in env.reference_agents.items():
        member = f"reference_agents[{name!r}]"
        for method in ("initial_memory", "act"):
            require(hasattr(agent, method), member, f"a {type(agent).__name__}", f"an agent that defines {method}")
        require(isinstance(agent, Hashable), member, "not hashable", "a frozen dataclass")
        memory = jax.eval_shape(agent.initial_memory)
        found = _types(jax.eval_shape(agent.act, key, memory, state, first, task))
        require(found == _types((memory, action)), f"{member}.act", found, _types((memory, action)))
        if isinstance(agent, Teacher) and isinstance(actions, Discrete):
            chances = jax.ShapeDtypeStruct((actions.n,), jnp.float32)
            found = _types(jax.eval_shape(agent.action_probabilities, memory, state, first, task))
            allowed = _types((memory, chances))
            require(found == allowed, f"{member}.action_probabilities", found, allowed)


def _first_episode(env: Environment) -> tuple[bool, bool]:
    """Play a random episode of the first training task, in an environment that masks actions.

    Returns:
        (whether every step has a legal action, whether the expert's action is legal in every step).
    """
    task, actions = jax.tree.map(lambda x: jnp.asarray(x[0]), env.tasks("train")), env.action_space

    @jax.jit
    def episode() -> tuple[jax.Array, jax.Array]:
        def step(carry: tuple[PyTree, Any, Any], key: jax.Array) -> tuple[tuple[PyTree, Any, Any], Any]:
            state, legal, over = carry
            playable = actions.playable(legal)
            expert = playable
            if env.has_expert:
                expert = actions.allows(legal, env.optimal_action(state, task))
            state, timestep = env.step(key, state, actions.sample(jax.random.fold_in(key, 1), legal), task)
            over_now = over | timestep.terminated | timestep.truncated
            return (state, timestep.legal, over_now), (over | playable, over | expert)

        state, first = env.reset(jax.random.key(0), task)
        keys = jax.random.split(jax.random.key(1), env.horizon)
        _, (playable, expert) = jax.lax.scan(step, (state, first.legal, jnp.zeros((), bool)), keys)
        return playable.all(), expert.all()

    playable, expert = map(bool, episode())
    return playable, expert


def _types(tree: PyTree) -> str:
    """Return shapes and dtypes in their tree, as text. A scan needs them unchanged from step to step."""
    return str(jax.tree.map(lambda x: f"{x.dtype.name}{list(x.shape)}", tree))
