"""In-context reinforcement learning in JAX: policies trained over long trials, which improve with weights frozen."""
