"""How measures show themselves: every picture is well-formed and true, nothing that has none fails."""

import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats

import measure_xent as mx

from .spaces import ENTRIES
from .sweeps import sweep

rng = np.random.default_rng(0)
N = mx.Normal(0.0, 1.0)


def page(P):
    bundle = P._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "text/latex"}
    return ET.fromstring(bundle["text/html"].replace("<br>", "<br/>"))


def heights(root, tag="rect"):
    return [float(element.get("height")) for element in root.iter(tag)]


def test_bars_are_the_masses():
    p = np.array([0.1, 0.2, 0.7])
    bars = heights(page(mx.Categorical(probs=jnp.asarray(p))))
    np.testing.assert_allclose(np.divide(bars, max(bars)), p / 0.7, atol=0.01)  # a tenth of a pixel of 74


def test_a_curve_is_the_density():
    (line,) = page(mx.Normal(1.0, 2.0)).iter("polyline")
    x, y = np.array([point.split(",") for point in line.get("points").split()], float).T
    x, y = (x - x[0]) / (x[-1] - x[0]), (y[0] - y) / (y[0] - y.min())
    z = 8 * 0.999 * (x - 0.5)
    np.testing.assert_allclose(y, np.exp(-(z**2) / 2), atol=0.02)


def test_atoms_are_stems_beside_a_density():
    root = page(0.3 * mx.Dirac(0.0) + 0.7 * N)
    assert len(list(root.iter("circle"))) == 1
    assert "mass to 0.3" in "".join(root.itertext())
    assert "mass 1" in "".join(root.itertext())


def test_families():
    small, large = page(mx.Normal(jnp.arange(3.0), 1.0)), page(mx.Normal(jnp.arange(30.0), 1.0))
    assert len(list(small.iter("svg"))) == 3
    assert len(list(large.iter("svg"))) == 1
    assert not list(large.iter("polyline"))
    table = rng.dirichlet(np.ones(5), size=12)
    cells = [float(cell.get("fill-opacity")) for cell in page(mx.Categorical(probs=jnp.asarray(table))).iter("rect")]
    np.testing.assert_allclose(sorted(cells), np.sort(table[table > 0.005 * table.max()]) / table.max(), atol=0.006)


def test_signed_measures_have_negative_parts():
    (line,) = page(N - mx.Laplace(0.0, 1.0)).iter("polyline")
    base = float(next(page(N - mx.Laplace(0.0, 1.0)).iter("path")).get("d").split()[1].split("H")[0])
    y = [float(point.split(",")[1]) for point in line.get("points").split()]
    assert min(y) < base - 5
    assert max(y) > base + 5


