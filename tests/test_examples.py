"""The examples of the documentation run; optax's own, rewritten, take the same path with either package's losses."""

from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "examples"
IMPORT = "from measure_xent import losses"


def example(name, losses="measure_xent"):
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    if losses != "measure_xent":
        assert source.count(IMPORT) == 1
        source = source.replace(IMPORT, f"from {losses} import losses")
    namespace = {"__name__": name}
    exec(compile(source, f"{name}.py", "exec"), namespace)
    return namespace


@pytest.mark.slow("trains a model")
@pytest.mark.parametrize("name", ["mlp", "lbfgs"])
def test_only_the_import_changes(name):
    """Steps amplify rounding: in float64 to 1e-9 at the last of them."""
    with jax.enable_x64(True):
        ours, theirs = (example(name, losses)["train"]() for losses in ("measure_xent", "optax"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert ours[-1] < 0.5 * ours[0]


@pytest.mark.slow("trains a model")
@pytest.mark.parametrize("name", ["adversarial", "nanolm"])
def test_only_the_import_changes_with_flax(name):
    """Flax's networks are of float32, with 1e-7 of rounding; twelve steps amplify it tenfold."""
    ours, theirs = (np.array(example(name, losses)["train"](steps=12)) for losses in ("measure_xent", "optax"))
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert ours[-1] < 0.9 * ours[0]


@pytest.mark.slow("trains a model")
def test_accumulation():
    train = example("accumulation")["train"]
    whole = train("one batch", steps=6)
    np.testing.assert_allclose(train("MultiSteps", steps=6), whole, rtol=1e-5)
    ragged = train("one batch", ragged=True, steps=6)
    np.testing.assert_allclose(train("accumulate", ragged=True, steps=6), ragged, rtol=1e-5)
    assert train("MultiSteps", ragged=True, steps=6)[-1] > 1.1 * ragged[-1]
    optaxs = example("accumulation", "optax")["train"]
    np.testing.assert_allclose(optaxs("MultiSteps", steps=6), whole, rtol=1e-5)


@pytest.mark.slow("trains a model twice")
def test_fsdp():
    train = example("fsdp")["train"]
    np.testing.assert_allclose(train(devices=8, steps=12), train(devices=1, steps=12), rtol=1e-5)


@pytest.mark.slow("trains a model twice")
def test_batchnorm():
    train = example("batchnorm")["train"]
    (one, _), (eight, _) = train(devices=1, steps=12), train(devices=8, steps=12)
    np.testing.assert_allclose(eight, one, rtol=1e-4)
    history, accuracy = train(devices=1)
    assert history[-1] < 0.05 * history[0]
    assert accuracy > 0.9


@pytest.mark.slow("trains")
def test_equinox():
    history, accuracy = example("equinox_mlp")["train"]()
    assert history[-1] < 0.5 * history[0]
    assert accuracy > 0.94


@pytest.mark.slow("trains a model")
def test_numpyro():
    """Radii are skewed: the log-normal law needs fewer bits, and the likelihood is the cross-entropy's sum."""
    figures = example("numpyro_model")["compare"]()
    assert figures["LogNormal"]["bits"] < figures["Normal"]["bits"] - 0.05
    for of_law in figures.values():
        assert of_law["log-likelihood"] == pytest.approx(-169 * of_law["bits"] * np.log(2), rel=1e-5)


@pytest.mark.slow("trains a model")
def test_policy_gradient():
    """Towards the best policy, by draws alone."""
    namespace = example("policy_gradient")
    history = namespace["train"](steps=60)
    assert history[0][1] < 0.3 < namespace["most"].mean() - 0.1 < history[-1][1] < namespace["most"].mean()
