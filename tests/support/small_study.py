"""A study of four short runs: the arguments of its command and the names of its runs."""

OPTIONS = (
    *("--total-steps", "128", "--devices", "2", "--trial.environments", "2", "--trial.steps", "32"),
    *("--trial.updates", "2", "--ppo.minibatches", "1", "--ppo.accumulate", "1", "--ppo.epochs", "1"),
    *("--policy.transformer.layers", "1", "--policy.transformer.width", "8", "--policy.transformer.mlp-width", "8"),
    *("--eval.episodes", "2", "--eval.tasks", "2", "--eval.repeats", "1", "--env", "darkroom-ad-9"),
)
GRID = ("darkroom-smoke", "--seeds", "0,3", "--vary", "ppo.lr=1e-3,1e-2", "--name", "rates", *OPTIONS)
RUNS = ("lr-0.001_seed0", "lr-0.001_seed3", "lr-0.01_seed0", "lr-0.01_seed3")
