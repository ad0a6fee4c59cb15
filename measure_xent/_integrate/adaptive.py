"""Integrals over the line by adaptive quadrature, and over the integers by sums.

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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from .._integral import Integral
from .._integrand import Integrand
from .._kernels.null import null_safe_product, values_at
from .._measures.laws import Continuous, Integers, kinks_of, marks_of
from .._smooth_form import finite, fixed
from .ends import LOG_2, Nodes, near_of, places, ratio_rise, rise, tail_of

END = 3.8  # of t: exp(π/2 · sinh t) is 1e15 there, whose square float32 still holds
WIDE = 5.0  # of t in float64: 1e50
PANELS, HALVED = 4, 4  # to start with; at a time
WINDOW = 2048  # integers that a sum reaches


def clenshaw_curtis(n: int) -> np.ndarray:
    """The weights of n + 1 points cos(πk/n), n even."""
    k, j = np.arange(n + 1), np.arange(1, n // 2 + 1)
    terms = np.where(j == n // 2, 1, 2) / (4 * j**2 - 1) * np.cos(2 * np.pi * np.outer(k, j) / n)
    return np.where((k == 0) | (k == n), 1, 2) / n * (1 - terms.sum(-1))


POINTS = -np.cos(np.pi * np.arange(17) / 16)
WEIGHTS = clenshaw_curtis(16)
COARSE = np.zeros(17)
COARSE[::2] = clenshaw_curtis(8)


def end_of(dtype: Any) -> float:
    """How far t reaches."""
    return WIDE if jnp.finfo(dtype).bits == 64 else END


def bend(low: Any, high: Any, width: Any) -> tuple[Callable, Callable]:
    """(t ↦ (x, log dx/dt, distances from the ends), x ↦ t) for an interval and the size of what there is to see."""
    half_pi = np.pi / 2
    log_cosh = lambda s: jnp.logaddexp(s, -s) - np.log(2)
    u_of = lambda t: (half_pi * jnp.sinh(t), np.log(half_pi) + log_cosh(t))

    def line(t):
        u, log_du = u_of(t)
        return width * jnp.sinh(u), jnp.log(width) + log_cosh(u) + log_du, (np.inf, np.inf)

    def ray(t):
        u, log_du = u_of(t)
        gap = width * jnp.exp(u)
        return low + gap, jnp.log(width) + u + log_du, (gap, np.inf)

    def left_ray(t):
        u, log_du = u_of(t)
        gap = width * jnp.exp(-u)
        return high - gap, jnp.log(width) - u + log_du, (np.inf, gap)

    def interval(t):
        u, log_du = u_of(t)
        left, right = jax.nn.sigmoid(2 * u), jax.nn.sigmoid(-2 * u)
        gaps = (high - low) * left, (high - low) * right
        x = jnp.where(t < 0, low + gaps[0], high - gaps[1])
        return x, jnp.log(high - low) + np.log(2) + jnp.log(left) + jnp.log(right) + log_du, gaps

    from_low = lambda x: jnp.log(jnp.maximum(x - low, 0))
    from_high = lambda x: jnp.log(jnp.maximum(high - x, 0))
    forward, back = {
        (False, False): (line, lambda x: jnp.arcsinh(x / width)),
        (True, False): (ray, lambda x: from_low(x) - jnp.log(width)),
        (False, True): (left_ray, lambda x: jnp.log(width) - from_high(x)),
        (True, True): (interval, lambda x: (from_low(x) - from_high(x)) / 2),
    }[finite(low), finite(high)]
    return forward, lambda x: jnp.arcsinh(back(x) / half_pi)


class Panels:
    """The panels of one integral over the line: where they are cut, and the sums over them."""

    def __init__(self, P: Continuous, f: Integrand):
        stop = lax.stop_gradient
        self.f, self.rank, self.ratio = f, max(len(P.shape), len(f.shape)), f.by_ratio()
        P = P.at_rank(self.rank).each()
        self.law, self.c = P.centred()
        self.origin = stop(P.bounds_centre() if isinstance(self.c, float) else self.c)
        column = lambda x: jnp.asarray(x)[..., None]
        kinks = [*P.kinks, *map(column, kinks_of(f))]
        marks = [jnp.atleast_1d(P.centre), *map(column, marks_of(f))]
        self.dtype = jnp.result_type(float, P.width, *kinks, *marks)
        self.family = jnp.broadcast_shapes(
            (1,) * self.rank, P.shape[:-1], f.shape, *(jnp.shape(x)[:-1] for x in (*kinks, *marks))
        )
        move = lambda end: end - self.origin if finite(end) else end
        self.forward, back = bend(*map(fixed, (*map(move, P.support), P.width)))
        self.end = end_of(self.dtype)
        place = lambda x: self.spread(jnp.clip(back(x - self.origin), -self.end, self.end))
        self.kinks = [place(x) for x in kinks]
        grid = self.spread(jnp.linspace(-self.end, self.end, PANELS + 1))
        self.tails = self._tails(tuple(map(move, P.support)), P.width, place)
        self.movable = [tail for tail, end in self.tails if not isinstance(end, float)]
        self.tails = [tail for tail, _ in self.tails]
        layers = [place(self.origin + tail.edge) for tail in self.movable]
        cuts = [stop(x) for x in (grid, *self.kinks, *layers, *map(place, marks))]
        edges = jnp.sort(jnp.concatenate(cuts, axis=-1), axis=-1)
        self.start = edges[..., :-1], edges[..., 1:]

    def spread(self, t: Any) -> Float[Array, "*family n"]:
        return jnp.broadcast_to(jnp.asarray(t, self.dtype), (*self.family, jnp.shape(t)[-1]))

    def nodes(self, t: Array, lengths: Any) -> Nodes:
        u, log_slope, gaps = self.forward(t)
        return Nodes(u, log_slope, lengths, tuple(jnp.broadcast_to(gap, u.shape) for gap in gaps))

    def _tails(self, support: tuple[Any, Any], width: Any, place: Callable) -> list[Any]:
        """What is beside each end, and the end."""
        stop = lax.stop_gradient
        ends = [(sign, end) for sign, end in zip((-1, 1), support, strict=True) if finite(end)]
        if not ends:
            return []
        size = stop(self.spread(jnp.minimum(width, ends[1][1] - ends[0][1]) if len(ends) == 2 else width))
        known: list[tuple[Any, Any, Any, Any, Any]] = []  # as ``tail_of`` takes them
        points = []
        for sign, end in ends:
            end = self.spread(jnp.reshape(end, jnp.shape(end) or (1,)))
            near, layer = near_of(stop(end), size)
            edge, _, gaps = self.forward(stop(place(self.origin + stop(end) - sign * layer)))
            tip = self.forward(self.spread(jnp.full(1, sign * self.end)))[0]
            known.append((sign, end, near, gaps[sign > 0], edge))
            points.append(places(sign, stop(end), near, tip))
        u = jnp.concatenate(points, axis=-1)
        flat = lambda values: flattened(values, jnp.ones_like(jax.tree.leaves(values)[0]))[0]
        of, values = self._of, self._inner_values(self.origin + u)
        halves = [stop(jnp.split(a, len(ends), axis=-1)) for a in (flat(of(values)), self._log_density(u))]
        made: list[Any] = []
        for i, (about, (_, end)) in enumerate(zip(known, ends, strict=True)):
            at, log_p = halves[0][i], halves[1][i]
            rise_to_8 = rise(at, jnp.full_like(at[..., :1], 3 * LOG_2))
            if self.ratio is not None:
                ratio = jax.tree.map(lambda x, i=i: jnp.split(x, len(ends), axis=-1)[i], stop(values))
                one = jax.tree.map(lambda x: x[..., :1], ratio)
                rise_to_8 = flat(of(_shifted(one, ratio_rise(ratio.log_inside, 3 * LOG_2)))) - at[..., :1]
            made.append((tail_of(*about, at, log_p, rise_to_8), end))
        return made

    def _inner_values(self, x: Array) -> Any:
        """The values of f, or the ratios that they are of."""
        if self.ratio is None:
            return self.f.values(x, self.rank + 1)
        ratio = self.ratio[0].values(x, self.rank + 1)
        spread = lambda v: jnp.broadcast_to(v, (*self.family, x.shape[-1]))
        return jax.tree.map(spread, ratio)

    def _of(self, values: Any) -> Any:
        return values if self.ratio is None else self.ratio[1](values)

    def _log_density(self, u: Array) -> Array:
        return self.law.log_density_of(u + (self.origin - self.c))

    def terms(
        self, nodes: Nodes, ends: int = 0, row: int = 0
    ) -> tuple[Float[Array, "*family leaves n"], Array, Array, Callable]:
        """lengths · slope · p(x) · f(x) at x = origin + u, f's leaves flat; all but f(x); what they are off by beside the ends,
        [*family, leaves]; and how the leaves were. The last few nodes are at the ends. Up to the last full row of nodes, those
        where f alone is not finite are left out."""
        n, u = nodes.u.shape[-1], nodes.u
        elsewhere = self.forward(jnp.asarray(0.0137, self.dtype))[0]  # inside, where nothing is known to happen
        depths = [tail.depth(nodes.gaps) for tail in self.tails]
        for tail, depth in zip(self.tails, depths, strict=True):
            u = tail.place(u, nodes.gaps, depth)
        probes = [self.spread(tail.probes(elsewhere)) for tail in self.tails]
        with_probes = lambda u, probes=probes: jnp.concatenate([u, *probes], axis=-1)
        zero = [jnp.zeros_like(x) for x in probes]
        apart = lambda x: [x[..., :n], *jnp.split(x[..., n:], max(1, len(probes)), axis=-1)[: len(probes)]]

        def density(u):
            log_p, *at_probes = apart(self._log_density(with_probes(u)))
            for tail, at, depth in zip(self.tails, at_probes, depths, strict=True):
                log_p = log_p + tail.log_density_rise(at, depth)
            return jnp.exp(log_p + nodes.log_slope)  # far out the density alone underflows

        p = density(u)
        fine = jnp.isfinite(p) & (p > 0)
        # Where the density is 0 no derivative is taken: the integrand is looked at where the density is greatest.
        here = lambda p: jnp.take_along_axis(u, jnp.argmax(p, axis=-1, keepdims=True), axis=-1)
        if row:
            x = self.origin + jnp.where(fine, u, here(p))
            known = jnp.isfinite(lax.stop_gradient(flattened(self.f.values(x, self.rank + 1), p)[0]))
            fine &= ~_alone(self.f.places(x, self.rank + 1), ~known, row)
            inside = jnp.where(fine, u, here(jnp.where(known.all(-2), p, 0)))
        else:
            inside = jnp.where(fine, u, here(p))
        values = self._inner_values(self.origin + with_probes(inside))
        if self.ratio is not None:  # a power of the distance, whatever f makes of it
            _, *at_probes = apart(values.log_inside)
            for at, depth in zip(at_probes, depths, strict=True):
                values = _shifted(values, with_probes(ratio_rise(at, depth), zero))
        values = self._of(values)
        if not self.law.tame:
            p = density(inside)
        mass = jnp.where(fine, p, 0) * nodes.lengths
        flat, w, back = flattened(values, with_probes(mass))
        (flat, *at_probes), w, off = apart(flat), w[..., :n], jnp.zeros(flat.shape[:-1], flat.dtype)
        for tail, at, depth in zip(self.tails, at_probes, depths, strict=True):
            if self.ratio is None:
                flat = flat + (more := tail.rise(at, depth))
            else:
                more = flat - at[..., :1]
            error = jnp.where(depth[..., None, :] < 0, tail.off + tail.relative * jnp.abs(more), 0)
            off += lax.stop_gradient(null_safe_product(jnp.abs(w), error).sum(-1))
        m = n - ends
        terms = null_safe_product(w[..., :m], flat[..., :m])
        # A panel of length 0 is all derivative, of every order: a product as any other, where there is something to multiply.
        known = jnp.where(jnp.isfinite(flat[..., m:]), flat[..., m:], 0)
        return jnp.concatenate([terms, w[..., m:] * known], axis=-1) if ends else terms, mass, off, back

    def boundary(self) -> list[Nodes]:
        """Panels of length 0 at the ends that may move, or where the layer is that moves with them."""
        made = []
        for tail in self.movable:
            half = (tail.end - lax.stop_gradient(tail.end)) / 2
            x = self.spread(lax.stop_gradient(tail.edge) + half + half * jnp.asarray(POINTS, self.dtype))
            lengths = self.spread(tail.sign * half * jnp.asarray(WEIGHTS, self.dtype))
            made.append(Nodes(x, jnp.zeros_like(x), lengths, (jnp.full_like(x, jnp.inf),) * 2))
        return made

    def _nodes(self, a: Array, b: Array) -> Nodes:
        """The nodes in all panels."""
        half = ((b - a) / 2)[..., None]
        # Just inside of the ends, where known jumps are.
        inside = 1 - 16 * float(jnp.finfo(self.dtype).eps)
        t = ((a + b) / 2)[..., None] + half * jnp.asarray(inside * POINTS, self.dtype)
        flat = lambda x: x.reshape(*self.family, -1)
        return self.nodes(flat(t), flat(half * jnp.asarray(WEIGHTS, self.dtype)))

    def search(self, goal: float, rounds: int) -> tuple[Array, Array]:
        """Halves the panels that are furthest off, beside the whole, until together they are within the goal."""
        a, b = self.start
        m, leaves = a.shape[-1], jax.eval_shape(lambda a, b: self.terms(self._nodes(a, b))[0], a, b).shape[-2]
        rounds += -(-m // HALVED)  # those that nobody has looked at yet
        room = self.spread(jnp.full(HALVED * rounds, self.end))
        a, b = (jnp.concatenate([x, room], axis=-1) for x in (a, b))
        look = (*self.family, leaves)
        unseen = jnp.where(jnp.arange(m + HALVED * rounds) < m, jnp.inf, 0)
        gaps = jnp.broadcast_to(unseen, (*look, unseen.shape[-1])).astype(self.dtype)
        sizes = jnp.zeros_like(gaps)

        watched = self.f.watched(leaves)

        def off(gaps, sizes):
            gaps, sizes = gaps[..., :watched, :], sizes[..., :watched, :]
            return (gaps / jnp.maximum(sizes.sum(-1, keepdims=True), jnp.finfo(self.dtype).tiny)).max(-2)

        def halve(state):
            i, a, b, gaps, sizes = state
            _, worst = lax.top_k(off(gaps, sizes), HALVED)
            left, right = (jnp.take_along_axis(x, worst, axis=-1) for x in (a, b))
            middle = (left + right) / 2
            a2, b2 = jnp.concatenate([left, middle], -1), jnp.concatenate([middle, right], -1)
            _, gap, size = _rules(self.terms(self._nodes(a2, b2))[0])

            def store(x, new):
                old, fresh = jnp.split(new, 2, axis=-1)
                at = worst if x.ndim == worst.ndim else jnp.broadcast_to(worst[..., None, :], (*x.shape[:-1], HALVED))
                x = jnp.put_along_axis(x, at, old, axis=-1, inplace=False)
                return lax.dynamic_update_slice_in_dim(x, fresh, m + HALVED * i, axis=-1)

            return i + 1, store(a, a2), store(b, b2), store(gaps, gap), store(sizes, size)

        unfinished = lambda state: (state[0] < rounds) & jnp.any(off(*state[3:]).sum(-1) > goal)
        _, a, b, _, _ = lax.while_loop(unfinished, halve, (0, a, b, gaps, sizes))
        return a, b

    def moved(self, a: Array, b: Array) -> tuple[Array, Array]:
        """The edges at known kinks, moving as those do, where the integrand does not jump."""
        for t in self.kinks:
            fixed, beside = lax.stop_gradient(t), 1e-4
            both = jnp.concatenate([fixed - beside, fixed + beside], axis=-1)
            left, right = jnp.split(self.terms(self.nodes(both, jnp.ones_like(both)))[0], 2, axis=-1)
            smooth = jnp.all(jnp.abs(left - right) <= 0.05 * (jnp.abs(left) + jnp.abs(right)), axis=-2)
            a, b = (x + jnp.where((x == fixed) & lax.stop_gradient(smooth), t - fixed, 0) for x in (a, b))
        return a, b

    def result(self, a: Array, b: Array, tolerance: float | None) -> Integral:
        nodes, boundary = self._nodes(*self.moved(a, b)), self.boundary()
        n, ends = nodes.u.shape[-1], len(POINTS) * len(boundary)
        # At the tips is what is cut off there, about.
        tips = self.spread(jnp.asarray([-self.end, self.end]))
        every = Nodes.join([nodes, self.nodes(tips, jnp.ones_like(tips)), *boundary])
        terms, mass, beside, back = self.terms(every, ends, len(POINTS))
        sums, gaps, sizes = _rules(terms[..., :n])
        cut_off = jnp.abs(lax.stop_gradient(terms[..., n : n + 2])).sum(-1)
        value = sums.sum(-1) + terms[..., n + 2 :].sum(-1)
        # Mass that no node can see, for it is within rounding of an end, has some part of the integral. Where the integrand
        # is 0 panels are wide, and what the mass is off by there is their own error.
        seen, off, _ = (x.sum(-1, keepdims=True) for x in _rules(mass[..., :n]))
        unseen = lax.stop_gradient(jnp.maximum(jnp.abs(seen - self.law.mass) - 3 * off, 0) / self.law.mass)
        unseen = jnp.where(jnp.isfinite(self.law.mass), jnp.where(jnp.isfinite(unseen), unseen, 1), 0)
        error = 3 * gaps.sum(-1) + cut_off + beside + unseen * sizes.sum(-1)
        total = judged(value, error, sizes.sum(-1), back, self.f, tolerance)
        return Integral(total.value, total.error, total.status | (unseen[..., 0] > 0.1).astype(jnp.int32))


def _rules(terms: Float[Array, "*family leaves n"]) -> tuple[Array, Array, Array]:
    """Panel by panel: the sum, its error, the sum of absolute values."""
    terms = terms.reshape(*terms.shape[:-1], -1, len(POINTS))
    known = lax.stop_gradient(jnp.where(jnp.isfinite(terms), terms, 0))
    size = jnp.abs(known).sum(-1)
    gap = jnp.abs(known @ jnp.asarray(1 - COARSE / WEIGHTS, known.dtype)) / jnp.where(size == 0, 1, size)
    # QUADPACK's estimate, which is wary of what is not smooth, but no less than the gap itself.
    return terms.sum(-1), size * jnp.minimum(1, jnp.maximum(gap, (200 * gap) ** 1.5)), size


def _shifted(ratio: Any, by: Array) -> Any:
    return ratio._replace(log_scale=ratio.log_scale + by)


def _alone(x: Float[Array, "*family n"], bad: Array, row: int) -> Array:
    """Nodes where f is not finite beside others where it is: an infinity at one place, as far as x can tell places apart."""
    n, m = x.shape[-1], x.shape[-1] // row * row
    x, bad = (a[..., :m].reshape(*a.shape[:-1], -1, row) for a in (x, bad))
    apart = jnp.abs(jnp.diff(x)) > 64 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(x[..., 1:]), jnp.abs(x[..., :-1]))
    both = bad[..., 1:] & bad[..., :-1] & apart[..., None, :, :]
    no = jnp.zeros_like(both[..., :1])
    believed = jnp.concatenate([both, no], axis=-1) | jnp.concatenate([no, both], axis=-1)
    alone = (bad & ~believed).any(-3).reshape(*bad.shape[:-3], m)
    return jnp.concatenate([alone, jnp.zeros((*alone.shape[:-1], n - m), bool)], axis=-1)


def over_the_line(P: Continuous, f: Integrand, tolerance: float | None, rounds: int | None) -> Integral:
    """∫ f(x) p(x) dx."""
    panels = Panels(P, f)
    eps = float(jnp.finfo(panels.dtype).eps) ** 0.5
    a, b = panels.search((eps if tolerance is None else tolerance) / 4, rounds or (24 if panels.end == END else 40))
    return panels.result(a, b, tolerance)


def over_the_integers(P: Integers, f: Integrand, tolerance: float | None) -> Integral:
    """Σ f(k) p(k) over a window of integers around the mean. What its outer half adds bounds what is left out."""
    rank = max(len(P.shape), len(f.shape))
    P = P.at_rank(rank)
    mean, sd = (jnp.broadcast_to(lax.stop_gradient(x), P.shape)[..., None] for x in (P.mean, P.width))
    stride = jnp.maximum(
        1, jnp.ceil(32 * sd / WINDOW)
    )  # a pmf this wide is a smooth curve: every so many integers will do
    k = jnp.maximum(0, jnp.floor(mean - stride * WINDOW / 2)) + stride * jnp.arange(WINDOW)
    p = P.each().density_of(k)
    p = p / p.sum(-1, keepdims=True)  # of so many integers, or with a rounding error of its own
    outside = jnp.abs(k - mean) > stride * (WINDOW // 4)
    here = jnp.take_along_axis(k, jnp.argmax(p, axis=-1, keepdims=True), axis=-1)
    # A mass of 0 has a derivative at the end of a parameter's range.
    values = values_at(
        lambda k: f.values(k.astype(int), rank + 1),
        p,
        (jnp.broadcast_to(k, p.shape),),
        lambda absent, k: (jnp.where(absent, here, k),),
    )
    flat, w, back = flattened(values, p)
    terms = w * flat
    known = jnp.abs(lax.stop_gradient(terms))
    between = jnp.abs(lax.stop_gradient(2 * terms[..., ::2].sum(-1) - terms.sum(-1)))
    error = jnp.where(outside[..., None, :], known, 0).sum(-1) + jnp.where(stride > 1, between, 0)
    return judged(terms.sum(-1), error, known.sum(-1), back, f, tolerance)


def weighted(values: Any, w: Float[Array, "*family n"]) -> tuple[Float[Array, "*family leaves n"], Callable]:
    """w · f(x), all of f's leaves flat, and how to make of an array [*family, leaves] what they were."""
    flat, w, back = flattened(values, w)
    return null_safe_product(w, flat), back


