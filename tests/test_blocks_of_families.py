"""Families of a head, Q(h): whatever is asked of them is made a block of rows at a time, and has the dense one's numbers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as S

import measure_xent as mx
from measure_xent import generators

from .sweeps import sweep

N, V, D, FORBIDDEN = 7, 13, 6, 4
rng = np.random.default_rng(0)
f32 = lambda x: np.asarray(x, np.float32)
ARRAYS = {
    "h": f32(rng.normal(size=(N, D))),
    "w": f32(rng.normal(size=(D, V))),
    "b": f32(np.where(np.arange(V) == FORBIDDEN, -np.inf, rng.normal(size=V))),
    "g": f32(rng.normal(size=(N, D))),
    "u": f32(rng.normal(size=(V, D))),
}
Y = np.array([0, 12, 3, 5, 7, 8, 1])
ALLOWED = np.delete(np.arange(V), FORBIDDEN)
TABLE = f32(rng.normal(size=V))
COTANGENTS = f32(rng.normal(size=N))
ORDERS = f32(rng.uniform(0.3, 3, size=N))
TOP = np.array([[0, 1, 2], [3, 5, 12], [1, 9, 7], [2, 0, 3], [5, 6, 7], [10, 11, 12], [8, 2, 1]])
IS_ODD = lambda y: y % 2 == 1


def families(h, w, b, g, u, size=3, **options):
    of = functools.partial(mx.LinearSoftmax, batch_size=size, **options)
    return of(u, b, class_axis=0)(g), of(w, b)(h)


def logarithms(h, w, b, g, u):
    """log p and log q in float64, of the classes that there are."""
    of = lambda z: jax.nn.log_softmax((z + b)[:, ALLOWED])
    return of(g @ u.T), of(h @ w)


def mean_log_ratio(parts, weights):
    m = jnp.log(sum(w * jnp.exp(x) for w, x in zip(weights, parts, strict=True)))
    return sum(w * (jnp.exp(x) * (x - m)).sum(-1) for w, x in zip(weights, parts, strict=True))


def of_top(log_q):
    """Jensen–Shannon of ⅓ at three classes each."""
    p = (TOP[..., None] == ALLOWED).sum(1) / 3
    q = jnp.exp(log_q)
    m = jnp.log((p + q) / 2)
    return (p * (np.log(np.where(p, p, 1)) - m) + q * (log_q - m)).sum(-1) / 2


def restricted(log_q):
    odd = np.where(IS_ODD(ALLOWED), 0, -np.inf)
    return log_q + odd - jax.nn.logsumexp(log_q, axis=-1, keepdims=True, where=IS_ODD(ALLOWED))


def at(log_q, y):
    return jnp.take_along_axis(log_q, np.searchsorted(ALLOWED, y)[:, None], -1)[:, 0]


total = lambda terms: terms.sum(-1)
ODD = IS_ODD(ALLOWED)
# (ours of P, Q, from log p and log q by the textbook)
ASKED = {
    "Jensen–Shannon": (mx.jensen_shannon, lambda p, q: mean_log_ratio((p, q), (0.5, 0.5))),
    "with weights": (
        lambda P, Q: mx.jensen_shannon(P, Q, weights=[0.1, 0.9]),
        lambda p, q: mean_log_ratio((p, q), (0.1, 0.9)),
    ),
    "of three": (
        lambda P, Q: mx.jensen_shannon(P, Q, mx.DiscreteUniform(V).restrict(lambda y: y != FORBIDDEN).normalize()),
        lambda p, q: mean_log_ratio((p, q, jnp.full_like(p, -np.log(V - 1))), (1 / 3,) * 3),
    ),
    "of a few classes": (
        lambda P, Q: mx.jensen_shannon(mx.Discrete(TOP, jnp.full((N, 3), 1 / 3)), Q),
        lambda p, q: of_top(q),
    ),
    "total variation": (mx.total_variation, lambda p, q: total(jnp.abs(jnp.exp(p) - jnp.exp(q))) / 2),
    "Hellinger": (mx.hellinger, lambda p, q: jnp.sqrt(total((jnp.exp(p / 2) - jnp.exp(q / 2)) ** 2) / 2)),
    "χ²": (mx.chi2, lambda p, q: total(jnp.exp(2 * p - q)) - 1),
    "Neyman": (
        functools.partial(mx.f_divergence, f=generators.neyman),
        lambda p, q: total(jnp.exp(2 * q - p)) - 1,
    ),
    "a user's f": (
        lambda P, Q: mx.f_divergence(P, Q, lambda t: (t - 1) ** 2 / (1 + t), slope=1.0),
        lambda p, q: total((jnp.exp(p) - jnp.exp(q)) ** 2 / (jnp.exp(p) + jnp.exp(q))),
    ),
    "KL of a mixture": (
        lambda P, Q: mx.kl_divergence(P, 0.25 * P + 0.75 * Q),
        lambda p, q: total(jnp.exp(p) * (p - jnp.log(0.25 * jnp.exp(p) + 0.75 * jnp.exp(q)))),
    ),
    "Rényi": (
        lambda P, Q: mx.renyi_divergence(P, Q, 0.7),
        lambda p, q: jnp.log(total(jnp.exp(0.7 * p + 0.3 * q))) / -0.3,
    ),
    "Rényi at ∞": (lambda P, Q: mx.renyi_divergence(P, Q, jnp.inf), lambda p, q: (p - q).max(-1)),
    "Rényi's entropy": (lambda P, Q: mx.renyi_entropy(Q, 2), lambda p, q: -jnp.log(total(jnp.exp(2 * q)))),
    "Tsallis, an order each": (
        lambda P, Q: mx.tsallis_divergence(P, Q, ORDERS),
        lambda p, q: (total(jnp.exp(ORDERS[:, None] * p + (1 - ORDERS[:, None]) * q)) - 1) / (ORDERS - 1),
    ),
    "Brier": (lambda P, Q: P.expect(mx.brier(Q)), lambda p, q: total(jnp.exp(2 * q)) - 2 * total(jnp.exp(p + q)) + 1),
    "a table": (lambda P, Q: Q.expect(lambda y: jnp.asarray(TABLE)[y]), lambda p, q: jnp.exp(q) @ TABLE[ALLOWED]),
    "mass of a set": (lambda P, Q: Q.restrict(IS_ODD).mass, lambda p, q: jnp.exp(q) @ ODD),
    "log q where restricted": (
        lambda P, Q: Q.restrict(IS_ODD).normalize().log_density(2 * (Y // 2) % (V - 1) + 1),
        lambda p, q: at(restricted(q), 2 * (Y // 2) % (V - 1) + 1),
    ),
    "cross-entropy where restricted": (
        lambda P, Q: mx.cross_entropy(P.restrict(IS_ODD).normalize(), Q),
        lambda p, q: -total(jnp.where(ODD, jnp.exp(restricted(p)) * q, 0)),
    ),
    "KL where restricted": (
        lambda P, Q: mx.kl_divergence(Q.restrict(IS_ODD).normalize(), Q),
        lambda p, q: -jnp.log(jnp.exp(q) @ ODD),
    ),
    "entropy where restricted": (
        lambda P, Q: mx.entropy(Q.restrict(IS_ODD).normalize()),
        lambda p, q: -total(jnp.where(ODD, jnp.exp(restricted(q)) * jnp.where(ODD, restricted(q), 0), 0)),
    ),
}
WEIGHTED = lambda value: jnp.sum(COTANGENTS * value)
SMOOTH = ("h", "w", "g", "u")  # a bias of −inf has no neighbour


def ours(name):
    return lambda arrays: WEIGHTED(ASKED[name][0](*families(**{**ARRAYS, **arrays})))


def exact(name):
    return lambda arrays: WEIGHTED(ASKED[name][1](*logarithms(**{**ARRAYS, **arrays})))


def along(arrays):
    return jax.tree.map(jnp.cos, arrays)


MODES = {
    "reverse": lambda f: jax.value_and_grad(f),
    "forward": lambda f: lambda x: jax.jvp(f, (x,), (along(x),)),
    "forward over reverse": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (along(x),)),
    "vmap": lambda f: jax.vmap(lambda x: jax.grad(f)(x)),
}


@pytest.mark.long
@sweep("mode", MODES, 0.5)
@sweep("name", ASKED, 0.25)
def test_the_textbooks_numbers(name, mode):
    if name in ("Rényi at ∞", "Rényi's entropy") and mode == "forward over reverse":
        pytest.skip("several integrals and a maximum, that take minutes to compile")
    arrays = {key: ARRAYS[key] for key in SMOOTH}
    if mode == "vmap":
        arrays = {key: np.stack([x, 0.5 * x]) for key, x in arrays.items()}
    got = jax.jit(MODES[mode](ours(name)))(arrays)
    with jax.enable_x64():
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), arrays)
        expected = MODES[mode](exact(name))(wide)
    for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        # Sums of 13 terms of float32, through a curvature where there are two derivatives.
        np.testing.assert_allclose(a, e, rtol=2e-4, atol=5e-5 * max(1.0, np.abs(e).max()))


@pytest.mark.long
@sweep("kind", ["bfloat16", "float64", "kept"], 0.5)
@sweep("name", ASKED, 0.25)
def test_dtypes_and_kept_exponentials(name, kind):
    """Half precision is rounded once, where it comes in and in the gradients; what is kept changes nothing."""
    options = {"residual_bytes": 1 << 20} if kind == "kept" else {}
    with jax.enable_x64(kind == "float64"):
        arrays = {key: jnp.asarray(x, "float32" if kind == "kept" else kind) for key, x in ARRAYS.items()}
        of = lambda moving: ASKED[name][0](*families(**{**arrays, **moving}, **options))
        moving = {key: arrays[key] for key in SMOOTH}
        values, pullback = jax.vjp(jax.jit(of), moving)
        (gradients,) = pullback(jnp.asarray(COTANGENTS, values.dtype))
    assert values.dtype == ("float64" if kind == "float64" else "float32")
    with jax.enable_x64():
        wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), arrays)
        expected = lambda moving: ASKED[name][1](*logarithms(**{**wide, **moving}))
        exact_values, pullback = jax.vjp(expected, {key: wide[key] for key in SMOOTH})
        (exact_gradients,) = pullback(jnp.asarray(COTANGENTS, jnp.float64))
    # Of χ² and its like the largest value, to which others are a rounding.
    np.testing.assert_allclose(
        values, exact_values, 0, (1e-13 if kind == "float64" else 3e-6) * np.max(np.abs(exact_values))
    )
    for key, exact_gradient in exact_gradients.items():
        assert gradients[key].dtype == arrays[key].dtype
        within = {"bfloat16": 2**-7, "float64": 1e-13, "kept": 2e-5}[kind] * np.abs(exact_gradient).max()
        np.testing.assert_allclose(np.asarray(gradients[key], np.float64), exact_gradient, 0, max(within, 1e-30))


@pytest.mark.long
@sweep("kind", ["alone", AxisType.Auto, AxisType.Explicit], 0.5)
@sweep("classes", ["whole", "spread"])
def test_heaviest_classes(kind, classes):
    """The first of equal ones, masses and their gradient; the nucleus, cut at k; of logits and of a head."""
    h, w = rng.normal(size=(8, D)).astype(np.float32), rng.normal(size=(D, 24)).astype(np.float32)
    h[0] = 0  # all classes are equal
    with jax.enable_x64():
        q = np.asarray(jax.nn.softmax(np.float64(h) @ np.float64(w)))
    order = np.argsort(-q, axis=-1, kind="stable")[:, :5]
    order[0] = range(5)
    masses = np.take_along_axis(q, order, -1)
    inside = np.cumsum(masses, -1) - masses < 0.6
    if kind != "alone":
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
        specs = S("data"), S(None, "model" if classes == "spread" else None)
        h, w = (jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip((h, w), specs, strict=True))
    head = lambda h, w: mx.LinearSoftmax(w, batch_size=3)(h)
    for of in (head, lambda h, w: mx.Categorical(h @ w)) if kind == "alone" else (head,):
        top, nucleus = jax.jit(lambda h, w, of=of: (mx.top_k(of(h, w), 5), mx.top_p(of(h, w), 0.6, 5)))(h, w)
        np.testing.assert_array_equal(top.indices, order)
        np.testing.assert_allclose(top.weights, masses, rtol=1e-5)
        np.testing.assert_array_equal(nucleus.indices, np.where(inside, order, -1))
        np.testing.assert_allclose(nucleus.weights, np.where(inside, masses, 0), rtol=1e-5)
        got = jax.jit(jax.grad(lambda w, of=of: jnp.sum(jnp.sin(mx.top_k(of(h, w), 5).weights))))(w)
        dense = lambda w: jnp.sum(jnp.sin(jnp.take_along_axis(jax.nn.softmax(np.asarray(h) @ w), order, -1)))
        np.testing.assert_allclose(got, jax.grad(dense)(np.asarray(w)), rtol=1e-4, atol=1e-6)


def test_what_has_no_heaviest_classes():
    _, Q = families(**ARRAYS)
    for k in (0, V + 1):
        with pytest.raises(ValueError, match=f"from 1 to the number of classes, {V}, got {k}"):
            mx.top_k(Q, k)
    with pytest.raises(TypeError, match="whole number, got"):
        mx.top_k(Q, 1.5)
    with pytest.raises(NotImplementedError, match="Categorical, or of a head"):
        mx.top_k(mx.Normal(), 2)


def test_candidates_of_what_is_restricted():
    """In front axes, in and out of the set."""
    _, Q = families(**ARRAYS)
    y = np.stack([Y, (Y + 1) % V, np.full(N, V)])
    got = Q.restrict(IS_ODD).normalize().log_density(y)
    _, log_q = logarithms(**{key: np.float64(x) for key, x in ARRAYS.items()})
    full = np.full((N, V + 1), -np.inf)
    full[:, ALLOWED] = restricted(log_q)
    np.testing.assert_allclose(got, np.take_along_axis(full, y.T, -1).T, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_near_equality():
    """Of rows that differ by 1e-4 a divergence is some 1e-9, with its digits."""
    arrays = {**ARRAYS, "g": ARRAYS["h"] * np.float32(1 + 1e-4), "u": ARRAYS["w"].T}
    with jax.enable_x64():
        wide = {key: jnp.asarray(x, jnp.float64) for key, x in arrays.items()}
        p, q = logarithms(**wide)
        exact = mean_log_ratio((p, q), (0.5, 0.5))
    # float32 logits round by some 1e-7 of themselves, where they differ by 1e-4: 1e-3 a class, twice that of a square.
    np.testing.assert_allclose(jax.jit(lambda x: mx.jensen_shannon(*families(**x)))(arrays), exact, rtol=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("name", ["Jensen–Shannon", "log q where restricted"])
def test_rows_without_a_cotangent(name):
    """What is in them is in no gradient."""
    some = np.arange(N) != 2
    loss = lambda x: jnp.sum(jnp.where(some, ASKED[name][0](*families(**{**ARRAYS, **x})), 0))
    arrays = {key: ARRAYS[key] for key in SMOOTH}
    expected = jax.jit(jax.grad(loss))(arrays)
    bad = {key: np.where(some[:, None], x, np.nan) if key in "hg" else x for key, x in arrays.items()}
    got = jax.jit(jax.grad(loss))(bad)
    for key in SMOOTH:
        np.testing.assert_allclose(got[key], expected[key], rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_what_a_lambda_of_points_asks():
    """One h at a time, under vmap."""
    Q, T = (mx.LinearSoftmax(ARRAYS["w"], batch_size=3), mx.LinearSoftmax(ARRAYS["u"], class_axis=0, batch_size=3))
    h, g = ARRAYS["h"], ARRAYS["g"]
    each = mx.jensen_shannon(T(g), Q(h))
    mean = mx.Empirical((h, g)).normalize().expect(lambda h, g: mx.jensen_shannon(T(g), Q(h)))
    np.testing.assert_allclose(mean, each.mean(), rtol=1e-6)


@pytest.mark.long
@sweep("name", ["Jensen–Shannon", "a table", "entropy where restricted", "log q where restricted", "of a few classes"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_on_a_mesh(kind, name):
    """Rows and classes over devices."""
    rows, classes = 8, 16
    arrays = {
        "h": f32(rng.normal(size=(rows, D))),
        "w": f32(rng.normal(size=(D, classes))),
        "g": f32(rng.normal(size=(rows, D))),
        "u": f32(rng.normal(size=(D, classes))),
    }
    top, y = np.resize(TOP, (rows, 3)), np.resize(2 * (Y // 2) + 1, rows)
    asked = {
        "of a few classes": lambda P, Q: mx.jensen_shannon(mx.Discrete(top, jnp.full((rows, 3), 1 / 3)), Q),
        "log q where restricted": lambda P, Q: Q.restrict(IS_ODD).normalize().log_density(y),
        "a table": lambda P, Q: Q.expect(lambda y: jnp.sin(1.0 * y)),
    }
    function = asked.get(name, ASKED[name][0])
    cotangents = jnp.cos(jnp.arange(1.0 * rows))

    def loss(x):
        P, Q = (mx.LinearSoftmax(x[w], batch_size=3)(x[h]) for h, w in ("gu", "hw"))
        return jnp.sum(cotangents * function(P, Q))

    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    spec = lambda key: S("data", None) if key in "hg" else S(None, "model")
    placed = {key: jax.device_put(x, NamedSharding(mesh, spec(key))) for key, x in arrays.items()}
    got, expected = (jax.jit(jax.value_and_grad(loss))(x) for x in (placed, arrays))
    for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_parts_of_the_classes_tell_a_few_numbers_a_row(kind):
    """Devices that have a part of the classes each, of both heads: no logits travel."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    rows, classes = S("data", None), S(None, "model")
    shapes = [((8, D), rows), ((D, 512), classes)] * 2
    arrays = [jax.ShapeDtypeStruct(x, jnp.float32, sharding=NamedSharding(mesh, spec)) for x, spec in shapes]
    divergence = lambda h, w, g, u: mx.jensen_shannon(mx.LinearSoftmax(u)(g), mx.LinearSoftmax(w)(h)).sum()
    text = jax.jit(jax.value_and_grad(divergence, (0, 1, 2, 3))).lower(*arrays).compile().as_text()
    shape = r"\w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)"
    sizes = [np.prod([int(n) for n in found.split(",") if n]) for found in re.findall(shape, str(text))]
    assert sizes
    of_weights = D * 512 // 4  # over the rows' axis a part of the gradient in a weight adds up
    assert max(n for n in sizes if n != of_weights) <= 8 * D


