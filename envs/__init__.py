"""Environments. The interface is `relic_jax.environment`; `relic_jax.envs.registry` resolves names."""
