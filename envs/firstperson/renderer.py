"""Draws a scene as the camera sees it, in time proportional to columns × surfaces + pixels × layers.

The picture plane is vertical. So what a column of pixels sees of a wall or of a solid is one interval of rows, whose
ends follow from the distance along the column's ray in plan; floor, ceiling and the tops of solids fill what is left.
The column phase finds the nearest wall and the nearest few solids of every column; the pixel phase only compares each
row's slope with the interval ends, painting from far to near. An optimisation barrier between the two keeps the
compiler from recomputing a column's work in each of its pixels.

Distances are kept inverted: along a column with u = (right / forward), the inverse forward distance of a plane is
linear in u, and the slope at which a height y appears is (y − eye) · inverse distance.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from relic_jax.envs.firstperson.scene import (
    BOX,
    CYLINDER,
    SHADE_DOWN,
    SHADE_UP,
    SPHERE,
    WALL_HEIGHT,
    Camera,
    ResolutionError,
    Scene,
    Solids,
    TooManyObjectsError,
    Walls,
    shade,
    shade_upright,
)

# Sample positions in a pixel, (right, down) from its top left corner: the centre, or the usual four of multisampling.
SAMPLES = {1: ((0.5, 0.5),), 4: ((0.375, 0.875), (0.875, 0.625), (0.125, 0.375), (0.625, 0.125))}

WIDE_BYTES = ((0, 0), (10, 8), (20, 16))  # where a channel is in a sum of wide colours, and where in four bytes
NEVER = 1e9  # a slope that no row reaches
NOTHING, WALL = 0, 1  # object ids: floor, ceiling and sky; walls. Solid k is k + FIRST_SOLID
FIRST_SOLID = 2
MAX_SOLIDS = 255 - FIRST_SOLID

TILE, BOARD, DARKER = 1.0, 0.5, 0.85  # metres, metres, factor: the floor's tiles and the walls' boards, every other one


@dataclasses.dataclass(frozen=True)
class Lens:
    """The picture. width, height: pixels. field_of_view: vertical, degrees. samples: per pixel, 1 or 4.

    layers: how many solids may stand behind one another along a column; farther ones are not drawn.
    solids: how many there may be in view; farther ones are not drawn.
    """

    width: int = 80
    height: int = 60
    field_of_view: float = 60.0
    samples: int = 1
    layers: int = 8
    solids: int = 16

    def __post_init__(self) -> None:
        """Rejects what cannot be drawn."""
        for name in ("width", "height"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4096:
                raise ResolutionError(f"{name} is {value!r}; allowed: whole numbers of pixels from 1 to 4096")
        if self.samples not in SAMPLES:
            raise ResolutionError(f"samples is {self.samples!r}; allowed: {sorted(SAMPLES)}")
        if not 1.0 <= self.field_of_view <= 170.0:
            raise ResolutionError(f"field_of_view is {self.field_of_view!r}; allowed: 1 to 170 degrees")
        for name in ("layers", "solids"):
            if getattr(self, name) < 1:
                raise ResolutionError(f"{name} is {getattr(self, name)!r}; allowed: 1 or more")

    def columns(self, offset: float) -> np.ndarray:
        """u = right / forward of every column, float32 [W]. offset: of the sample from the pixel's left edge."""
        half = math.tan(math.radians(self.field_of_view) / 2) * self.width / self.height
        return (half * (2 * (np.arange(self.width) + offset) / self.width - 1)).astype(np.float32)

    def rows(self, offset: float) -> np.ndarray:
        """v = up / forward of every row at no rise, float32 [H], top row first. offset: from the pixel's top edge."""
        half = math.tan(math.radians(self.field_of_view) / 2)
        return (half * (1 - 2 * (np.arange(self.height) + offset) / self.height)).astype(np.float32)


Values = TypeVar("Values")


