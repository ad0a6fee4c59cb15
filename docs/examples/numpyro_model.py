"""A numpyro model against data: which law do the radii of tumours follow? Posterior predictives in bits, held out.

The cross-entropy of the data held out under a model's predictive law is the bits that law needs for a radius: the better
model is the one that needs fewer. How much of it is the model's own uncertainty, and how far two models are from each
other, are integrals of the same laws.
"""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from sklearn.datasets import load_breast_cancer

import measure_xent as mx


def normal(x):
    loc = numpyro.sample("loc", dist.Normal(14.0, 10.0))
    scale = numpyro.sample("scale", dist.HalfNormal(10.0))
    numpyro.sample("x", dist.Normal(loc, scale), obs=x)


def log_normal(x):
    loc = numpyro.sample("loc", dist.Normal(2.5, 1.0))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    numpyro.sample("x", dist.LogNormal(loc, scale), obs=x)


def predictive(model, law, x, draws=50):
    """The posterior predictive law, a mixture over draws of the posterior, as a measure."""
    sampler = MCMC(NUTS(model), num_warmup=200, num_samples=draws, progress_bar=False)
    sampler.run(jax.random.key(0), x)
    posterior = sampler.get_samples()
    components = law(posterior["loc"], posterior["scale"])
    return mx.from_distribution(dist.MixtureSameFamily(dist.Categorical(jnp.full(draws, 1 / draws)), components))


def compare():
    """Bits a radius of the data held out, and of the law itself, for each model."""
    radius = jnp.asarray(load_breast_cancer().data[:, 0], jnp.float32)
    order = jax.random.permutation(jax.random.key(0), len(radius))
    seen, held_out = radius[order[:400]], radius[order[400:]]
    laws = {
        "Normal": predictive(normal, dist.Normal, seen),
        "LogNormal": predictive(log_normal, dist.LogNormal, seen),
    }
    P = mx.Empirical(held_out)
    return {
        name: {
            "bits": float(mx.cross_entropy(P, Q, base=2)),
            "its entropy": float(mx.entropy(Q, base=2)),
            "log-likelihood": float(mx.log_likelihood(Q, held_out)),
        }
        for name, Q in laws.items()
    }


if __name__ == "__main__":
    for name, figures in compare().items():
        print(f"{name:10}", ", ".join(f"{key} {value:.3f}" for key, value in figures.items()))
