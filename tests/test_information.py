"""Functionals of joint measures against sums by hand in float64, dit, and their own laws."""

import itertools

import dit
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx

rng = np.random.default_rng(6)
SIZES = (2, 3, 2)
POINTS = np.indices(SIZES).reshape(3, -1)
AXES = {"x": (0,), "y": (1,), "z": (2,), "xy": (0, 1), "xz": (0, 2), "yz": (1, 2), "xyz": (0, 1, 2)}


def random_joints(n):
    """Probabilities of (x, y, z), half of them with a third of the entries 0."""
    p = rng.dirichlet(np.full(POINTS.shape[1], 0.4), size=n) + 1e-9
    p[: n // 2] *= rng.uniform(size=p[: n // 2].shape) > 0.35
    return p / p.sum(-1, keepdims=True)


def entropies(p):
    """H of every set of coordinates, in bits."""
    p = p.reshape(-1, *SIZES)
    others = lambda axes: tuple(i + 1 for i in range(3) if i not in axes)
    sums = {name: p.sum(others(axes)).reshape(len(p), -1) for name, axes in AXES.items()}
    return {name: -np.where(q > 0, q * np.log2(np.where(q > 0, q, 1)), 0).sum(-1) for name, q in sums.items()}


def figures(weights):
    P = mx.Atoms(tuple(jnp.asarray(POINTS)), weights=weights).normalize()
    return {
        "entropy": mx.entropy(P, base=2),
        "mutual": mx.mutual_information(P, base=2),
        "with two": mx.mutual_information(P, X=0, Y=(1, 2), base=2),
        "pointwise": P.expect(lambda x, y, z: mx.pointwise_mutual_information(P, base=2)(x, y)),
        "conditional": mx.conditional_entropy(P, X=(0, 1), Y=2, base=2),
        "conditional mutual": mx.conditional_mutual_information(P, base=2),
        "total correlation": mx.total_correlation(P, base=2),
        "interaction": mx.interaction_information(P, base=2),
        "perplexity": mx.perplexity(P),
    }


def by_hand(p):
    h = entropies(p)
    return {
        "entropy": h["xyz"],
        "mutual": h["x"] + h["y"] - h["xy"],
        "with two": h["x"] + h["yz"] - h["xyz"],
        "pointwise": h["x"] + h["y"] - h["xy"],
        "conditional": h["xyz"] - h["xy"],
        "conditional mutual": h["xz"] + h["yz"] - h["xyz"] - h["z"],
        "total correlation": h["x"] + h["y"] + h["z"] - h["xyz"],
        "interaction": h["xy"] + h["xz"] + h["yz"] - h["xyz"] - h["x"] - h["y"] - h["z"],
        "perplexity": 2 ** h["xyz"],
    }


@pytest.mark.slow("iterated integrals")
@pytest.mark.parametrize("x64", [True, False])
def test_thousands_of_joints(x64):
    p = random_joints(3000)
    with jax.enable_x64(x64):
        got = jax.jit(jax.vmap(figures))(jnp.asarray(p, float))
    for name, expected in by_hand(p).items():
        # In float32 a difference of entropies of up to 3.6 bits, each good to some ulp of 2.4e-7.
        np.testing.assert_allclose(
            got[name], expected, rtol=1e-9 if x64 else 1e-5, atol=1e-9 if x64 else 4e-6, err_msg=name
        )


@pytest.mark.slow("iterated integrals")
def test_dit():
    """The same, of dit, which has it by the coordinates' names."""
    p = random_joints(20)
    outcomes = ["".join(map(str, point)) for point in POINTS.T]
    with jax.enable_x64(True):
        got = jax.jit(jax.vmap(figures))(jnp.asarray(p))
    for i, row in enumerate(p):
        d = dit.Distribution(outcomes, row)
        expected = {
            "entropy": dit.shannon.entropy(d),
            "mutual": dit.shannon.mutual_information(d, [0], [1]),
            "conditional": dit.shannon.conditional_entropy(d, [2], [0, 1]),
            "conditional mutual": dit.multivariate.coinformation(d, [[0], [1]], [2]),
            "total correlation": dit.multivariate.total_correlation(d),
            "interaction": dit.multivariate.interaction_information(d),
            "perplexity": dit.other.perplexity(d),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(got[name][i], value, atol=1e-8, err_msg=name)


@pytest.mark.slow("iterated integrals")
def test_with_a_conditional():
    """I and H of P ⊗ K by K: on classes against the joint's table, of normal noise in closed form; gradients too."""
    px, table = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(5), size=4)
    table[1] = [0, 0, 1, 0, 0]
    joint = px[:, None] * table
    entropy = lambda p: -np.sum(p[p > 0] * np.log(p[p > 0]))
    with jax.enable_x64(True):
        P, K = (
            mx.Categorical(probs=jnp.asarray(px)),
            mx.Conditional(lambda x: mx.Categorical(probs=jnp.asarray(table)[x])),
        )
        np.testing.assert_allclose(mx.conditional_entropy(P, K), entropy(joint) - entropy(px), rtol=1e-9)
        np.testing.assert_allclose(mx.conditional_entropy(mx.joint(P, K)), entropy(joint) - entropy(px), rtol=1e-9)
        information = entropy(px) + entropy(joint.sum(0)) - entropy(joint)
        np.testing.assert_allclose(mx.mutual_information(P, K), information, rtol=1e-9)
        np.testing.assert_allclose(mx.mutual_information(mx.joint(P, K)), information, rtol=1e-9)

        nodes, weights = np.polynomial.hermite_e.hermegauss(24)
        P = mx.Atoms(jnp.asarray(1.5 * nodes), weights=jnp.asarray(weights)).normalize()

        def of_noise(scale):
            return mx.mutual_information(P, mx.Conditional(jax.tree_util.Partial(mx.Normal, scale=scale)))

        value, slope = jax.jit(jax.value_and_grad(of_noise))(0.7)
        np.testing.assert_allclose(value, 0.5 * np.log(1 + 1.5**2 / 0.49), rtol=1e-6)
        np.testing.assert_allclose(slope, -(1.5**2) / 0.7 / (1.5**2 + 0.49), rtol=1e-5)
        of_vectors = mx.mutual_information(
            mx.MultivariateNormal(jnp.zeros(1), 2.25 * jnp.eye(1)),
            mx.LinearNormal(jnp.eye(1), covariance_matrix=0.49 * jnp.eye(1)),
        )
        np.testing.assert_allclose(of_vectors, value, rtol=1e-6)
        noise = mx.Conditional(lambda x: mx.MultivariateNormal(x, jnp.eye(2)))
        with pytest.raises(NotImplementedError, match="LinearNormal"):
            mx.mutual_information(mx.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), noise)
        of_a_bit = mx.mutual_information(mx.Normal(), mx.Conditional(lambda x: mx.Bernoulli(x)))
        p = 1 / (1 + np.exp(-nodes))
        entropy_given = (weights / weights.sum()) @ (-p * np.log(p) - (1 - p) * np.log1p(-p))
        np.testing.assert_allclose(of_a_bit, np.log(2) - entropy_given, rtol=1e-6)


