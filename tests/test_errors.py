"""Errors name the argument, what came and what is taken, when the program is traced."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions
import optax
import pytest

import measure_xent as mx
from measure_xent import log

hidden, labels, weight = jnp.ones((4, 3)), jnp.array([0, 1, 2, 0]), jnp.ones((3, 5))
Q = mx.LinearSoftmax(weight)

CASES = {
    "a distribution's name": (lambda: mx.Normal(0.0, 1.0).log_prob(0.0), AttributeError, "here it is log_density"),
    "no name at all": (lambda: mx.Normal(0.0, 1.0).nothing, AttributeError, "no attribute 'nothing'"),
    "a list of numbers": (lambda: mx.Empirical([0.0, 1.0]), ValueError, "a list is a pytree"),
    "counts that are no measure": (lambda: mx.mutual_information(jnp.ones((2, 2))), TypeError, "table\\(p, normalize"),
    "too many coordinates": (
        lambda: mx.mutual_information(mx.table(jnp.ones((2, 2)) / 4), None, 0, 1, 2, 3, 4),
        TypeError,
        r"mutual_information\(P, K",
    ),
    "moments of another number": (
        lambda: mx.information_projection(mx.DiscreteUniform(6), lambda x: jnp.stack([x, x**2]), 4.5),
        ValueError,
        "T gives 2 numbers, moments are 1",
    ),
    "a gradient unlike the parameters": (
        lambda: (o := mx.accumulate(optax.sgd(1.0), 2)).update(
            mx.Integral({"b": jnp.zeros(1)}, 0.0, mass=1.0), o.init({"a": jnp.zeros(1)})
        ),
        ValueError,
        "like the parameters.*'a'.*'b'",
    ),
    "labels with an axis": (
        lambda: mx.cross_entropy(mx.Empirical((hidden, labels[:, None])), Q),
        ValueError,
        r"\(1,\)",
    ),
    "one-hot labels": (
        lambda: mx.cross_entropy(mx.Empirical((hidden, jnp.eye(4, 5, dtype=int))), Q),
        ValueError,
        r"\(5,\)",
    ),
    "axes without a name": (
        lambda: mx.cross_entropy(mx.Empirical((jnp.ones((2, 4, 3)), jnp.ones((2, 4), int))), Q),
        ValueError,
        "ones",
    ),
    "labels for a conditional": (lambda: mx.joint(mx.Empirical(hidden), labels), TypeError, "Dirac"),
    "labels for a measure": (lambda: mx.cross_entropy(labels, Q), TypeError, r"P must be a Measure.*Dirac\(labels\)"),
    "labels by keyword": (lambda: mx.cross_entropy(P=labels, Q=Q), TypeError, "P must be a Measure"),
    "logits for a measure": (lambda: mx.cross_entropy(mx.Dirac(0), jnp.ones(3)), TypeError, "Measure or Conditional"),
    "kl to a conditional": (lambda: mx.kl_divergence(mx.Dirac(labels), Q), TypeError, "tuples.*Dirac"),
    "entropy of another library's": (
        lambda: mx.entropy(numpyro.distributions.Normal(0.0, 1.0)),
        TypeError,
        r"from_distribution\(P\)",
    ),
    "class counts by probs": (
        lambda: mx.cross_entropy(mx.Categorical(probs=jnp.ones(3) / 3), mx.Categorical(probs=jnp.ones(5) / 5)),
        ValueError,
        "3 classes",
    ),
    "class counts of uniforms": (
        lambda: mx.cross_entropy(mx.DiscreteUniform(5), mx.DiscreteUniform(3)),
        ValueError,
        "on 3",
    ),
    "class counts of a divergence": (
        lambda: mx.kl_divergence(mx.Categorical(jnp.ones(3)), mx.Categorical(probs=jnp.ones(5) / 5)),
        ValueError,
        "3 classes",
    ),
    "class counts of a mass": (lambda: (mx.DiscreteUniform(3) + mx.Categorical(jnp.zeros(5))).mass, ValueError, "5"),
    "float labels by probs": (lambda: mx.cross_entropy(mx.Dirac(1.5), mx.DiscreteUniform(5)), TypeError, "float32"),
    "float label in a density": (lambda: log(mx.Categorical(jnp.zeros(5)))(1.5), TypeError, "float32"),
    "an array for a density": (lambda: mx.Dirac(0).reweight(jnp.ones(3)), TypeError, "function of a point"),
    "a mask for a predicate": (lambda: mx.Dirac(0).restrict(jnp.ones(3)), TypeError, "weights=mask"),
    "class counts": (
        lambda: mx.cross_entropy(mx.DiscreteUniform(4), mx.Categorical(jnp.zeros(5))),
        ValueError,
        "4 classes",
    ),
    "class counts of a teacher": (
        lambda: mx.cross_entropy(mx.Categorical(jnp.zeros(1)), mx.Categorical(jnp.zeros(4))),
        ValueError,
        "1 classes",
    ),
    "class counts in a sum": (
        lambda: mx.cross_entropy(mx.DiscreteUniform(4) + mx.DiscreteUniform(5), mx.Categorical(jnp.zeros(5))),
        ValueError,
        "4 classes",
    ),
    "families": (
        lambda: mx.cross_entropy(mx.Dirac(labels), mx.Categorical(jnp.zeros((3, 5)))),
        ValueError,
        "broadcast",
    ),
    "a family of logits against the samples": (
        lambda: mx.cross_entropy(mx.Empirical(labels), mx.Categorical(jnp.zeros((4, 5)))),
        ValueError,
        r"all pairs.*Empirical\(\(logits, labels\)\).*\(4, 1\)",
    ),
    "a family of normals against weighted samples": (
        lambda: (2 * mx.Atoms(jnp.ones(4), weights=jnp.ones(4))).expect(log(mx.Normal(jnp.zeros(4), 1.0))),
        ValueError,
        "all pairs",
    ),
    "one-hot rows for labels": (
        lambda: mx.cross_entropy(mx.Dirac(jnp.eye(5, dtype=int)), mx.Categorical(jnp.zeros((5, 5)))),
        ValueError,
        r"Discrete\(weights=rows\)",
    ),
    "one-hot rows for labels of a head": (
        lambda: mx.cross_entropy(0.9 * mx.Dirac(jnp.eye(5, dtype=int)), Q(jnp.ones((5, 3)))),
        ValueError,
        r"Discrete\(weights=rows\)",
    ),
    "one-hot rows of another number": (
        lambda: mx.cross_entropy(mx.Dirac(jnp.eye(4, 5, dtype=int)), mx.Categorical(jnp.zeros((4, 5)))),
        ValueError,
        r"Discrete\(weights=rows\)",
    ),
    "families in a sum": (lambda: mx.Dirac(labels) + mx.Categorical(jnp.zeros((3, 5))), ValueError, "broadcast"),
    "scale": (lambda: jnp.ones(3) * mx.Dirac(labels), ValueError, r"shape \(3,\)"),
    "float labels": (lambda: mx.cross_entropy(mx.Dirac(1.0), mx.Categorical(jnp.zeros(5))), TypeError, "float32"),
    "float labels in a batch": (
        lambda: mx.cross_entropy(mx.Empirical((hidden, labels * 1.0)), Q),
        TypeError,
        "float32",
    ),
    "weights' shape": (lambda: mx.Empirical((hidden, labels), weights=jnp.ones(3)), ValueError, r"shape \(3,\)"),
    "ragged sample": (lambda: mx.Empirical((hidden, labels[:2])), ValueError, "leading axis"),
    "empty sample": (lambda: mx.Empirical(jnp.ones((0, 3))), ValueError, "empty sample"),
    "no sample": (lambda: mx.Empirical(()), ValueError, "empty sample"),
    "empty list of atoms": (lambda: mx.Discrete(jnp.ones(0, int), jnp.ones(0)), ValueError, "empty"),
    "indices and weights": (lambda: mx.Discrete(jnp.ones(2, int), jnp.ones(3)), ValueError, "2 indices but 3 weights"),
    "no class": (lambda: mx.Categorical(jnp.ones((3, 0))), ValueError, "at least one class"),
    "neither logits nor probs": (lambda: mx.Categorical(), TypeError, "exactly one"),
    "both logits and probs": (lambda: mx.Categorical(jnp.ones(2), jnp.ones(2)), TypeError, "exactly one"),
    "classes": (lambda: mx.DiscreteUniform(0), ValueError, "positive int"),
    "classes, float": (lambda: mx.Counting(2.0), ValueError, "positive int"),
    "log": (lambda: log(jnp.ones(3)), TypeError, "must be a Measure"),
    "expect": (lambda: mx.Dirac(0).expect("f"), TypeError, "callable"),
    "batch size": (lambda: mx.Empirical(hidden).expect(jnp.sum, batch_size=0), ValueError, "positive int"),
    "features": (lambda: Q(jnp.ones(4)), ValueError, "D = 3"),
    "features in a batch": (lambda: mx.cross_entropy(mx.Empirical((jnp.ones((4, 2)), labels)), Q), ValueError, "D = 3"),
    "weight's shape": (lambda: mx.LinearSoftmax(jnp.ones(3)), ValueError, r"\[D, V\]"),
    "bias's shape": (lambda: mx.LinearSoftmax(weight, jnp.ones(3)), ValueError, r"\(5,\)"),
    "a conditional of no measure": (lambda: mx.Conditional(lambda x: x)(1.0), TypeError, "must give a Measure"),
    "a conditional of no function": (lambda: mx.Conditional(3), TypeError, "function into measures"),
    "a conditional into families": (
        lambda: mx.cross_entropy(
            mx.Empirical((hidden, labels)), mx.Conditional(lambda h: mx.Categorical(jnp.ones((2, 5))))
        ),
        ValueError,
        "one measure a point",
    ),
    "a conditional against one space": (lambda: mx.cross_entropy(mx.Dirac(labels), Q), TypeError, "pairs"),
    "a measure against pairs": (
        lambda: mx.cross_entropy(mx.Empirical((hidden, labels)), mx.Categorical(jnp.zeros(5))),
        TypeError,
        "tuples",
    ),
    "joint": (lambda: mx.joint(mx.Empirical(hidden), mx.Dirac(jnp.ones(3, int))), ValueError, r"axes \(4,\)"),
    "joint with no kernel": (lambda: mx.joint(mx.Empirical(hidden), lambda h: h), TypeError, "Conditional"),
    "product": (lambda: mx.product(mx.Dirac(0), 3), TypeError, "must be a Measure"),
    "vector density": (lambda: mx.Empirical(hidden).reweight(lambda h: h).mass, ValueError, "scalar-valued"),
}


@pytest.mark.parametrize("name", CASES)
def test_error(name):
    case, error, message = CASES[name]
    with pytest.raises(error, match=message):
        case()
    with pytest.raises(error, match=message):  # at trace time, before any number is known
        jax.eval_shape(lambda: jax.tree.leaves(case()))


@pytest.mark.parametrize("functional", [mx.kl_divergence, mx.cross_entropy, mx.hellinger])
def test_points_of_different_shapes(functional):
    vectors, numbers = mx.MultivariateNormal(jnp.zeros(3), jnp.eye(3)), mx.Normal(0.0, 1.0)
    for P, Q in ((mx.Categorical(jnp.zeros(3)), vectors), (vectors, numbers), (mx.Dirac(jnp.zeros(2)), vectors)):
        with pytest.raises(ValueError, match=r"one space, got points of shapes"):
            functional(P, Q)


@pytest.mark.long
def test_classes_are_no_numbers():
    classes, numbers = mx.Categorical(jnp.zeros(3)), mx.Normal(0.0, 1.0)
    for P, Q in ((classes, numbers), (numbers, classes)):
        with pytest.raises(TypeError, match=r"labels must be integers, .* a measure on the line is not one on classes"):
            mx.kl_divergence(P, Q)
    with pytest.raises(TypeError, match="Normal is not on classes"):
        mx.cross_entropy(numbers, classes)


def test_probabilities_for_logits_are_warned_of():
    """numpyro's first argument is probs. The warning shows the caller's line; arrays of JAX's are not read."""
    for make in (
        lambda: mx.Bernoulli(0.3),
        lambda: mx.Bernoulli(np.array([0.2, 0.9])),
        lambda: mx.Categorical([0.25, 0.75]),
    ):
        with pytest.warns(UserWarning, match="taken as logits") as seen:
            make()
        assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mx.Bernoulli(jnp.array(0.3))
        mx.Bernoulli(probs=0.3)
        mx.Bernoulli(0.0)
        mx.Categorical(np.array([0.0, 2.0]))
        jax.jit(lambda z: mx.Categorical([z, 1 - z]).probs)


@pytest.mark.parametrize("functional", [mx.kl_divergence, mx.jensen_shannon, mx.total_variation, mx.cross_entropy])
def test_as_many_classes(functional):
    for P, R in (
        (mx.Categorical(jnp.zeros((8, 5))), mx.Categorical(jnp.zeros((8, 4)))),
        (mx.Discrete(weights=jnp.full(5, 0.2)), mx.DiscreteUniform(4)),
    ):
        with pytest.raises(ValueError, match=r"P is a measure on 5 classes, Q = .* on 4"):
            functional(P, R)