def flattened(values: Any, w: Float[Array, "*family n"]) -> tuple[Array, Array, Callable]:
    """f(x) and w as arrays [*family, leaves, n], and the way back."""
    rank = w.ndim - 1
    leaves, tree = jax.tree.flatten(values)
    leaves = [jnp.asarray(v) for v in leaves]
    leaves = [v.reshape(v.shape + (1,) * (w.ndim - v.ndim)) for v in leaves]
    events = [v.shape[w.ndim :] for v in leaves]
    family = jnp.broadcast_shapes(w.shape, *(v.shape[: w.ndim] for v in leaves))
    flat = [
        jnp.broadcast_to(v.reshape(*v.shape[: w.ndim], -1), (*family, int(np.prod(v.shape[w.ndim :])))) for v in leaves
    ]
    flat = jnp.moveaxis(jnp.concatenate(flat, axis=-1), -1, -2)
    dtype = jnp.result_type(flat, w)
    flat, w = flat.astype(dtype), jnp.broadcast_to(w[..., None, :], flat.shape).astype(dtype)
    stops = np.cumsum([int(np.prod(e)) for e in events])[:-1]

    def back(x: Array) -> Any:
        parts = jnp.split(x, stops, axis=rank)
        return tree.unflatten([part.reshape(*x.shape[:rank], *e) for part, e in zip(parts, events, strict=True)])

    return flat, w, back


def judged(
    value: Array,
    error: Array,
    size: Array,
    back: Callable,
    f: Integrand,
    tolerance: float | None,
    converges: bool = True,
) -> Integral:
    """Values [*family, leaves] as an integral: their errors, and whether those are small beside the sums of absolute values."""
    eps = jnp.finfo(value.dtype).eps
    goal = eps**0.5 if tolerance is None else max(tolerance, float(eps))
    # An infinite integrand where there is mass makes an infinite integral, and no mistake.
    wrong = (error > goal * size + f.noise * eps) & ~jnp.isinf(value) if converges else jnp.zeros(value.shape, bool)
    # The logarithm of a density that is far from 1 has few digits behind its point.
    error = lax.stop_gradient(error + 32 * eps * size + jnp.finfo(value.dtype).tiny)
    watched = f.watched(value.shape[-1])
    return Integral(back(value), back(error), wrong[..., :watched].any(-1).astype(jnp.int32))
