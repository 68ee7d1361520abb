"""`relic-jax sweep`: a grid of runs, trained in as few compiled programs as their shapes allow."""