@pytest.mark.slow("iterated integrals")
def test_chain_rules_and_products():
    """H(X, Y) = H(X) + H(Y | X); I is symmetric; of a product 0; of products of any spaces the entropies add."""
    p = random_joints(50)

    def gaps(weights):
        P = mx.Atoms(tuple(jnp.asarray(POINTS)), weights=weights).normalize()
        i, h = mx.mutual_information, mx.conditional_entropy
        return (
            mx.entropy(mx.marginal(P, 0, 1)) - mx.entropy(mx.marginal(P, 0)) - h(P),
            i(P, X=0, Y=1) - i(P, X=1, Y=0),
            i(P, X=0, Y=(1, 2)) - i(P, X=0, Y=2) - mx.conditional_mutual_information(P),
            i(P, X=0, Y=1) - mx.entropy(mx.marginal(P, 0)) + h(P, X=1, Y=0),
        )

    with jax.enable_x64(True):
        for gap in jax.jit(jax.vmap(gaps))(jnp.asarray(p)):
            np.testing.assert_allclose(gap, 0, atol=1e-9)
        P = mx.product(mx.Normal(0.0, 2.0), mx.Bernoulli(probs=0.3))
        np.testing.assert_allclose(mx.mutual_information(P), 0, atol=1e-9)
        np.testing.assert_allclose(mx.total_correlation(P), 0, atol=1e-9)
        np.testing.assert_allclose(mx.conditional_entropy(P, X=1, Y=0), 0.5 * np.log(2 * np.pi * np.e * 4), rtol=1e-7)