@sweep("rank", [0, 1, 2])
@sweep("options", [{}, {"method": mx.Quadrature(8)}, {"batch_size": 2}], ids=["", "method", "batches"])
def test_ranks_and_methods(rank, options):
    """Of families with any number of axes, however they are to be integrated."""
    hidden = f32(rng.normal(size=(2, 3, D)))[(0,) * (2 - rank)]
    heads = [mx.LinearSoftmax(w, batch_size=2)(hidden) for w in (ARRAYS["w"], ARRAYS["w"][:, ::-1])]
    dense = [mx.Categorical(Q.logits) for Q in heads]
    asked = [lambda P, Q: (P + Q).expect(lambda y: 1.0 * y, **options)]
    if "batch_size" not in options:
        asked += [lambda P, Q: mx.jensen_shannon(P, Q, **options), lambda P, Q: mx.kl_divergence(P, Q, **options)]
    for function in asked:
        np.testing.assert_allclose(function(*heads), function(*dense), rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_where_all_logits_would_be():
    """What cannot be made in blocks is an error for who wants one, and nothing else is."""
    head = mx.LinearSoftmax(ARRAYS["w"], batch_size=3, allow_dense=False)
    Q = head(ARRAYS["h"])
    known = mx.LinearSoftmax(ARRAYS["w"], batch_size=3)(ARRAYS["h"])
    blocks = [
        lambda Q: Q.log_density(Y),
        lambda Q: Q.restrict(IS_ODD).normalize().log_density(2 * (Y // 2) + 1),
        lambda Q: Q.reweight(lambda y: jnp.asarray(TABLE)[y] ** 2).mass,
        lambda Q: mx.entropy(Q),
    ]
    values = jax.jit(lambda Q: [function(Q) for function in blocks])
    jax.tree.map(np.testing.assert_array_equal, values(Q), values(known))
    scale = Holder(2.0)
    taken = [
        lambda Q: Q.logits,
        lambda Q: Q.expect(lambda y: scale.x * y),
        lambda Q: Q.scaled_density(jnp.asarray(Y)),
        lambda Q: mx.cross_entropy(mx.Dirac(jnp.asarray([Y, Y])), Q),
    ]
    for function in taken:
        with pytest.raises(ValueError, match=r"allow_dense=False\): .* all logits at once, of shape \(7, 13\)"):
            jax.jit(lambda function=function: function(Q))()
    with pytest.raises(ValueError, match=r"allow_dense\): True or False, got 1"):
        mx.LinearSoftmax(ARRAYS["w"], allow_dense=1)


class Holder:
    """An object that nobody can tell what is read of."""

    def __init__(self, x):
        self.x = x


UNIFORM = mx.DiscreteUniform(V)
ROWS = f32(rng.normal(size=N))
OF_ARRAYS = {  # functions of a family and of an array [V] that is closed over
    "a jitted function": lambda Q, t: Q.expect(jax.jit(lambda y: t[y])),
    "an object": lambda Q, t: (lambda o: Q.expect(lambda y: o.x[y]))(Holder(t)),
    "a density": lambda Q, t: Q.reweight(jax.jit(lambda y: jnp.exp(t[y]))).mass,
    "a value for each member": lambda Q, t: Q.reweight(lambda y: ROWS**2 * jnp.exp(t[y])).mass,
    "a set for each member": lambda Q, t: Q.restrict(lambda y: Q.log_density(y) > -2.5).mass * t.sum(),
    "a probability": lambda Q, t: Q.expect(lambda y: y == 3) * t.sum(),
    "an f": lambda Q, t: (lambda o: mx.f_divergence(Q, UNIFORM, lambda r: (r - 1) ** 2 / (o.x[0] ** 2 + r), slope=1.0))(
        Holder(t)
    ),
}


@pytest.mark.long
@sweep("name", OF_ARRAYS)
def test_what_functions_close_over(name):
    """Whatever cannot be taken a block at a time is what it is of the dense family, and has its derivatives."""
    function = OF_ARRAYS[name]
    families = mx.LinearSoftmax(ARRAYS["w"], batch_size=3), lambda h: mx.Categorical(h @ ARRAYS["w"])
    of = lambda Q: jax.value_and_grad(lambda h, t: WEIGHTED(function(Q(h), t)), (0, 1))
    got, expected = (of(Q)(ARRAYS["h"], jnp.asarray(TABLE)) for Q in families)
    for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
