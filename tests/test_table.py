"""Tables of masses, against float64's sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import measure_xent as mx

COUNTS = np.array([[[3, 0, 5], [1, 7, 2]], [[0, 0, 4], [6, 2, 9]], [[0, 0, 0], [8, 1, 1]], [[2, 2, 0], [0, 3, 0]]])
SHARE = COUNTS / COUNTS.sum()


def entropy(p):
    p = p[p > 0]
    return -(p * np.log(p)).sum()


@pytest.mark.parametrize("which", [(0,), (2,), (0, 1), (2, 0), (1, 2), (0, 1, 2)])
def test_marginals_are_sums(which):
    P = mx.table(jnp.asarray(COUNTS), normalize=True)
    part = mx.marginal(P, *which)
    rest = tuple(i for i in range(3) if i not in which)
    expected = np.einsum(SHARE, [0, 1, 2], list(which))
    assert expected.shape == tuple(COUNTS.shape[i] for i in which)
    np.testing.assert_allclose(mx.entropy(part), entropy(SHARE.sum(rest)), rtol=1e-5)
    index = np.indices(expected.shape).reshape(len(which), -1)
    log_p = jax.vmap(mx.log(part))(*map(jnp.asarray, index))
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(log_p, np.log(expected.ravel()), rtol=1e-5)


def test_information():
    P, large = mx.table(jnp.asarray(COUNTS), normalize=True), np.random.default_rng(0).random((70, 90))
    h = lambda *axes: entropy(SHARE.sum(tuple(i for i in range(3) if i not in axes)))
    np.testing.assert_allclose(mx.entropy(P), h(0, 1, 2), rtol=1e-5)
    np.testing.assert_allclose(mx.mutual_information(P), h(0) + h(1) - h(0, 1), rtol=1e-4)
    expected = h(0, 2) + h(1, 2) - h(0, 1, 2) - h(2)
    np.testing.assert_allclose(mx.conditional_mutual_information(P, X=0, Y=1, Z=2), expected, rtol=1e-4)
    q = large / large.sum()
    expected = entropy(q.sum(0)) + entropy(q.sum(1)) - entropy(q)
    np.testing.assert_allclose(
        jax.jit(lambda p: mx.mutual_information(mx.table(p)))(jnp.asarray(q)), expected, rtol=1e-3
    )


def test_a_table_is_a_measure():
    p, (rows, columns) = COUNTS[:, :, 0], np.indices((4, 2))
    P = mx.table(jnp.asarray(p, float))
    assert P.mass.item() == p.sum()
    np.testing.assert_allclose(P.expect(lambda i, j: i + 10.0 * j), (p * (rows + 10 * columns)).sum())
    np.testing.assert_allclose(P.mean, [(p * rows).sum() / p.sum(), (p * columns).sum() / p.sum()], rtol=1e-6)
    i, j = P.sample(jax.random.key(0), 4000)
    seen = np.zeros((4, 2))
    np.add.at(seen, (i, j), 1 / 4000)
    np.testing.assert_allclose(seen, p / p.sum(), atol=0.04)
    assert mx.log(P)(4, 0) == -jnp.inf
    assert jnp.isnan(jax.grad(lambda p: mx.log(mx.table(p))(-1, 0))(jnp.ones((2, 2)))).all()
    null = mx.table(jnp.zeros((2, 3)), normalize=True)
    assert null.mass == 0
    families = jax.vmap(lambda p: mx.mutual_information(mx.table(p, normalize=True)))(jnp.asarray(COUNTS, float))
    np.testing.assert_allclose(families[1], mx.mutual_information(mx.table(COUNTS[1], normalize=True)), rtol=1e-5)
    score = jax.grad(lambda p: mx.log(mx.table(p))(1, 1))(jnp.full((2, 2), 0.25))
    np.testing.assert_allclose(score, [[0, 0], [0, 4]])
    assert isinstance(mx.table(jnp.ones(3)), mx.Discrete)
    for bad in (1.0, jnp.ones((2, 0))):
        with pytest.raises(ValueError, match=r"table\(p\)"):
            mx.table(bad)