@sweep("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_measure_has_a_picture(entry):
    P, _ = entry.make(np.random.default_rng(0))
    assert list(page(P).iter("svg"))


def test_what_has_no_picture_has_words():
    triple, vector = mx.product(mx.product(N, N), N), mx.MultivariateNormal(jnp.zeros(3), jnp.eye(3))
    image, large = mx.pushforward(jnp.square, N), mx.Categorical(jnp.zeros((70000, 10)))
    for P, said in ((triple, "tuples of 3"), (vector, "on vectors"), (image, "density"), (large, "shape (70000,)")):
        root = page(P)
        assert not list(root.iter("svg"))
        assert said in "".join(root.itertext())
    seen = []
    jax.jit(lambda x: seen.append(mx.Normal(x, 1.0)._repr_mimebundle_()) or x)(0.0)
    assert "Normal" in seen[0]["text/html"]
    with pytest.raises(TypeError, match=r"plot\(P\).*tuples of 3"):
        mx.plot(triple)
    with pytest.raises(TypeError, match="float"):
        mx.plot(3.0)


@pytest.mark.slow("a page of every measure")
def test_small_pages():
    for P in (N, mx.Categorical(jnp.zeros((200, 500))), mx.Empirical(jnp.asarray(rng.normal(size=5000)))):
        assert len(P._repr_mimebundle_()["text/html"]) < 600_000


def test_formulas():
    latex = lambda P: P._repr_mimebundle_()["text/latex"]
    assert latex(0.5 * mx.Dirac(0) - N) == r"$0.5 \cdot \delta_{0} - \mathrm{Normal}(0, 1)$"
    assert latex(mx.product(N, N)) == r"$\mathrm{Normal}(0, 1) \otimes \mathrm{Normal}(0, 1)$"
    assert latex(mx.Categorical(jnp.zeros((2, 3)))) == r"$\mathrm{Categorical}(\text{float32[2, 3]})$"
    assert (-2 * (mx.log(N) + mx.log(N)))._repr_latex_() == (
        r"$-2 \cdot \left(\log \mathrm{Normal}(0, 1) + \log \mathrm{Normal}(0, 1)\right)$"
    )
    assert mx.entropy._repr_latex_() == r"$H(P) = -\int \log p \, dP$"


def test_plots():
    figure, axes = plt.subplots(1, 4)
    mx.plot(mx.Normal(jnp.arange(2.0), 1.0), axes[0])
    assert [len(axes[0].lines), axes[0].get_ylabel()] == [2, "density"]
    mx.plot(0.3 * mx.Dirac(0.0) + 0.7 * N, axes[1])
    assert axes[1].get_ylabel() == "mass"
    mx.plot(mx.Categorical(probs=jnp.array([0.25, 0.75])), axes[2])
    assert [bar.get_height() for bar in axes[2].patches] == [0.25, 0.75]
    table = jnp.asarray(rng.dirichlet(np.ones(4), size=9))
    mx.plot(mx.Categorical(probs=table), axes[3])
    np.testing.assert_allclose(axes[3].images[0].get_array(), table)
    plt.close(figure)


def test_two_plots_on_one_axes():
    """Each its colour and label, by matplotlib's keywords; axes grow, masses and densities keep to their sides."""
    figure, (one, two, three) = plt.subplots(1, 3)
    mx.plot(N, one, label="prior")
    mx.plot(mx.Normal(9.0, 0.1), one, label="posterior", linestyle="--", linewidth=3)
    first, second = one.lines
    assert first.get_color() != second.get_color()
    assert [second.get_linestyle(), second.get_linewidth()] == ["--", 3]
    assert one.get_legend_handles_labels()[1] == ["prior", "posterior"]
    assert one.get_xlim()[0] < -3
    assert one.get_xlim()[1] > 9
    assert one.get_ylim()[1] > 3.9
    mx.plot(mx.Normal(jnp.arange(2.0), 1.0), one, label="member", color="k")
    assert one.get_legend_handles_labels()[1][2:] == ["member 0", "member 1"]
    assert one.lines[-1].get_color() == "k"
    for c in (0.3, 0.6):
        mx.plot(c * mx.Dirac(0.0) + (1 - c) * N, two, label=str(c))
    assert [a.get_ylabel() for a in figure.axes] == ["density", "mass", "", "density"]
    assert two.get_ylim()[1] == pytest.approx(0.66)
    assert two.get_legend_handles_labels()[1] == ["0.3", "0.6"]
    mx.plot(N, two)
    assert len(figure.axes[3].lines) == 3
    for P in (mx.Poisson(3.0), mx.Geometric(0.3)):
        mx.plot(P, three, alpha=0.5)
    colors = {bar.get_facecolor() for bar in three.patches}
    assert len(colors) == 2
    assert {color[3] for color in colors} == {0.5}
    with pytest.raises(ValueError, match="one a member, of 2, got 3"):
        mx.plot(mx.Normal(jnp.arange(2.0), 1.0), one, label=["a", "b", "c"])
    plt.close(figure)


def test_heat_maps():
    """Masses of tables and pairs of atoms, densities of pairs, vectors and joint measures: as they are where a cell is."""
    figure, axes = plt.subplots(1, 5)
    p = rng.dirichlet(np.ones(6)).reshape(2, 3)
    draw = lambda P, ax, **keywords: mx.plot(P, ax, **keywords).collections[0]
    np.testing.assert_allclose(draw(mx.table(jnp.asarray(p, float)), axes[0]).get_array(), p.T, rtol=1e-5)
    x, y = rng.normal(size=(2, 400))
    shown = draw(mx.Empirical((jnp.asarray(x), jnp.asarray(y))), axes[1]).get_array()
    np.testing.assert_allclose(shown.sum(), 1, rtol=1e-5)
    cov = np.array([[1.0, 0.5], [0.5, 2.0]])
    V = mx.MultivariateNormal(jnp.array([1.0, -1.0]), jnp.asarray(cov))
    given = mx.joint(mx.Categorical(jnp.zeros(3)), mx.Conditional(lambda k: mx.Normal(2.0 * k, 1.0 + k)))
    exact = {
        V: lambda x, y: stats.multivariate_normal([1, -1], cov).pdf(np.stack([x, y], -1)),
        mx.product(N, mx.Poisson(3.0)): lambda x, y: stats.norm.pdf(x) * stats.poisson(3).pmf(y),
        given: lambda x, y: stats.norm(2 * x, 1 + x).pdf(y) / 3,
    }
    for (P, density), ax in zip(exact.items(), axes[2:], strict=True):
        mesh = draw(P, ax, cmap="magma")
        corners = mesh.get_coordinates()
        middle = (corners[1:, 1:] + corners[:-1, :-1]) / 2
        values = np.reshape(mesh.get_array(), middle.shape[:2])
        np.testing.assert_allclose(values, density(*np.moveaxis(middle, -1, 0)), rtol=1e-3, atol=1e-5)
        assert mesh.get_cmap().name == "magma"
        (svg,) = page(P).iter("svg")
        assert len(list(svg.iter("rect"))) > 20
    plt.close(figure)
    for P in (V, given):
        assert not jax.jit(lambda P: "<svg" in P._repr_mimebundle_()["text/html"] or 0.0)(P)


def test_words_of_conditionals():
    """What is bound is where its measures are, whatever it is drawn by."""
    coin = mx.Categorical(jnp.zeros(2))
    for K, said in (
        (lambda x: mx.Normal(1.0 * x, 1.0), "with a density on the line"),
        (lambda x: mx.Poisson(x + 1.0), "on the integers"),
        (lambda x: mx.Dirac(x + 1.0), "made of atoms"),
    ):
        text = "".join(page(mx.bind(coin, mx.Conditional(K))).itertext())
        assert said in text
        assert ("atoms" in text) == (said == "made of atoms")


def test_treescope_shows_the_tree():
    treescope = pytest.importorskip("treescope")
    shown = treescope.render_to_text(0.5 * N + mx.Dirac(0.0))
    assert "Normal" in shown
    assert "Dirac" in shown


@pytest.mark.parametrize(
    "P",
    [
        mx.DiscreteUniform(10**9),
        mx.Normal(jnp.zeros(0), 1.0),
        mx.Dirac(jnp.nan),
        mx.Dirac(jnp.inf),
        mx.Categorical(jnp.array([jnp.nan, 1.0])),
    ],
)
def test_what_cannot_be_drawn_is_told_in_words(P):
    assert "<svg" not in P._repr_mimebundle_()["text/html"]
    with pytest.raises(TypeError, match="measure on numbers"):
        mx.plot(P)


def test_odd_measures_have_pictures():
    """Far away, scaled apart, signed; and a null atom at NaN is not there."""
    for P in (mx.Dirac(1e30), jnp.array([1.0, 0.5]) * N, -1 * mx.Categorical(jnp.zeros(3))):
        assert len(list(page(P).iter("svg")))
    holed = mx.Empirical(jnp.array([jnp.nan, 1.0]), weights=jnp.array([0.0, 1.0]))
    assert "nan" not in holed._repr_mimebundle_()["text/html"]
    bottom, top = mx.plot(-1 * mx.Categorical(jnp.zeros(3)), plt.figure().add_subplot()).get_ylim()
    assert bottom < 0 < top
