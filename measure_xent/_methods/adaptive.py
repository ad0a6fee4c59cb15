"""Integrals over the line by adaptive quadrature.

The line is first bent: x = x(t) with weights that fall off doubly exponentially, so that infinite and singular ends are as
good as any (Takahasi & Mori 1974). Then t is cut where the measure and the integrand are known not to be smooth or to have
their bulk, and the panels that are furthest off, by the difference of Clenshaw and Curtis's rules of 17 and of 9 points, are
halved until what they are off by is small (Piessens et al. 1983, *QUADPACK*). These rules see a panel's ends: between the
last node of one panel and the first of the next, Gauss's and Kronrod's do not see a jump, and agree.

A node has no derivative; the density there has. So the derivative of an integral is the integral of a derivative, whatever
jumps the integrand makes. What moves with the parameters are the ends of the support and known kinks: an end brings a panel
of length 0, whose derivative is Leibniz's boundary term, and a kink moves the edges of its panels.

A node at which the integrand is infinite or NaN, and its neighbours are not, is left out: panels close in on a pole until
what is left of it is small, or until it is clear that it is not. An integrand that is infinite on a set of mass is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from .._integrands.integral import Integral
from .._integrands.integrand import Integrand
from .._kernels.null import null_safe_product
from .._kernels.tanh_sinh import END, end_of, finite, fixed, tanh_sinh_map
from .._measures.laws import Continuous, breakpoints_of, kinks_of
from .._strict import custom_jvp
from .ends import LOG_2, PLACES, PROBES, End, Nodes, Tail, near_of, ratio_rise, rise
from .leaves import flattened, with_convergence

PANELS, HALVED = 4, 4  # to start with; at a time


def clenshaw_curtis(n: int) -> np.ndarray:
    """The weights of n + 1 points cos(πk/n), n even."""
    k, j = np.arange(n + 1), np.arange(1, n // 2 + 1)
    terms = np.where(j == n // 2, 1, 2) / (4 * j**2 - 1) * np.cos(2 * np.pi * np.outer(k, j) / n)
    return np.where((k == 0) | (k == n), 1, 2) / n * (1 - terms.sum(-1))


POINTS = -np.cos(np.pi * np.arange(17) / 16)
WEIGHTS = clenshaw_curtis(16)
COARSE = np.zeros(17)
COARSE[::2] = clenshaw_curtis(8)


class Look(NamedTuple):
    """What is seen at nodes, beside what tails say; f's leaves are flat."""

    u: Float[Array, "*family n"]  # where f is looked at
    used: Bool[Array, "*family n"]  # whether a node counts
    p: Float[Array, "*family n"]  # slope · p(x)
    f: Float[Array, "*family leaves n"]
    off: Float[Array, "*family leaves n"]  # what f is off by
    log_p: Float[Array, "*family n"]  # and the values of f, or the ratios that it is of, before tails have been at them
    values: Any


class Panel(NamedTuple):
    """What is known of panels: where they are, their sums, what those are off by, the sums of absolute values, what f is off by
    beside the ends, and which nodes count. After f's leaves comes one for the mass."""

    a: Float[Array, "*family panels"]
    b: Float[Array, "*family panels"]
    sums: Float[Array, "*family leaves+1 panels"]
    gaps: Float[Array, "*family leaves+1 panels"]
    sizes: Float[Array, "*family leaves+1 panels"]
    off: Float[Array, "*family leaves panels"]
    used: Bool[Array, "*family 17 panels"]

    @property
    def rows(self) -> Float[Array, "*family rows panels"]:
        """All of it as one array: a loop that carries one compiles in less."""
        edges, dtype = (x[..., None, :] for x in self[:2]), self.sums.dtype
        return jnp.concatenate([x.astype(dtype) for x in (*edges, *self[2:])], axis=-2)

    @classmethod
    def of(cls, rows: Float[Array, "*family rows panels"], dtype: Any) -> "Panel":
        """``rows`` again, with the edges in their dtype."""
        leaves = (rows.shape[-2] - len(POINTS) - 5) // 4
        cuts = np.cumsum([1, 1, *[leaves + 1] * 3, leaves])
        a, b, sums, gaps, sizes, off, used = jnp.split(rows, cuts, axis=-2)
        return cls(a[..., 0, :].astype(dtype), b[..., 0, :].astype(dtype), sums, gaps, sizes, off, used > 0)


