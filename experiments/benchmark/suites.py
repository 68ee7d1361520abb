"""Overhead of wrapping other suites' environments, compared with the suites' own auto-reset loops.

    python -m experiments.benchmark suites

Both loops are vmapped over the same number of environments, take random actions in a scan on one device, reset after
the end of an episode, and carry every observation and reward. Ours also tracks trials and encodes observations. Suites
that are not installed are skipped.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from relic_jax.environment.base import ActionSpace, Box
from relic_jax.environment.trials import Trials
from relic_jax.envs import registry
from relic_jax.experiments.benchmark.measure import Machine

TARGET = 0.9
"""Fraction of the suite's own steps per second that the wrapped environment should reach."""

Step = Callable[[jax.Array, Any, jax.Array], tuple[Any, Any]]


class Loop(NamedTuple):
    """A loop over many environments. start: keys -> state. step: (keys, state, actions) -> (state, outputs)."""

    start: Callable[[jax.Array], Any]
    step: Step


def each(start: Callable[[jax.Array], Any], step: Step) -> Loop:
    """Return a loop over many environments from the functions of one environment."""
    return Loop(jax.vmap(start), jax.vmap(step))


class Case(NamedTuple):
    """An environment to measure."""

    name: str
    """Name of the environment."""
    package: str
    """Package that has to be installed."""
    batch: int
    """Number of environments."""
    own: Callable[[Any], Loop]
    """Returns the suite's own loop for our environment."""


def gymnax_loop(ours: Any) -> Loop:
    """Return gymnax's loop. Its `step` resets."""
    import gymnax

    env, params = gymnax.make(ours.id)

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any]:
        observation, state, reward, *_ = env.step(key, state, action, params)
        return state, (observation, reward)

    return each(lambda key: env.reset(key, params)[1], step)


def craftax_loop(ours: Any) -> Loop:
    """Return Craftax's loop. Its `step` resets."""
    from craftax.craftax_env import make_craftax_env_from_name

    env = make_craftax_env_from_name(ours.id, auto_reset=True)
    params = env.default_params

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any]:
        observation, state, reward, *_ = env.step(key, state, action, params)
        return state, (observation, reward)

    return each(lambda key: env.reset(key, params)[1], step)


def navix_loop(ours: Any) -> Loop:
    """Return navix's loop. Its `step` resets at the step after the end of an episode."""
    import navix

    env = navix.make(ours.id, observation_fn=navix.observations.symbolic_first_person)

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any]:
        del key
        state = env.step(state, action)
        return state, (state.observation, state.reward)

    return each(env.reset, step)


def brax_loop(ours: Any) -> Loop:
    """Return brax's loop with its training wrappers, which reset to the first state of each environment."""
    from brax.envs.wrappers import training

    return Loop(*_batched(training.wrap(ours.brax, ours.horizon, 1)))


def playground_loop(ours: Any) -> Loop:
    """Return MuJoCo Playground's loop with its training wrappers, which reset to each environment's first state."""
    from mujoco_playground import wrapper

    return Loop(*_batched(wrapper.wrap_for_brax_training(ours.own, ours.horizon, 1)))


def _batched(env: Any) -> tuple[Callable[[jax.Array], Any], Step]:
    """Return reset and step of a batch of environments with brax's interface."""

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any]:
        del key
        state = env.step(state, action)
        return state, (state.obs, state.reward)

    return lambda keys: env.reset(jax.random.key_data(keys)), step  # its wrappers take raw keys


def xland_loop(ours: Any) -> Loop:
    """Return XLand-MiniGrid's loop with its auto-reset wrapper. As in its training, each environment has a ruleset."""
    import xminigrid
    from xminigrid.types import RuleSet
    from xminigrid.wrappers import GymAutoResetWrapper

    tasks = jax.tree.map(jnp.asarray, ours.tasks("train"))
    base, params = xminigrid.make(ours.id)
    env = GymAutoResetWrapper(base)

    def start(key: jax.Array) -> Any:
        index = jax.random.randint(key, (), 0, len(tasks.goal))
        ruleset = RuleSet(*jax.tree.leaves(jax.tree.map(lambda x: x[index], tasks)))
        return ruleset, env.reset(params.replace(ruleset=ruleset), key)

    def step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any]:
        del key
        timestep = env.step(params.replace(ruleset=state[0]), state[1], action)
        return (state[0], timestep), (timestep.observation, timestep.reward)

    return each(start, step)


