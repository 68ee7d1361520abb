"""The teacher loss, which is added to the loss of PPO: a scripted agent labels the states that the policy visits.

This is DAgger (Ross et al. 2011, arXiv 1011.0686) combined with PPO. The labels are the agent's action probabilities.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from relic_jax.config import TrainConfig
from relic_jax.environment.base import Environment
from relic_jax.environment.reference_agents import Teacher
from relic_jax.environment.spaces import Discrete
from relic_jax.rl import context
from relic_jax.rl.rollout import Collected
from relic_jax.rl.state import Setup, TrainState
from relic_jax.validation import require


def check_teaching(config: TrainConfig, env: Environment) -> None:
    """Raise ConfigError if an environment or an update does not allow the teacher loss of a config."""
    ppo, name, agents = config.ppo, repr(config.env.name), env.reference_agents
    if not ppo.has_teacher:
        return
    field = "ppo.teacher_coef" if ppo.teacher_coef else "ppo.teacher_coef_final"
    coef = float(ppo.teacher_coef or ppo.teacher_coef_final or 0.0)
    missing = "is stepped by worker processes" if env.on_host else "has no scripted agent with a memory"
    require(bool(agents) and not env.on_host, field, coef, f"0 in {name}, which {missing}")
    require(ppo.teacher in agents, "ppo.teacher", ppo.teacher, f"{', '.join(map(repr, agents))} in {name}")
    check_teacher(env, ppo.teacher, field, coef, "ppo.teacher")
    newest = ppo.last_update == "partial" or config.trial.updates == 1
    allowed = f"'partial' with {field} (the labels of a teacher are kept for one segment)"
    require(newest, "ppo.last_update", ppo.last_update, allowed)
    allowed = f"'all' in {name}, which {env.without_labels}"
    require(ppo.teacher_where == "all" or bool(env.recall_classes), "ppo.teacher_where", ppo.teacher_where, allowed)


def check_teacher(env: Environment, agent: str, field: str, coef: float, chosen_by: str) -> None:
    """Raise ConfigError if an agent gives no probabilities of actions.

    Args:
        env: The environment.
        agent: A name in `Environment.reference_agents`.
        field: The field that needs the probabilities.
        coef: Its value.
        chosen_by: The field with the name of the agent.
    """
    possible = isinstance(env.action_space, Discrete) and isinstance(env.reference_agents[agent], Teacher)
    allowed = f"0 in {env.name!r} with {chosen_by} {agent!r}, which gives no probabilities of actions"
    require(possible, field, coef, allowed)


def teacher_labels(setup: Setup, state: TrainState, collected: Collected) -> jax.Array | None:
    """Return the teacher's probabilities of the actions at the steps of a segment, float32 [B, K, n].

    The probabilities are 0 at steps without a teacher loss. Returns None without a teacher.

    Args:
        setup: the training setup.
        state: the state after acting.
        collected: the segment.
    """
    chosen, segment = collected.probabilities, setup.config.trial.segment
    if chosen is None or setup.config.ppo.teacher_where == "all":
        return chosen
    _, known = jax.vmap(setup.trials.env.recall_labels)(state.trajectory.inputs.observation)
    return jnp.where(context.window(known, state.segment * segment, segment)[..., None], chosen, 0.0)