class Panels:
    """The panels of one integral over the line: where they are cut, and the sums over them.

    An integrand takes the compiler long. So it is in the program once for the value, in the loop that halves panels, whose
    first turn looks at what the ends are like; and once more for a derivative, of the sum over the panels that came out.
    """

    def __init__(self, P: Continuous, f: Integrand):
        stop = lax.stop_gradient
        self.f, self.rank, self.ratio = f, max(len(P.shape), len(f.shape)), f.by_ratio()
        P = P.with_family_rank(self.rank).with_point_axis()
        self.law, self.c = P.centred()
        self.origin = fixed(P.bounds_centre() if isinstance(self.c, float) else self.c)
        column = lambda x: jnp.asarray(x)[..., None]
        kinks = [*P.kinks, *map(column, kinks_of(f))]
        marks = [jnp.atleast_1d(P.centre), *map(column, breakpoints_of(f))]
        self.dtype = jnp.result_type(float, P.width, *kinks, *marks)
        self.family = jnp.broadcast_shapes(
            (1,) * self.rank, P.shape[:-1], f.shape, *(jnp.shape(x)[:-1] for x in (*kinks, *marks))
        )
        move = lambda end: end - self.origin if finite(end) else end
        support = tuple(map(move, P.support))
        self.forward, back = tanh_sinh_map(*map(fixed, (*support, P.width)))
        self.tip = end_of(self.dtype)
        place = lambda x: self.spread(jnp.clip(back(x - self.origin), -self.tip, self.tip))
        # All at once: an inverse hyperbolic sine takes the compiler as long as a few panels do. What is at an end or beyond
        # does not move: there the map has no finite derivative.
        (low, high), at = P.support, jnp.concatenate([self.spread(x) for x in (*kinks, *marks)], axis=-1)
        moves = (np.arange(at.shape[-1]) < len(kinks)) & (at > low) & (at < high)
        known = place(jnp.where(moves, at, stop(at)))
        known = jnp.where(moves, known, stop(known))
        self.kinks = [known[..., i : i + 1] for i in range(len(kinks))]
        self.ends = self._ends(support, P.width, place)
        self.movable = [i for i, end in enumerate(filter(finite, support)) if not isinstance(end, float)]
        layers = [place(self.origin + self.ends[i].edge) for i in self.movable]
        grid = self.spread(np.linspace(-self.tip, self.tip, PANELS + 1))
        cuts = [stop(x) for x in (grid, known, *layers)]
        edges = jnp.sort(jnp.concatenate(cuts, axis=-1), axis=-1)
        self.start = edges[..., :-1], edges[..., 1:]
        # Inside, where nothing is known to happen.
        self.elsewhere: Any = self.forward(jnp.asarray(0.0137, self.dtype))[0] if self.ends else None
        self.watched = self._watched()
        # Of as many nodes as a turn looks at: what JAX has traced at these shapes it need not trace again.
        nodes = 2 * HALVED * len(POINTS) + self.watched.u.shape[-1] + len(PROBES) * len(self.ends)
        values = jax.eval_shape(lambda u: f.values(self.origin + u, self.rank + 1), self.spread(np.zeros(nodes)))
        values = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), values)
        zero, _, self.back = flattened(values, self.spread(np.zeros(nodes)))
        self.zero = zero[..., :1]

    def spread(self, t: Any) -> Float[Array, "*family n"]:
        t = jnp.asarray(t, self.dtype)
        return jnp.broadcast_to(t, (*self.family, t.shape[-1]))

    def nodes(self, t: Array, lengths: Any = 1.0) -> Nodes:
        u, log_slope, gaps = self.forward(t)
        return Nodes(u, log_slope, *(jnp.broadcast_to(x, u.shape) for x in (lengths, *gaps)))

    def _ends(self, support: tuple[Any, Any], width: Any, place: Callable) -> list[End]:
        stop, made = lax.stop_gradient, []
        ends = [(sign, end) for sign, end in zip((-1, 1), support, strict=True) if finite(end)]
        size = jnp.minimum(width, ends[1][1] - ends[0][1]) if len(ends) == 2 else width
        for sign, end in ends:
            at = self.spread(jnp.atleast_1d(end))
            near, layer = near_of(stop(at), stop(self.spread(size)))
            edge, _, gaps = self.forward(stop(place(self.origin + stop(at) - sign * layer)))
            made.append(End(sign, at, near, gaps[sign > 0], edge))
        return made

    def _watched(self) -> Nodes:
        """What is looked at in every turn: the tips, both sides of known kinks, and the places that tell of the ends."""
        beside = [lax.stop_gradient(t) + side for side in (-1e-4, 1e-4) for t in self.kinks]
        made = [self.nodes(jnp.concatenate([self.spread([-self.tip, self.tip]), *beside], axis=-1))]
        for end in self.ends:
            u = end.places(self.forward(self.spread([end.sign * self.tip]))[0])
            made.append(Nodes(u, jnp.zeros_like(u), jnp.ones_like(u), *(jnp.full_like(u, jnp.inf),) * 2))
        return Nodes.join(made)

    def _values(self, u: Array) -> Any:
        """The values of f, or the ratios that they are of."""
        f = self.f if self.ratio is None else self.ratio[0]
        values = f.values(self.origin + u, self.rank + 1)
        spread = lambda v: jnp.broadcast_to(v, (*self.family, u.shape[-1]))
        return values if self.ratio is None else jax.tree.map(spread, values)

    def _flat(self, values: Any, n: int) -> Float[Array, "*family leaves n"]:
        values = values if self.ratio is None else self.ratio[1](values)
        return flattened(values, self.spread(np.ones(n)))[0]

    def look(self, nodes: Nodes, tails: list[Tail], allowed: Any = True, as_is: int = 0, final: bool = False) -> Look:
        """Looks at f at the nodes where there is mass, of those that are allowed, and at the last few as they are. In a final
        look, all that is seen has derivatives."""
        n, u = nodes.u.shape[-1], nodes.u
        beside = list(zip(self.ends, tails, strict=True))
        depths = [tail.depth(end, nodes) for end, tail in beside]
        for (end, tail), depth in zip(beside, depths, strict=True):
            u = tail.place(end, u, nodes, depth)
        probes = [self.spread(tail.probes(end, self.elsewhere)) for end, tail in beside]
        with_probes = lambda u: jnp.concatenate([u, *probes], axis=-1)
        apart = lambda x: [x[..., :n], *jnp.split(x[..., n:], max(1, len(probes)), axis=-1)[: len(probes)]]

        def density(u):
            log_p, *at_probes = apart(self.law.log_density_of(with_probes(u) + (self.origin - self.c)))
            risen = log_p + nodes.log_slope  # far out the density alone underflows
            for tail, at, depth in zip(tails, at_probes, depths, strict=True):
                risen = risen + tail.log_density_rise(at, depth)
            return jnp.exp(risen), log_p

        p, log_p = density(u)
        used = allowed & jnp.isfinite(p) & (p > 0)
        # Elsewhere no derivative is taken: the integrand is looked at where the density is greatest.
        best = jnp.argmax(jnp.where(used, p, 0), axis=-1, keepdims=True)
        u = jnp.where(used | (np.arange(n) >= n - as_is), u, jnp.take_along_axis(u, best, axis=-1))
        values = seen = self._values(with_probes(u))
        if self.ratio is not None:  # a power of the distance, whatever f makes of it
            _, *at_probes = apart(values.log_inside)
            zero = [jnp.zeros_like(x) for x in probes]
            for at, depth in zip(at_probes, depths, strict=True):
                values = _shifted(values, jnp.concatenate([ratio_rise(at, depth), *zero], axis=-1))
        if final and not self.law.finite_derivatives:
            p, _ = density(u)
        f, *at_probes = apart(self._flat(values, n + len(PROBES) * len(probes)))
        off = jnp.zeros_like(f)
        for tail, at, depth in zip(tails, at_probes, depths, strict=True):
            if self.ratio is None:
                f = f + (more := rise(at, depth[..., None, :]))
            else:
                more = f - at[..., :1]
            off += tail.error(more, depth)
        return Look(u, used, jnp.where(used, p, 0), f, off, log_p, seen)

    def learn(self, look: Look) -> list[Tail]:
        """What the ends are like, from a look that nothing was known of them in."""
        made, k = [], PLACES * len(self.ends)
        for i, end in enumerate(self.ends):
            of_end = lambda x, n=look.u.shape[-1], i=i: x[..., n - k + PLACES * i :][..., :PLACES]
            f = of_end(look.f)
            one = f[..., :1]
            if self.ratio is None:
                rise_to_8 = rise(f, jnp.full_like(one, 3 * LOG_2))
            else:
                ratio = jax.tree.map(of_end, look.values)
                first = jax.tree.map(lambda x: x[..., :1], ratio)
                rise_to_8 = self._flat(_shifted(first, ratio_rise(ratio.log_inside, 3 * LOG_2)), 1) - one
            made.append(Tail.of(end, f, of_end(look.log_p), rise_to_8, self.law.finite_derivatives))
        return made

    def unknown(self) -> list[Tail]:
        return [Tail.unknown(end, self.zero) for end in self.ends]

    def terms(self, nodes: Nodes, tails: list[Tail], row: int) -> tuple[Look, Array, Array]:
        """A look at panels of ``row`` nodes and at what is watched; lengths · slope · p(x) · (f(x), 1); what it is off by."""
        n, nodes = nodes.u.shape[-1], Nodes.join([nodes, self.watched])
        look = self.look(nodes, tails, as_is=self.watched.u.shape[-1])
        alone = _alone(self.f.places(self.origin + look.u, self.rank + 1)[..., :n], ~jnp.isfinite(look.f[..., :n]), row)
        used = look.used & ~jnp.pad(alone, [(0, 0)] * (alone.ndim - 1) + [(0, nodes.u.shape[-1] - n)])
        mass = jnp.where(used, look.p * nodes.lengths, 0)[..., None, :]
        terms = jnp.concatenate([null_safe_product(mass, look.f), mass.astype(look.f.dtype)], axis=-2)
        return look._replace(used=used), terms, null_safe_product(jnp.abs(mass), look.off)

    def derived(self, value: Array, nodes: Nodes, tails: list[Tail], used: Array) -> Array:
        """The value of a sum over nodes, with its derivatives."""
        boundary = self.boundary(tails)
        n, nodes = nodes.u.shape[-1], Nodes.join([nodes, *boundary])
        more = nodes.u.shape[-1] - n
        used = jnp.pad(used, [(0, 0)] * (used.ndim - 1) + [(0, more)], constant_values=True)
        look = self.look(nodes, tails, used, final=True)
        p, lengths = look.p[..., None, :], nodes.lengths[..., None, :]
        inside = null_safe_product((p * lengths)[..., :n], look.f[..., :n])
        # A panel of length 0 is all derivative, of every order in the end.
        at_ends = null_safe_product(lengths[..., n:], p[..., n:] * look.f[..., n:])
        return as_derived(value, inside.sum(-1) + at_ends.sum(-1))

    def boundary(self, tails: list[Tail]) -> list[Nodes]:
        """Panels of length 0 at the ends that may move, or where the layer is that moves with them."""
        made = []
        for i in self.movable:
            end, edge = self.ends[i], tails[i].edge(self.ends[i])
            half = (end.at - lax.stop_gradient(end.at)) / 2
            u = edge + half + half * jnp.asarray(POINTS, self.dtype)
            lengths = end.sign * half * jnp.asarray(WEIGHTS, self.dtype)
            made.append(Nodes(u, jnp.zeros_like(u), lengths, *(jnp.full_like(u, jnp.inf),) * 2))
        return made

    def _nodes(self, a: Array, b: Array) -> Nodes:
        """The nodes in all panels."""
        half = ((b - a) / 2)[..., None]
        # Just inside of the ends, where known jumps are.
        inside = 1 - 16 * float(jnp.finfo(self.dtype).eps)
        t = ((a + b) / 2)[..., None] + half * jnp.asarray(inside * POINTS, self.dtype)
        flat = lambda x: x.reshape(*self.family, -1)
        return self.nodes(flat(t), flat(half * jnp.asarray(WEIGHTS, self.dtype)))

    def integral(self, tolerance: float | None, rounds: int) -> Integral:
        """Halves the panels that are furthest off, beside the whole, until together they are within the tolerance."""
        m, leaves = self.start[0].shape[-1], self.zero.shape[-2]
        rounds += -(-m // HALVED)  # those that nobody has looked at yet
        slots, dtype = m + HALVED * (rounds + 1), self.zero.dtype
        goal = (float(jnp.finfo(self.dtype).eps) ** 0.5 if tolerance is None else tolerance) / 4
        zeros = lambda k: jnp.zeros((*self.family, k, slots), dtype)
        a, b = (jnp.concatenate([x, self.spread(np.full(slots - m, self.tip))], axis=-1) for x in self.start)
        unseen = zeros(leaves + 1) + np.where(np.arange(slots) < m, np.inf, 0).astype(dtype)
        sums = zeros(leaves + 1)
        start = Panel(a, b, sums, unseen, sums, zeros(leaves), zeros(len(POINTS)).astype(bool))
        watched = self.f.leaves_to_converge(leaves)

        def off(panels):
            gaps, sizes = panels.gaps[..., :watched, :], panels.sizes[..., :watched, :]
            return (gaps / jnp.maximum(sizes.sum(-1, keepdims=True), jnp.finfo(self.dtype).tiny)).max(-2)

        def halve(state):
            i, rows, far, tails, _ = state
            new = m + HALVED * i + np.arange(HALVED)
            # The first turn is for what the ends are like: its panels have no length.
            worst = jnp.where(i == 0, new, lax.top_k(far, HALVED)[1])[..., None, :]
            left, right = jnp.moveaxis(jnp.take_along_axis(rows[..., :2, :], worst, axis=-1), -2, 0).astype(self.dtype)
            middle = (left + right) / 2
            a, b = jnp.concatenate([left, middle], axis=-1), jnp.concatenate([middle, right], axis=-1)
            look, terms, beside = self.terms(self._nodes(a, b), tails, len(POINTS))
            n = 2 * HALVED * len(POINTS)
            by_panel = lambda x: x[..., :n].reshape(*x.shape[:-1], -1, len(POINTS))
            used = jnp.swapaxes(by_panel(look.used), -1, -2)
            looked = Panel(a, b, *_rules(by_panel(terms)), by_panel(beside).sum(-1), used).rows
            into = jnp.concatenate([worst, jnp.broadcast_to(new, worst.shape)], axis=-1)
            for k in range(2 * HALVED):  # selections are one kernel, which a scatter is not
                rows = jnp.where(np.arange(slots) == into[..., k : k + 1], looked[..., k : k + 1], rows)
            tails = jax.tree.map(lambda learnt, known: jnp.where(i == 0, learnt, known), self.learn(look), tails)
            return lax.stop_gradient((i + 1, rows, off(Panel.of(rows, self.dtype)), tails, terms[..., :-1, n:]))

        unfinished = lambda state: (state[0] < rounds) & jnp.any(state[2].sum(-1) > goal)
        at_watched = jnp.zeros((*self.family, leaves, self.watched.u.shape[-1]), dtype)
        everything = 0, start.rows, off(start), self.unknown(), at_watched
        _, rows, _, tails, at_watched = lax.while_loop(unfinished, halve, everything)
        panels, total = Panel.of(rows, self.dtype), Panel.of(rows.sum(-1, keepdims=True), dtype)
        used = jnp.swapaxes(panels.used, -1, -2).reshape(*self.family, -1)
        value = total.sums[..., :-1, 0]
        value = self.derived(value, self._nodes(*self._moved(panels, at_watched)), tails, used)
        # Mass that no node can see, for it is within rounding of an end, has some part of the integral. Where the integrand
        # is 0 panels are wide, and what the mass is off by there is their own error.
        seen, slack = total.sums[..., -1:, 0], 3 * total.gaps[..., -1:, 0]
        mass = lax.stop_gradient(self.law.mass)
        unseen = jnp.maximum(jnp.abs(seen - mass) - slack, 0) / mass
        unseen = jnp.where(jnp.isfinite(mass), jnp.where(jnp.isfinite(unseen), unseen, 1), 0)
        size = total.sizes[..., :-1, 0]
        # At the tips is what is cut off there, about.
        cut_off = jnp.abs(at_watched[..., :2]).sum(-1)
        error = 3 * total.gaps[..., :-1, 0] + cut_off + total.off[..., 0] + unseen * size
        found = with_convergence(value, error, size, self.back, self.f, tolerance)
        return Integral(found.value, found.error, found.status | (unseen[..., 0] > 0.1).astype(jnp.int32))

    def _moved(self, panels: Panel, at_watched: Array) -> tuple[Array, Array]:
        """The edges at known kinks, moving as those do, where the integrand does not jump."""
        a, b, k = panels.a, panels.b, len(self.kinks)
        for i, t in enumerate(self.kinks):
            fixed = lax.stop_gradient(t)
            left, right = at_watched[..., 2 + i : 3 + i], at_watched[..., 2 + k + i : 3 + k + i]
            smooth = jnp.all(jnp.abs(left - right) <= 0.05 * (jnp.abs(left) + jnp.abs(right)), axis=-2)
            a, b = (x + jnp.where((x == fixed) & smooth, t - fixed, 0) for x in (a, b))
        return a, b


@custom_jvp
def as_derived(value: Array, same: Array) -> Array:
    """The value, with the derivatives of another that would be the same, which no program then computes for its value."""
    del same
    return value


@as_derived.defjvp
def _as_derived_jvp(primals, tangents):
    return as_derived(*primals), tangents[1]


def _rules(terms: Float[Array, "*family leaves panels 17"]) -> tuple[Array, Array, Array]:
    """Panel by panel: the sum, its error, the sum of absolute values."""
    known = lax.stop_gradient(jnp.where(jnp.isfinite(terms), terms, 0))
    size = jnp.abs(known).sum(-1)
    gap = jnp.abs(known @ jnp.asarray(1 - COARSE / WEIGHTS, known.dtype)) / jnp.where(size == 0, 1, size)
    # QUADPACK's estimate, which is wary of what is not smooth, but no less than the gap itself.
    return terms.sum(-1), size * jnp.minimum(1, jnp.maximum(gap, (200 * gap) ** 1.5)), size


def _shifted(ratio: Any, by: Array) -> Any:
    return ratio._replace(log_scale=ratio.log_scale + by)


def _alone(x: Float[Array, "*family n"], bad: Bool[Array, "*family leaves n"], row: int) -> Bool[Array, "*family n"]:
    """Nodes where f is not finite beside others where it is: an infinity at one place, as far as x can tell places apart."""
    x, bad = (a.reshape(*a.shape[:-1], -1, row) for a in (x, bad))
    apart = jnp.abs(jnp.diff(x)) > 64 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(x[..., 1:]), jnp.abs(x[..., :-1]))
    both = bad[..., 1:] & bad[..., :-1] & apart[..., None, :, :]
    no = jnp.zeros_like(both[..., :1])
    believed = jnp.concatenate([both, no], axis=-1) | jnp.concatenate([no, both], axis=-1)
    alone = (bad & ~believed).any(-3)
    return alone.reshape(*alone.shape[:-2], -1)


def over_the_line(P: Continuous, f: Integrand, tolerance: float | None, rounds: int | None) -> Integral:
    """∫ f(x) p(x) dx, in float32, or in float64 where that is on, whatever the law's parameters are in."""
    widest = jnp.result_type(float)
    is_floating = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.floating)
    wide = lambda x: jnp.asarray(x, jnp.promote_types(jnp.result_type(x), widest)) if is_floating(x) else x
    panels = Panels(jax.tree.map(wide, P), f)
    return panels.integral(tolerance, rounds or (24 if panels.tip == END else 40))
