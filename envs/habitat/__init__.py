"""Object navigation on habitat-sim's interface: `task` on `api`, which drives habitat-sim or our `soft` simulator."""
