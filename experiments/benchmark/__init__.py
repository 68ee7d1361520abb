"""Benchmarks that anyone can rerun: `python -m experiments.benchmark {act,update,refresh,rollout,train,env,all}`."""
