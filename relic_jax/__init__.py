"""In-context reinforcement learning in JAX: transformers trained by RL over long trials that improve with weights frozen."""
