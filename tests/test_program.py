"""Outside of jit: calls that are alike are one program, and what has changed since is seen."""

import contextlib
import dataclasses
import functools
import gc
import sys
import threading
import types
import weakref

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx
from measure_xent import _program

SCALE = 2.0
TABLE = jnp.array([1.0, 2.0, 3.0])
DIE = mx.DiscreteUniform(3)
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if event.endswith("backend_compile_duration") else None
)


@contextlib.contextmanager
def compiles(at_most):
    before = len(COMPILED)
    yield
    assert len(COMPILED) - before <= at_most


def test_a_function_made_anew_is_the_same():
    def mean(i):
        a = jnp.arange(4.0) + i
        step = functools.partial(jnp.multiply, a[0])
        return mx.Normal(0.0, 1.0).expect(lambda x, b=a[1]: jnp.cos(step(x)) + b + a[2] * jax.vmap(lambda x: x)(a)[3])

    values = [mean(0)]
    with compiles(at_most=6):  # of a's own operations
        values += [mean(i) for i in range(1, 4)]
    want = [np.exp(-(i**2) / 2) + (i + 1) + (i + 2) * (i + 3) for i in range(4)]
    np.testing.assert_allclose(values, want, rtol=1e-4)


@pytest.mark.sweep(0.5)
@pytest.mark.parametrize(
    "value",
    [
        lambda m: mx.cross_entropy(mx.Dirac(1), mx.Categorical(m * TABLE)),
        lambda m: mx.losses.softmax_cross_entropy_with_integer_labels(m * TABLE, 1),
        lambda m: mx.kl_divergence(mx.Normal(m, 1.0), mx.Normal(0.0, 1.0)),
        lambda m: (m * mx.Dirac(1) + 2 * m * DIE).expect(lambda k: k),
        lambda m: mx.jensen_shannon(mx.Categorical(m * TABLE), DIE),
        lambda m: mx.renyi_divergence(mx.Categorical(TABLE), DIE, m),
        lambda m: mx.log(mx.Categorical(m * TABLE))(1),
        lambda m: mx.Categorical(m * TABLE).mode,
        lambda m: mx.truncate(mx.Normal(m, 1.0), 0.0, 1.0).expect(lambda x: x),
    ],
    ids=["rows", "losses", "laws", "scaled", "jensen shannon", "renyi", "log", "mode", "truncated"],
)
def test_numbers_are_operands(value):
    jax.tree.map(np.asarray, [value(0.25), value(0.75)])
    with compiles(at_most=0):
        again = value(0.5)
    np.testing.assert_allclose(again, jax.jit(value, static_argnums=0)(0.5), rtol=1e-5)


@pytest.mark.slow("a program for each of many functions")
def test_gradients_are_met_again():
    gradient = lambda m: jax.grad(lambda s: mx.Normal(0.0, 1.0).expect(lambda x: jnp.cos(s * x)))(m)
    hessian = lambda m: jax.hessian(lambda s: mx.Normal(0.0, 1.0).expect(lambda x: jnp.cos(s * x)))(m)
    each = lambda m: jax.vmap(lambda s: mx.Normal(0.0, 1.0).expect(lambda x: jnp.cos(s * x)))(m + jnp.arange(2.0))
    for value, want in (
        (gradient, lambda m: -m * np.exp(-(m**2) / 2)),
        (hessian, lambda m: (m**2 - 1) * np.exp(-(m**2) / 2)),
        (each, lambda m: np.exp(-((m + np.arange(2.0)) ** 2) / 2)),
    ):
        value(0.5)
        with compiles(at_most=2):
            np.testing.assert_allclose(value(1.5), want(1.5), atol=1e-5)


class Scale:
    """No pytree: its field may change."""

    def __init__(self, by):
        self.by = by

    def __call__(self, x):
        return self.by * x


@mx.pytree
class Scaled(mx.Integrand):
    by: float

    def __call__(self, x):
        return Step.size * SCALE * self.by * x


class Step:
    size = 1.0


@dataclasses.dataclass(frozen=True)
class Frozen:
    by: float


