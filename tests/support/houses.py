"""A small house environment whose houses are built once per process."""

import dataclasses
import functools

import jax

from relic_jax.envs.firstperson.house import HouseNav
from relic_jax.envs.firstperson.house_plan import HouseConfig, build_house
from relic_jax.envs.firstperson.lens import Lens

TINY = HouseNav("tiny", HouseConfig(24, 2, furniture=3, categories=4, instances=2), lens=Lens(32, 32, 90.0, layers=6))
COUNT = 24


class Built(HouseNav):
    """Takes houses as tasks, so that programs that play in them need not build them."""

    def start(self, key, task):
        return self._episode(key, task, task)

    def asked_in(self, house, task):
        return house.reachable


def built(**changes):
    """TINY with other fields, playing in houses that are tasks."""
    fields = {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}
    return Built(**{**fields, **changes})


@functools.cache
def houses():
    """The first houses of the tiny environment's test split, on the host."""
    seeds = TINY.tasks("test")[:COUNT]
    return jax.device_get(jax.jit(jax.vmap(lambda seed: build_house(jax.random.key(seed), TINY.config)))(seeds))