@pytest.mark.slow("derivatives of every functional")
def test_derivatives():
    """Of the mutual information in the joint's weights, p_i = 0 among them, in every mode: log p(x, y)/p(x)p(y) − I."""
    p = random_joints(2)[0].reshape(SIZES).sum(-1) + 0.0
    p[0, 1] = 0
    p /= p.sum()
    x, y = np.indices(p.shape).reshape(2, -1)
    with jax.enable_x64(True):
        of = lambda w: mx.mutual_information(mx.Atoms((x, y), weights=w).normalize())
        with np.errstate(divide="ignore"):
            pointwise = np.log(p / p.sum(1, keepdims=True) / p.sum(0)).ravel()
        information = np.sum(np.where(p.ravel() > 0, p.ravel() * pointwise, 0))
        expected = np.where(p.ravel() > 0, pointwise - information, 0)
        w = jnp.asarray(p.ravel())
        positive = p.ravel() > 0
        for mode in (jax.grad, jax.jacfwd, jax.jacrev):
            got = mode(of)(w)
            np.testing.assert_allclose(got[positive], expected[positive], rtol=1e-9)
            assert np.all(np.isfinite(got))
        np.testing.assert_allclose(jax.hessian(of)(w) @ w, -np.asarray(jax.grad(of)(w)), atol=1e-9)  # degree 0