def test_what_has_changed_is_seen(monkeypatch):
    settings = types.ModuleType("settings")
    monkeypatch.setitem(sys.modules, "settings", settings)
    here = sys.modules[__name__]
    array, number, held, scale = jnp.array(1.0), 1.0, [1.0, jnp.array(1.0)], Scale(1.0)
    table, inner = {"a": np.array([1.0])}, lambda x: number * x
    settings.by, settings.table = 1.0, jnp.array(1.0)
    settings.function = lambda x: settings.by * x
    functions = {
        "closed-over array": lambda k: array * k,
        "closed-over number": lambda k: number * k,
        "closed-over list": lambda k: held[0] * k,
        "array of a list": lambda k: held[1] * k,
        "array of NumPy": lambda k: table["a"][0] * k,
        "function of a function": lambda k: inner(k),
        "global number": lambda k: SCALE * k / 2,
        "global array": lambda k: TABLE[0] * k,
        "global function": lambda k: helper(k),
        "mutable object": scale,
        "its method": scale.__call__,
        "object's field": lambda k: scale.by * k,
        "module's number": lambda k: settings.by * k,
        "module's array": lambda k: settings.table * k,
        "module's function": lambda k: settings.function(k),
        "class of the user's": Scaled(0.5),
        "class's field": lambda k: Step.size * k,
        "frozen": lambda k: Frozen(number).by * k,
        "jitted": jax.jit(lambda k: array * k),
    }
    mean = lambda f: DIE.expect(f).item()
    assert {name: mean(f) for name, f in functions.items()} == dict.fromkeys(functions, 1.0)
    array, number, held, scale.by = jnp.array(3.0), 3.0, [3.0, jnp.array(3.0)], 3.0
    table["a"][0], settings.by, settings.table = 3.0, 3.0, jnp.array(3.0)
    monkeypatch.setattr(here, "SCALE", 6.0)
    monkeypatch.setattr(here, "TABLE", jnp.array([3.0]))
    monkeypatch.setattr(here, "helper", lambda k: 3 * k)
    monkeypatch.setattr(Step, "size", 3.0)
    functions["class of the user's"] = Scaled(1 / 6)  # 3 · 6 / 6
    functions["jitted"] = jax.jit(lambda k: array * k)  # JAX compiles a function once, as it was
    changed = {name: mean(f) for name, f in functions.items()}
    assert changed == pytest.approx(dict.fromkeys(functions, 3.0))


def helper(k):
    return SCALE * k / 2


class Table:
    array = jnp.array(1.0)


def wrapped(f):
    @functools.wraps(f)
    def g(x):
        return SCALE * f(x) / 2

    return g


def test_what_is_seldom_looked_at_is_seen(monkeypatch):
    """Class attributes of any kind, wrappers of others' functions, imports, attributes of functions, rules of derivatives."""
    other = types.ModuleType("other")
    other.by = 1.0
    monkeypatch.setitem(sys.modules, "other", other)

    def imports(k):
        from other import by

        return by * k

    def attribute(k):
        return attribute.by * k

    attribute.by = 1.0
    like = wrapped(jnp.abs)
    functions = {
        "class's array": lambda k: Table.array * k,
        "wrapper": lambda k: like(k),
        "import inside": imports,
        "attribute of a function": attribute,
        "by name": lambda k: globals()["SCALE"] * k / 2,
    }
    mean = lambda f: DIE.expect(f).item()
    assert {name: mean(f) for name, f in functions.items()} == dict.fromkeys(functions, 1.0)
    monkeypatch.setattr(Table, "array", jnp.array(3.0))
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 6.0)
    other.by = attribute.by = 3.0
    assert {name: mean(f) for name, f in functions.items()} == dict.fromkeys(functions, 3.0)

    cube = jax.custom_jvp(lambda x: x**3)
    cube.defjvp(lambda primals, tangents: (cube(*primals), SCALE * tangents[0]))
    slope = lambda: jax.grad(lambda a: DIE.expect(lambda k: cube(a * k)))(1.0)
    assert slope() == 6
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 2.0)
    assert slope() == 2


def test_what_a_function_holds_is_what_it_was():
    """A dict keeps its order, NumPy's arrays their arithmetic and their type, anything its operations."""
    ordered, keys = {"b": jnp.array(1.0), "a": jnp.array(3.0)}, {1: 1.0, "a": jnp.array(1.0), None: 2}
    near, wide, one = np.array(1e9), np.array(100_000), np.int64(1)
    masked = np.ma.array([1.0, 2.0], mask=[False, True])
    for f, value in (
        (lambda k: next(iter(ordered.values())) * k, 1),
        (lambda k: keys["a"] * k, 1),
        (lambda k: ((near + 1) - near) * k, 1),
        (lambda k: (wide * wide / 1e10) * k, 1),
        (lambda k: masked.sum() * k, 1),
        (lambda k: {1: 2.0}[one] * jnp.eye(one)[0, 0] * k, 2),
        (lambda k: k * (2 if isinstance(near, np.ndarray) else 1), 2),
    ):
        for _ in range(2):
            np.testing.assert_allclose(DIE.expect(f), value, rtol=1e-6)
            np.testing.assert_allclose(jax.jit(lambda f=f: DIE.expect(f))(), value, rtol=1e-6)


def test_a_new_rule_is_seen(monkeypatch):
    class Counted(mx.Measure):
        shape = ()

        def forms(self):
            return mx.DiscreteUniform(3).forms()

    P, f = mx.pytree(Counted)(), Scaled(0.5)
    assert P.expect(f) == 1

    @mx.rule(Counted, Scaled)
    def known(P, f):
        return SCALE

    assert P.expect(f) == 2
    monkeypatch.setattr(sys.modules[__name__], "SCALE", 5.0)
    assert P.expect(f) == 5


def test_a_model_of_the_users_is_met_again():
    """Their frozen dataclasses are operands, whatever they hold."""
    P = mx.Empirical((jnp.arange(3.0), jnp.array([0, 1, 1])))
    loss = lambda by: mx.cross_entropy(P, mx.Conditional(lambda x: mx.Categorical(Scaled(by)(x) * jnp.arange(2.0))))
    for value in (lambda by: DIE.expect(Scaled(by)), loss):
        np.asarray(value(jnp.array(0.25)))
        with compiles(at_most=0):
            got = value(jnp.array(0.5))
        np.testing.assert_allclose(got, jax.jit(value)(0.5), rtol=1e-6)


