"""A small policy with a recall head on gridobj-9, for the losses beside PPO."""

from relic_jax.config import EnvConfig, PolicyConfig, PPOConfig, TrainConfig, TransformerConfig, TrialConfig


def recall_config(**ppo) -> TrainConfig:
    """Return a configuration of two optimizer steps per update, with fields of PPO."""
    network = TransformerConfig(layers=1, heads=2, width=16, mlp_width=16, max_positions=128)
    return TrainConfig(
        env=EnvConfig("gridobj-9"),
        total_steps=1000,
        devices=1,
        policy=PolicyConfig(transformer=network, recall=(9, 9)),
        trial=TrialConfig(environments=8, steps=60, updates=2),
        ppo=PPOConfig(minibatches=2, accumulate=1, epochs=1, **ppo),
    )