def test_errors():
    P = mx.Empirical((jnp.arange(3), jnp.arange(3)))
    for call, words in (
        (lambda: mx.mutual_information(P, X=0, Y=2), "coordinates"),
        (lambda: mx.conditional_mutual_information(P), "coordinates"),
        (lambda: mx.entropy(P, base=1), "base"),
        (lambda: mx.entropy(P, base=-2), "base"),
        (lambda: mx.log(P, "2"), "base"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    for call, words in (
        (lambda: mx.mutual_information(jnp.ones((2, 2))), "P must be a Measure"),
        (lambda: mx.mutual_information(P, lambda x: x), "K must be a"),
        (lambda: mx.perplexity(P, jnp.ones(3)), "Q must be a"),
    ):
        with pytest.raises(TypeError, match=words):
            call()


@pytest.mark.slow("every functional")
def test_bases():
    P, Q = mx.Categorical(probs=jnp.array([0.5, 0.5, 0.0])), mx.Categorical(jnp.array([0.0, 1.0, 2.0]))
    for functional in (mx.cross_entropy, mx.kl_divergence, mx.jeffreys, mx.jensen_shannon):
        for a, b in itertools.product([P], [Q]):
            if functional is not mx.jeffreys:
                np.testing.assert_allclose(functional(a, b, base=2) * np.log(2), functional(a, b), rtol=1e-6)
    np.testing.assert_allclose(mx.renyi_entropy(Q, 2, base=2) * np.log(2), mx.renyi_entropy(Q, 2), rtol=1e-6)


@pytest.mark.slow("iterated integrals")
@pytest.mark.parametrize("shape", [(1000, 500), (2000, 2000)])
def test_of_large_tables(shape):
    """By tables of sums and by none of pairs of atoms: the program's memory is a few arrays of the table's size."""
    p = np.random.default_rng(1).dirichlet(np.ones(shape[0] * shape[1]))
    x, y = np.indices(shape).reshape(2, -1)
    program = jax.jit(lambda x, y, w: mx.mutual_information(mx.Atoms((x, y), weights=w).normalize()))
    arguments = jnp.asarray(x), jnp.asarray(y), jnp.asarray(p, jnp.float32)
    compiled = program.lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 120 * p.size
    table = p.reshape(shape)
    expected = np.sum(table * np.log(table / table.sum(1, keepdims=True) / table.sum(0)))
    np.testing.assert_allclose(compiled(*arguments), expected, rtol=2e-5)  # a sum of millions of float32 numbers


@pytest.mark.sweep(0.5)
@pytest.mark.parametrize(
    "kind", ["integers", "wide integers", "floats", "booleans", "vectors", "long vectors", "pairs"]
)
def test_atoms_among_many(kind):
    """The entropy of atoms that repeat, and its gradient in the weights, by NumPy's unique."""
    rng, k = np.random.default_rng(2), 300
    points = {
        "integers": lambda: rng.integers(-5, 9, k),
        "wide integers": lambda: rng.choice([-(2**31), 5, 2**31 - 1], k).astype(np.int32),
        "floats": lambda: rng.integers(-5, 5, k) / 2,
        "booleans": lambda: rng.integers(0, 2, k) == 1,
        "vectors": lambda: rng.integers(0, 3, (k, 3)),
        "long vectors": lambda: rng.integers(0, 2, (k, 9)),
        "pairs": lambda: (rng.integers(0, 5, k), rng.integers(0, 3, k) / 2),
    }[kind]()
    columns = [np.asarray(c).reshape(k, -1) for c in (points if isinstance(points, tuple) else (points,))]
    _, which = np.unique(np.concatenate(columns, axis=1), axis=0, return_inverse=True)
    w = rng.dirichlet(np.ones(k))
    mass = np.bincount(which.ravel(), w)[which.ravel()]
    of = lambda w: mx.entropy(mx.Atoms(jax.tree.map(jnp.asarray, points), weights=w))
    value, slope = jax.value_and_grad(of)(jnp.asarray(w, jnp.float32))
    np.testing.assert_allclose(value, -np.sum(w * np.log(mass)), rtol=1e-5)
    np.testing.assert_allclose(slope, -np.log(mass) - 1, rtol=1e-4)


@pytest.mark.slow("iterated integrals")
def test_of_vectors():
    """The entries of a vector are its coordinates: of normal vectors in closed form, of atoms as of tuples."""
    c = np.array([[1.0, 0.6, 0.2], [0.6, 1.0, 0.3], [0.2, 0.3, 1.0]])
    with jax.enable_x64(True):
        P = mx.MultivariateNormal(jnp.zeros(3), jnp.asarray(c))
        det = lambda *i: np.log(np.linalg.det(c[np.ix_(i, i)]))
        np.testing.assert_allclose(mx.mutual_information(P), -0.5 * np.log(1 - 0.36), rtol=1e-9)
        np.testing.assert_allclose(mx.mutual_information(P, X=(0, 2), Y=1), (det(0, 2) - det(0, 1, 2)) / 2, rtol=1e-9)
        np.testing.assert_allclose(mx.total_correlation(P), -det(0, 1, 2) / 2, rtol=1e-9)
        np.testing.assert_allclose(mx.conditional_entropy(P), (np.log(2 * np.pi * np.e) + det(0, 1)) / 2, rtol=1e-9)
        np.testing.assert_allclose(mx.mutual_information(mx.independent(mx.Normal(jnp.zeros(2), 1.0))), 0, atol=1e-12)
        assert mx.entropy(mx.marginal(P, 1)) == mx.entropy(mx.Normal(0.0, 1.0))
        np.testing.assert_allclose(mx.marginal(mx.Dirichlet(jnp.array([1.0, 2.0, 3.0])), 1).concentration0, 4)
        x = jnp.asarray(np.random.default_rng(3).integers(0, 2, (50, 2)))
        np.testing.assert_allclose(
            mx.mutual_information(mx.Empirical(x)), mx.mutual_information(mx.Empirical((x[:, 0], x[:, 1]))), rtol=1e-9
        )


@pytest.mark.slow("iterated integrals")
def test_of_densities_on_the_line():
    """y = 0.8 x + 0.6 noise is standard normal: its entropy, its divergence, what it says of x."""
    K = mx.Conditional(lambda x: mx.Normal(0.8 * x, 0.6))

    def figures(a):
        P = mx.Normal(a, 1.0)
        return mx.mutual_information(mx.joint(P, K)), -mx.bind(P, K).expect(mx.log(mx.Normal(0.5, 1.0)))

    compiled = jax.jit(figures).lower(0.0).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**31
    information, cross = compiled(0.0)
    np.testing.assert_allclose(information, 0.5108256, rtol=1e-4)
    entropy = information + 0.5 * np.log(2 * np.pi * np.e * 0.36)  # of y: I = H(Y) − H(Y | X)
    np.testing.assert_allclose(entropy, 1.4189385, rtol=5e-5)
    np.testing.assert_allclose(cross - entropy, 0.125, atol=5e-5)
    # far out, where every part of the mixture underflows
    y = mx.bind(mx.Normal(0.0, 1.0), K)
    far = jnp.array([0.0, 5.0, 20.0, 40.0])
    np.testing.assert_allclose(mx.log(y)(far), -(far**2) / 2 - 0.9189385, rtol=1e-5)


@pytest.mark.slow("integrals in integrals")
def test_divergence_to_a_conditional():
    """Of a joint and a head: the mean over x of the divergences of y's laws."""
    rng = np.random.default_rng(4)
    h, teacher, student = (jnp.asarray(rng.normal(size=n), jnp.float32) for n in ((5, 3), (3, 4), (3, 4)))
    rows = [mx.kl_divergence(mx.Categorical(x @ teacher), mx.Categorical(x @ student)) for x in h]
    head, P = mx.LinearSoftmax(student), mx.Empirical(h)
    for K in (mx.LinearSoftmax(teacher), mx.Categorical(h @ teacher)):
        np.testing.assert_allclose(mx.kl_divergence(mx.joint(P, K), head), np.mean(rows), rtol=1e-5)
    labelled = mx.Empirical((h, jnp.arange(5) % 4))
    np.testing.assert_allclose(mx.kl_divergence(labelled, head), mx.cross_entropy(labelled, head), rtol=1e-5)