def test_a_default_that_has_changed_is_seen():
    def f(k, *, by=1.0):
        return by * k

    assert DIE.expect(f) == 1
    f.__kwdefaults__["by"] = 3.0
    assert DIE.expect(f) == 3


def test_a_function_may_ask_for_the_value_of_an_array():
    def f(k):
        return k * (2 if TABLE[0] > 0 else 1) * len(range(int(n))) * np.asarray(n)

    for n in (jnp.array(2), jnp.array(3)):
        for _ in range(2):
            assert DIE.expect(f) == 2 * n * n
    assert mx.Normal(0.0, 1.0).expect(lambda x: x**2 if n else x) == pytest.approx(1, abs=1e-4)


def test_what_a_function_leaves_behind_is_there():
    seen = []
    DIE.expect(lambda k: seen.append(k) or k)
    assert seen


def test_a_function_that_calls_itself():
    def power(x, n):
        return x * power(x, n - 1) if n else jnp.ones_like(x)

    assert DIE.expect(lambda k: power(k, 2)) == pytest.approx(5 / 3)
    assert DIE.expect(lambda k: power(k, 3)) == 3


def test_one_model_stays_one():
    """A dict of functions of one Q is integrated in one pass over the logits, as under jit."""
    x, y = jnp.arange(12.0).reshape(4, 3), jnp.array([0, 1, 2, 0])

    def figures(x, y):
        Q = mx.Conditional(mx.Categorical)
        return mx.Empirical((x, y)).expect({"loss": -mx.log(Q), "hit": mx.correct(Q)})

    eager, compiled = figures(x, y), jax.jit(figures)(x, y)
    assert jax.tree.map(float, eager) == jax.tree.map(float, compiled)


def test_errors_are_those_of_a_trace(monkeypatch):
    monkeypatch.setattr(_program, "_REFUSED", {})
    with pytest.raises(ValueError, match="broadcast"):
        mx.cross_entropy(mx.Dirac(jnp.zeros(3, int)), mx.Categorical(jnp.zeros((2, 5))))
    with pytest.raises(ZeroDivisionError):
        DIE.expect(lambda k: k * (1 // 0))
    assert DIE.expect(lambda k: k) == 1  # and nothing is left behind
    loss = lambda z: mx.cross_entropy(mx.Dirac(jnp.zeros(3, int)), mx.Categorical(z))
    logits = [jnp.arange(15.0).reshape(3, 5), jnp.ones((3, 5))]
    loss(logits[0])
    with compiles(at_most=0):
        loss(logits[1])
    with pytest.raises(TypeError, match="integers"):
        mx.cross_entropy(mx.Dirac(jnp.zeros(3)), mx.Categorical(logits[0]))
    assert len(_program._REFUSED) == 3  # what raised, and not what was right
    loss(logits[0])
    assert len(_program._REFUSED) == 3


@pytest.mark.slow("compiles each call twice")
def test_in_threads():
    values = {}

    def run(i):
        values[i] = mx.Normal(0.0, 1.0).expect(lambda x: x**2 + i).item()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert values == pytest.approx({i: 1 + i for i in range(4)}, abs=1e-3)


def test_inside_of_jit_there_is_no_program_of_its_own():
    """The line compiles to what it is, without a call in between."""
    jaxpr = jax.make_jaxpr(lambda z: mx.cross_entropy(mx.Dirac(1), mx.Categorical(z)))(jnp.zeros(5))
    assert not any(eqn.params.get("name") == "call" for eqn in jaxpr.eqns)


@pytest.mark.long
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers have no such option")
def test_what_is_small_is_compiled_quickly(monkeypatch):
    monkeypatch.setattr(_program, "_SMALL", {})
    loss = lambda rows: mx.cross_entropy(mx.Dirac(jnp.zeros(rows, int)), mx.Categorical(jnp.zeros((rows, 10))))
    for rows in (1000, 3000, 1000):
        np.testing.assert_allclose(loss(rows), np.log(10), rtol=1e-6)
    assert [*_program._SMALL.values()] == [True, False]
    # Not with a derivative or in a program, whose compiler's options are its own.
    np.testing.assert_allclose(
        jax.jit(lambda c: c * mx.Normal(0.0, 1.0).expect(jnp.cos))(2.0), 2 * np.exp(-0.5), rtol=1e-5
    )
    along = jax.linearize(lambda m: mx.Normal(m, 1.0).expect(jnp.sin), 0.0)[1]
    np.testing.assert_allclose(jax.jit(along)(1.0), np.exp(-0.5), rtol=1e-5)
    assert len(_program._SMALL) == 2


def test_a_program_keeps_no_array():
    data = jnp.arange(5.0)
    held = weakref.ref(data)
    DIE.expect(lambda k: data[k])
    del data
    gc.collect()
    assert held() is None
