"""Object navigation on the interface of habitat-sim.

`env` is the learner's side of ExtObjNav, `worker` its environment in a worker process. `api` drives habitat-sim or the
software simulator `soft`. `lab` runs tasks of habitat-lab.
"""
