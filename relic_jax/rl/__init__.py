"""Training: PPO with partial updates over the trials of in-context reinforcement learning."""