class Columns(NamedTuple):
    """What columns see of surfaces. All leaves [W] (the nearest wall) or [N, W] (solids).

    near: float32; inverse forward distance of the near side, 0 where the column misses it.
    low, mid, high: float32; it covers the slopes low ≤ v < high, as `lower` where v < mid and as `upper` from there on.
    lower, upper: payloads of the two parts, a tuple of arrays; what is painted.
    """

    near: jax.Array
    low: jax.Array
    mid: jax.Array
    high: jax.Array
    lower: tuple[jax.Array, ...]
    upper: tuple[jax.Array, ...]


class View(NamedTuple):
    """image: uint8 [H, W, 3]. objects: int32 [H, W], at pixel centres: NOTHING, WALL or k + FIRST_SOLID for solid k."""

    image: jax.Array
    objects: jax.Array


def render(scene: Scene, camera: Camera, lens: Lens) -> jax.Array:
    """The picture, uint8 [H, W, 3]. Batches by vmap."""
    if lens.samples == 1:
        return _bytes(_paint(scene, camera, lens, *_slopes(camera, lens, 1), COLOUR)[0])[..., :3]

    def add(total: jax.Array, slopes: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + _paint(scene, camera, lens, *slopes, WIDE_COLOUR)[0], None

    u, v = (
        jnp.stack(x) for x in zip(*(_slopes(camera, lens, lens.samples, k) for k in range(lens.samples)), strict=True)
    )
    total, _ = jax.lax.scan(add, jnp.zeros((lens.height, lens.width), jnp.uint32), (u, v))
    mean = [(((total >> shift) & 1023) + lens.samples // 2) // lens.samples << place for shift, place in WIDE_BYTES]
    return _bytes(_separately(mean[0] | mean[1] | mean[2]))[..., :3]


def render_objects(scene: Scene, camera: Camera, lens: Lens) -> View:
    """The picture and what is seen in each pixel. With one sample per pixel the second costs nothing."""
    packed = _paint(scene, camera, lens, *_slopes(camera, lens, 1), COLOUR)[0]
    image = _bytes(packed)[..., :3] if lens.samples == 1 else render(scene, camera, lens)
    return View(image, (packed >> 24).astype(jnp.int32))


def render_depth(scene: Scene, camera: Camera, lens: Lens) -> jax.Array:
    """Forward distances in metres at pixel centres, float32 [H, W]; infinite in the sky.

    A sphere is as far as its nearest point in the column.
    """
    u, v = _slopes(camera, lens, 1)
    constant, slope = _paint(scene, camera, lens, u, v, DEPTH)
    inverse = constant + slope * v[:, None]
    return jnp.where(inverse > 0, 1.0 / jnp.where(inverse > 0, inverse, 1.0), jnp.inf)


class Surface(NamedTuple):
    """What is painted, before it is known in which columns. Arrays broadcast against one another.

    colour: float32 [..., 3]; base colour. shade: float32 [...]. identity: int or int32 [...]; object id.
    level: float32 [...]; height above the eye of a level surface, infinite for the others.
    """

    colour: jax.Array
    shade: jax.Array | float
    identity: jax.Array | int
    level: jax.Array | float = math.inf


class Paint(NamedTuple):
    """A kind of picture.

    payload: what surfaces leave in it. stamp: adds the columns' inverse distance to a payload of upright surfaces.
    """

    payload: Callable[[Surface], tuple[jax.Array, ...]]
    stamp: Callable[[tuple[jax.Array, ...], jax.Array], tuple[jax.Array, ...]]


def _pack(surface: Surface, bits: int) -> jax.Array:
    lit = jnp.clip(surface.colour * jnp.asarray(surface.shade)[..., None], 0.0, 1.0)
    red, green, blue = jnp.moveaxis(jnp.round(255.0 * lit).astype(jnp.uint32), -1, 0)
    return red | green << bits | blue << 2 * bits


def _packed(surface: Surface) -> tuple[jax.Array, ...]:
    """Colour and identity as four bytes of a uint32: red lowest, identity highest."""
    return (_pack(surface, 8) | jnp.asarray(surface.identity).astype(jnp.uint32) << 24,)


def _packed_wide(surface: Surface) -> tuple[jax.Array, ...]:
    """Colour as three bytes 10 bits apart, so that four can be added up."""
    return (_pack(surface, 10),)


def _inverse_level(surface: Surface) -> tuple[jax.Array, ...]:
    """Inverse distance as constant + slope · v; the constant of upright surfaces is stamped on later."""
    shape = jnp.broadcast_shapes(jnp.shape(surface.colour)[:-1], jnp.shape(surface.level))
    return jnp.zeros(shape, jnp.float32), jnp.broadcast_to(1.0 / jnp.asarray(surface.level, jnp.float32), shape)


COLOUR = Paint(_packed, lambda payload, near: payload)
WIDE_COLOUR = Paint(_packed_wide, lambda payload, near: payload)
DEPTH = Paint(_inverse_level, lambda payload, near: (near, payload[1]))


def _bytes(packed: jax.Array) -> jax.Array:
    """uint32 [...] as uint8 [..., 4], lowest byte first."""
    return jax.lax.bitcast_convert_type(packed, jnp.uint8)


def _slopes(camera: Camera, lens: Lens, samples: int, index: int = 0) -> tuple[jax.Array, jax.Array]:
    """u of the columns, float32 [W], and v of the rows, float32 [H], of one of `samples` samples."""
    right, down = SAMPLES[samples][index]
    return jnp.asarray(lens.columns(right)), jnp.asarray(lens.rows(down)) + camera.rise


def _paint(scene: Scene, camera: Camera, lens: Lens, u: jax.Array, v: jax.Array, paint: Paint) -> tuple[jax.Array, ...]:
    """Payloads at one sample of every pixel, [H, W] each. u: float32 [W]. v: float32 [H]."""
    wall = _separately(_nearest_wall(scene.walls, camera, u, paint, scene.textured))
    in_view = _separately(_nearest_in_view(scene.solids, camera, lens))
    solids = _separately(_solid_columns(in_view, camera, u, wall.near, paint))
    solids = _separately(_nearest_first(solids, lens.layers))
    behind = None
    if scene.backdrop is not None:
        behind = _separately(_solid_columns(scene.backdrop, camera, u, jnp.zeros_like(u), paint))
    v = v[:, None]
    floor, ceiling = _level_payloads(scene, camera, u, v, paint)
    picture = tuple(jnp.where(v < 0, low, high) for low, high in zip(floor, ceiling, strict=True))
    if behind is not None:
        picture = _over(picture, behind, v)
    picture = _over(picture, jax.tree.map(lambda x: x[None], wall), v)
    picture = _over(picture, solids, v)
    return tuple(jnp.broadcast_to(p, (lens.height, lens.width)) for p in picture)


def _separately(values: Values) -> Values:
    """The values, computed before what uses them: the compiler would rather compute them again for each user."""
    return jax.lax.optimization_barrier(values)


def _over(picture: tuple[jax.Array, ...], layers: Columns, v: jax.Array) -> tuple[jax.Array, ...]:
    """Paints layers [L, W], of which the first is the nearest, over a picture. v: float32 [H, 1]."""
    for index in reversed(range(layers.low.shape[0])):
        layer = jax.tree.map(lambda x, i=index: x[i], layers)
        covered, below = (v >= layer.low) & (v < layer.high), v < layer.mid
        picture = tuple(
            jnp.where(covered, jnp.where(below, lower, upper), old)
            for old, lower, upper in zip(picture, layer.lower, layer.upper, strict=True)
        )
    return picture


def _level_payloads(
    scene: Scene, camera: Camera, u: jax.Array, v: jax.Array, paint: Paint
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """Payloads of the floor and of the ceiling or the sky, [] each, or [H, W] where there are tiles. v: [H, 1]."""
    colour, eye = jnp.asarray(scene.floor), jnp.asarray(camera.height)
    if scene.textured:
        cos, sin = camera.direction
        distance = -eye / jnp.minimum(v, -1e-6)
        x, z = (camera.position[0] + distance * (cos + u * sin), camera.position[1] + distance * (u * cos - sin))
        odd = (jnp.floor(x / TILE) + jnp.floor(z / TILE)).astype(jnp.int32) & 1
        colour = colour * jnp.where(odd, DARKER, 1.0)[..., None]
    floor = paint.payload(Surface(colour, SHADE_UP, NOTHING, -eye))
    above, light = (math.inf, 1.0) if scene.open_sky else (WALL_HEIGHT - eye, SHADE_DOWN)
    return floor, paint.payload(Surface(jnp.asarray(scene.ceiling), light, NOTHING, above))


def _in_view(points: jax.Array | np.ndarray, camera: Camera) -> tuple[jax.Array, jax.Array]:
    """(forward, right) of points [..., 2] from the camera, [...] each."""
    x, z = jnp.moveaxis(jnp.asarray(points) - camera.position, -1, 0)
    cos, sin = camera.direction
    return x * cos - z * sin, x * sin + z * cos


def _edge(f0: jax.Array, r0: jax.Array, f1: jax.Array, r1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a, b): the inverse distance of the line through two points along column u is a − b·u."""
    area = r0 * f1 - r1 * f0
    area = jnp.where(jnp.abs(area) < 1e-9, 1e-9, area)
    return (r0 - r1) / area, (f0 - f1) / area


def _nearest_wall(walls: Walls, camera: Camera, u: jax.Array, paint: Paint, textured: bool) -> Columns:
    """The nearest wall of each column, from the floor to the ceiling. near is 0 where there is none."""
    ends = jnp.asarray(walls.ends)
    along = ends[:, 1] - ends[:, 0]
    normal = jnp.stack([along[:, 1], -along[:, 0]], -1)
    normal = normal / jnp.maximum(jnp.linalg.norm(along, axis=-1, keepdims=True), 1e-9)
    facing = jnp.sum(normal * (camera.position - ends[:, 0]), -1, keepdims=True) > 0
    shades = shade_upright(jnp.where(facing, normal, -normal))
    forward, right = _in_view(ends, camera)
    line = _edge(forward[:, 0], right[:, 0], forward[:, 1], right[:, 1])
    payload = paint.payload(Surface(jnp.asarray(walls.colour), shades, WALL))
    if textured:
        payload += paint.payload(Surface(jnp.asarray(walls.colour) * DARKER, shades, WALL))
    start = (jnp.zeros_like(u), tuple(jnp.zeros(u.shape, x.dtype) for x in payload))
    near, seen = _loop(lambda best, wall: _nearer_wall(u, best, wall), start, (forward, right, *line, payload))
    if textured:
        odd = _odd_board(near, camera, u)
        half = len(seen) // 2
        seen = tuple(jnp.where(odd, dark, plain) for plain, dark in zip(seen[:half], seen[half:], strict=True))
    seen = paint.stamp(seen, near)
    low, high = -camera.height * near, (WALL_HEIGHT - camera.height) * near
    return Columns(near, low, high, high, seen, seen)


def _odd_board(near: jax.Array, camera: Camera, u: jax.Array) -> jax.Array:
    """Whether each column sees an odd board of its wall, bool [W]."""
    cos, sin = camera.direction
    distance = 1.0 / jnp.maximum(near, 1e-6)
    x, z = camera.position[0] + distance * (cos + u * sin), camera.position[1] + distance * (u * cos - sin)
    # Half a millimetre keeps a wall that lies exactly between two boards in the other direction from flickering.
    return (jnp.floor((x + z + 5e-4) / BOARD).astype(jnp.int32) & 1) == 1


def _nearer_wall(u: jax.Array, best: tuple, wall: tuple) -> tuple:
    """The nearer, in each column, of the best so far (near, payload) and one more wall."""
    f, r, a, b, payload = wall
    near = a - b * u
    nearer = ((r[0] - u * f[0] > 0) != (r[1] - u * f[1] > 0)) & (near > best[0])
    return jnp.where(nearer, near, best[0]), tuple(
        jnp.where(nearer, new, old) for new, old in zip(payload, best[1], strict=True)
    )


BLOCK = 8  # walls per turn of the loop


def _loop(function: Callable[[tuple, tuple], tuple], start: tuple, each: tuple) -> tuple:
    """function(… function(start, each[0]) …, each[n−1]); each: pytree with leading axis n.

    More than BLOCK are gone through in a loop of the program's own, for two reasons: programs stay small, and what a
    loop yields is computed once for its column and not again in each of its pixels.
    """
    count = each[0].shape[0]

    def several(carry: tuple, block: tuple, size: int) -> tuple:
        for index in range(size):
            carry = function(carry, jax.tree.map(lambda x, i=index: x[i], block))
        return carry

    if count <= BLOCK:
        return several(start, each, count)
    turns = -(-count // BLOCK)

    def blocks(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, turns * BLOCK - count)] + [(0, 0)] * (x.ndim - 1))  # walls of zeros are never met
        return padded.reshape(turns, BLOCK, *x.shape[1:])

    head = jax.tree.map(blocks, each)
    return jax.lax.scan(lambda carry, block: (several(carry, block, BLOCK), None), start, head)[0]


def _nearest_in_view(solids: Solids, camera: Camera, lens: Lens) -> Solids:
    """At most `lens.solids` solids: where there are more, the nearest of those that the picture's sides do not cut off.

    `identity` of the result tells which they are.
    """
    count = solids.shape.shape[0]
    if count > MAX_SOLIDS:
        raise TooManyObjectsError(f"a scene holds {count} solids; allowed: at most {MAX_SOLIDS}, ids are single bytes")
    solids = dataclasses.replace(solids, identity=jnp.arange(count, dtype=jnp.int32) + FIRST_SOLID)
    if count <= lens.solids:
        return solids
    forward, right = _in_view(solids.centre, camera)
    radius, edge = jnp.linalg.norm(jnp.asarray(solids.half), axis=-1), float(lens.columns(0.0)[0])
    seen = (forward > -radius) & (jnp.abs(right) + edge * forward < radius * math.hypot(1, edge))
    seen &= jnp.asarray(solids.top) > jnp.asarray(solids.bottom)
    order = jnp.where(seen, forward**2 + right**2, jnp.inf)
    index = jnp.arange(count)
    before = (order < order[:, None]) | ((order == order[:, None]) & (index < index[:, None]))
    rank = before.sum(1)
    chosen = jnp.sum(jnp.where(rank == jnp.arange(lens.solids)[:, None], index, 0), 1)
    return jax.tree.map(lambda x: jnp.asarray(x)[chosen], solids)


def _solid_columns(solids: Solids, camera: Camera, u: jax.Array, wall: jax.Array, paint: Paint) -> Columns:
    """What columns see of solids, [N, W], without those behind the wall (inverse distance `wall`, [W]). Not sorted."""
    make = {BOX: _box_columns, CYLINDER: _cylinder_columns, SPHERE: _sphere_columns}
    shape = jnp.asarray(solids.shape)[:, None]
    columns = None
    for kind in solids.shapes:
        found = make[kind](solids, camera, u, paint)
        columns = found if columns is None else _where(shape == kind, found, columns)
    if columns is None:
        empty = tuple(jnp.zeros((0, *u.shape), x.dtype) for x in paint.payload(Surface(jnp.zeros((0, 3)), 1.0, 0)))
        return Columns(*(jnp.zeros((0, *u.shape)),) * 4, empty, empty)
    seen = (columns.near > wall) & (jnp.asarray(solids.top) > jnp.asarray(solids.bottom))[:, None]
    low, high = jnp.where(seen, columns.low, NEVER), jnp.where(seen, columns.high, NEVER)
    return columns._replace(near=jnp.where(seen, columns.near, 0.0), low=low, high=high)


def _where(condition: jax.Array, first: Columns, second: Columns) -> Columns:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def _surface(solids: Solids, light: jax.Array | float, level: jax.Array | float = math.inf) -> Surface:
    """The solids' surfaces of one kind. light: float32 [N]."""
    return Surface(jnp.asarray(solids.colour), light, _identity(solids), level)


def _identity(solids: Solids) -> jax.Array:
    """Object ids, int32 [N]; those of the walls where there are none."""
    return jnp.full(solids.shape.shape, WALL, jnp.int32) if solids.identity is None else jnp.asarray(solids.identity)


def _box_columns(solids: Solids, camera: Camera, u: jax.Array, paint: Paint) -> Columns:
    """Boxes. A ray enters a convex outline through an edge that runs from its left to its right, and leaves by one that
    runs from right to left.
    """
    cos, sin = jnp.cos(solids.yaw), jnp.sin(solids.yaw)
    ahead, aside = jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)  # the box's own x and z in the world, [N, 2]
    reach, breadth = ahead * solids.half[:, :1], aside * solids.half[:, 1:]
    corners = jnp.stack([reach + breadth, reach - breadth, -reach - breadth, -reach + breadth], 1)
    forward, right = _in_view(jnp.asarray(solids.centre)[:, None] + corners, camera)
    side = [right[:, k, None] - u * forward[:, k, None] > 0 for k in range(4)]  # of the ray, of each corner, [N, W]
    near = far = jnp.zeros((corners.shape[0], *u.shape))
    seen = tuple(jnp.zeros(near.shape, x.dtype) for x in paint.payload(_surface(solids, 1.0)))
    for k, normal in enumerate((ahead, -aside, -ahead, aside)):
        after = (k + 1) % 4
        a, b = _edge(forward[:, k], right[:, k], forward[:, after], right[:, after])
        inverse = a[:, None] - b[:, None] * u
        enters, leaves = ~side[k] & side[after], side[k] & ~side[after]
        near, far = jnp.where(enters, inverse, near), jnp.where(leaves, inverse, far)
        payload = paint.payload(_surface(solids, shade_upright(normal)))
        seen = tuple(jnp.where(enters, new[:, None], old) for new, old in zip(payload, seen, strict=True))
    return _prism(solids, camera, near, far, seen, paint)


def _circle(solids: Solids, camera: Camera, u: jax.Array) -> tuple[jax.Array, ...]:
    """(forward, right, q [N, 1], along, root [N, W]) of the circles in plan: the ray u meets them at the inverse
    distances (along ± root) / q; root is NaN-free and 0 where it misses.
    """
    forward, right = (x[:, None] for x in _in_view(solids.centre, camera))
    q = forward**2 + right**2 - solids.half[:, :1] ** 2
    along = forward + u * right
    return forward, right, q, along, jnp.sqrt(jnp.maximum(along**2 - (1 + u**2) * q, 0.0))


def _cylinder_columns(solids: Solids, camera: Camera, u: jax.Array, paint: Paint) -> Columns:
    """Upright cylinders, with the light of each column's own normal."""
    forward, right, q, along, root = _circle(solids, camera, u)
    hit = (root > 0) & (q > 0)
    near, far = jnp.where(hit, (along + root) / q, 0.0), jnp.where(hit, (along - root) / q, 0.0)
    distance = 1.0 / jnp.maximum(near, 1e-6)
    f, r = (distance - forward) / solids.half[:, :1], (distance * u - right) / solids.half[:, :1]
    cos, sin = camera.direction
    light = shade_upright(jnp.stack([f * cos + r * sin, r * cos - f * sin], -1))
    identity = _identity(solids)[:, None]
    payload = paint.payload(Surface(jnp.asarray(solids.colour)[:, None], light, identity))
    return _prism(solids, camera, near, far, payload, paint)


def _prism(
    solids: Solids, camera: Camera, near: jax.Array, far: jax.Array, side: tuple[jax.Array, ...], paint: Paint
) -> Columns:
    """Sides between `bottom` and `top`, and the level face that shows: the top from above, the bottom from below."""
    above = (jnp.asarray(solids.top) - camera.height)[:, None]
    under = (jnp.asarray(solids.bottom) - camera.height)[:, None]
    side = paint.stamp(side, near)
    top = paint.payload(_surface(solids, SHADE_UP, above[:, 0]))
    bottom = paint.payload(_surface(solids, SHADE_DOWN, under[:, 0]))
    low, high = under * jnp.where(under > 0, far, near), above * jnp.where(above < 0, far, near)
    mid = jnp.where(under > 0, under * near, jnp.where(above < 0, above * near, NEVER))
    lower = tuple(jnp.where(under > 0, level[:, None], face) for level, face in zip(bottom, side, strict=True))
    upper = tuple(jnp.where(above < 0, level[:, None], face) for level, face in zip(top, side, strict=True))
    return Columns(near, low, mid, high, lower, upper)


def _sphere_columns(solids: Solids, camera: Camera, u: jax.Array, paint: Paint) -> Columns:
    """Spheres, exact in outline; each has two shades, of the points 45° above and below its middle that face the eye.

    Along (1, u, v) the sphere of radius ρ at (forward, right, −k) from the eye, k its depth below eye level, is met iff
    (along − k·v)² ≥ (1 + u² + v²)·(q + k²), a quadratic in v with the roots (−along·k ± root·√(q + k²)) / q.
    """
    _, _, q, along, root = _circle(solids, camera, u)
    radius = solids.half[:, :1]
    k = camera.height - (jnp.asarray(solids.bottom)[:, None] + radius)
    hit = (root > 0) & (q > 0)
    safe = jnp.where(q > 0, q, 1.0)
    reach = root * jnp.sqrt(jnp.maximum(safe + k**2, 0.0))
    low, high = (-along * k - reach) / safe, (-along * k + reach) / safe
    near = jnp.where(hit, (along + root) / safe, 0.0)
    towards = camera.position - jnp.asarray(solids.centre)
    towards = towards / jnp.maximum(jnp.linalg.norm(towards, axis=-1, keepdims=True), 1e-9)
    half = math.sqrt(0.5)
    level = jnp.full_like(towards[:, 0], half)
    bands = []
    for rise in (-level, level):
        normal = jnp.stack([half * towards[:, 0], rise, half * towards[:, 1]], -1)
        payload = paint.payload(_surface(solids, shade(normal)))
        bands.append(paint.stamp(tuple(jnp.broadcast_to(x[:, None], near.shape) for x in payload), near))
    return Columns(near, low, (low + high) / 2, high, *bands)


def _nearest_first(columns: Columns, layers: int) -> Columns:
    """The `layers` nearest of N columns, nearest first: [min(layers, N), W]."""
    count = columns.near.shape[0]
    if count <= 1:
        return columns

    def pick(near: jax.Array, _: None) -> tuple[jax.Array, Columns]:
        chosen = near == near.max(0)
        picked = jax.tree.map(lambda x: _pick(x, chosen), columns._replace(near=near))
        return jnp.where(chosen, -1.0, near), picked

    # A loop, although a short one: what goes into it is computed once and not again for every layer and row.
    return jax.lax.scan(pick, columns.near, None, length=min(layers, count))[1]


def _pick(values: jax.Array, chosen: jax.Array) -> jax.Array:
    """The chosen value of each column. values, chosen: [N, W]. Where several are, the largest."""
    lowest = -jnp.inf if values.dtype == jnp.float32 else 0
    return jnp.where(chosen, values, jnp.asarray(lowest, values.dtype)).max(0)