CASES = (
    Case("gymnax:CartPole-v1", "gymnax", 2048, gymnax_loop),
    Case("gymnax:Breakout-MinAtar", "gymnax", 1024, gymnax_loop),
    Case("xland-trivial", "xminigrid", 1024, xland_loop),
    Case("navix:Navix-DoorKey-Random-6x6-v0", "navix", 512, navix_loop),
    Case("craftax:Craftax-Classic-Symbolic-v1", "craftax", 128, craftax_loop),
    Case("halfcheetah-vel", "brax", 128, brax_loop),
    Case("ant-dir", "brax", 128, brax_loop),
    Case("playground:CartpoleBalance", "mujoco_playground", 64, playground_loop),
)


def cases(machine: Machine, seconds: float = 2.0, rounds: int = 5) -> Iterator[dict[str, Any]]:
    """Measure every case whose package is installed.

    Args:
        machine: Not used.
        seconds: Duration of a round.
        rounds: Number of rounds, which alternate between the two loops. The best round of each is reported.

    Yields:
        JSON-serializable dicts: name; rate and unit of the wrapped environment; peer_rate (the suite's own loop);
        of_peer (the ratio); mark (the target) and reached (whether it was reached).
    """
    del machine
    for case in CASES:
        if importlib.util.find_spec(case.package) is not None:
            yield measure(case, seconds, rounds)


def measure(case: Case, seconds: float, rounds: int) -> dict[str, Any]:
    """Measure one environment in our loop and in the suite's."""
    env: Any = registry.make(case.name)
    trials = Trials(env)
    tasks = jax.tree.map(lambda x: jnp.asarray(x[: case.batch]), env.tasks("train"))
    tasks = jax.tree.map(lambda x: jnp.resize(x, (case.batch, *x.shape[1:])), tasks)
    own = case.own(env)

    def wrapped_step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any]:
        state, result = trials.step(key, state, action)
        return state, (state.observation, result.reward)

    def own_step(key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Any]:
        return own.step(jax.random.split(key, case.batch), state, action)

    def own_start(key: jax.Array) -> Any:
        return own.start(jax.random.split(key, case.batch))

    runs = [
        runner(lambda key: trials.reset(key, tasks), wrapped_step, env.action_space, case.batch, seconds),
        runner(own_start, own_step, env.action_space, case.batch, seconds),
    ]
    best = [0.0, 0.0]
    for _ in range(rounds):
        best = [max(rate, run()) for rate, run in zip(best, runs, strict=True)]
    rate, peer = best
    return {
        "name": f"suites/{case.name}",
        "rate": rate,
        "unit": "steps/s",
        "batch": case.batch,
        "peer_rate": peer,
        "of_peer": rate / peer,
        "peer": "the suite's own loop",
        "mark": TARGET,
        "reached": rate / peer >= TARGET,
    }


def runner(
    start: Callable[[jax.Array], Any], step: Step, actions: ActionSpace, batch: int, seconds: float
) -> Callable[[], float]:
    """Return a function that measures the steps per second of a loop over about `seconds`."""

    def steps(carry: Any, length: int) -> Any:
        def body(carry: Any, key: jax.Array) -> tuple[Any, None]:
            action_key, step_key = jax.random.split(key)
            return step(step_key, carry[0], random_actions(action_key, actions, batch)), None

        return jax.lax.scan(body, carry, jax.random.split(jax.random.key(1), length))[0]

    run = jax.jit(steps, static_argnums=1)
    state = jax.tree.map(without_weak_type, jax.jit(start)(jax.random.key(0)))
    # Carry the state after a step: in some suites its dtypes differ from those after a reset.
    state = jax.tree.map(
        without_weak_type, jax.jit(step)(jax.random.key(2), state, random_actions(jax.random.key(3), actions, batch))
    )
    length = max(8, int(8 * seconds / (duration(run, state, 8), duration(run, state, 8))[1]))
    duration(run, state, length)
    return lambda: batch * length / duration(run, state, length)


def random_actions(key: jax.Array, actions: ActionSpace, batch: int) -> jax.Array:
    """Return random actions in the policy's format: int32 [batch], or float32 [batch, n] in [−1, 1]."""
    if isinstance(actions, Box):
        return jax.random.uniform(key, (batch, *actions.shape), jnp.float32, -1.0, 1.0)
    return jax.random.randint(key, (batch,), 0, actions.n, jnp.int32)


def without_weak_type(x: jax.Array) -> jax.Array:
    """Return the array without a weak type, so that a scan can carry it."""
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jax.lax.convert_element_type(x, x.dtype)


def duration(run: Callable[..., Any], *arguments: Any) -> float:
    """Return the duration of a call in seconds."""
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start
