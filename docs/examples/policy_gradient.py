"""A head fine-tuned by a clipped policy gradient (GRPO, PPO), on a task whose best policy is known.

Reward less β·KL(π‖reference) is greatest at π*(y | x) ∝ reference(y | x)·exp(reward / β), and falls short of that by
β·KL(π‖π*): one divergence says how far the run has come.
"""

import sys

import jax
import jax.numpy as jnp
import optax

import measure_xent as mx

KINDS, FEATURES, TOKENS = 10, 16, 1000
PROMPTS, DRAWS, EPOCHS, EPSILON, BETA = 64, 16, 2, 0.2, 0.1
keys = jax.random.split(jax.random.key(0), 3)
hidden = jax.random.normal(keys[0], (KINDS, FEATURES))  # of a prompt of each kind
reference = mx.LinearSoftmax(0.3 * jax.random.normal(keys[1], (FEATURES, TOKENS)))
rewards = 1.0 * (jnp.arange(TOKENS) % KINDS == jnp.arange(KINDS)[:, None])  # [kind, token]
best = mx.Categorical(mx.log(reference(hidden))(jnp.arange(TOKENS)[:, None]).T + rewards / BETA)
most = BETA * best.log_partition  # reward less β·KL, of the best


def loss(weight, h, y, advantage, old):
    Q = mx.LinearSoftmax(weight)(h)
    ratio = jnp.exp(Q.log_density(y) - old)  # [draw, prompt]
    gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - EPSILON, 1 + EPSILON) * advantage)
    return BETA * mx.kl_divergence(Q, reference(h)).mean() - gain.mean()


@jax.jit
def step(weight, state, key):
    """Prompts, draws for each, and updates on those."""
    of_prompts, of_draws = jax.random.split(key)
    kind = jax.random.randint(of_prompts, (PROMPTS,), 0, KINDS)
    h, policy = hidden[kind], mx.LinearSoftmax(weight)
    y = policy(h).sample(of_draws, DRAWS)
    reward = rewards[kind, y]
    advantage = (reward - reward.mean(0)) * DRAWS / (DRAWS - 1)  # beside the mean of the prompt's other draws
    old = policy(h).log_density(y)
    for _ in range(EPOCHS):
        updates, state = optimizer.update(jax.grad(loss)(weight, h, y, advantage, old), state)
        weight = optax.apply_updates(weight, updates)
    short = BETA * mx.kl_divergence(mx.LinearSoftmax(weight)(hidden), best)
    return weight, state, (reward.mean(), (most - short).mean())


optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 800))


def train(steps=400):
    """By step, the mean reward of the draws, and reward less β·KL(π‖reference), exactly."""
    weight, history = reference.weight, []
    state = optimizer.init(weight)
    for i in range(steps):
        weight, state, figures = step(weight, state, jax.random.key(i))
        history.append([float(x) for x in figures])
    return history


def draw(history, path):
    import matplotlib.pyplot as plt

    rewards, objectives = zip(*history, strict=True)
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    axes.plot(objectives, label="reward − β·KL(π‖reference)")
    axes.axhline(most.mean().item(), ls=":", c="grey", label="the same, of the best policy")
    axes.plot(rewards, lw=0.8, alpha=0.7, label="mean reward of the draws")
    axes.set(xlabel="step of 64 prompts × 16 draws", ylabel="reward")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    history = train()
    (_, first), (_, last) = history[0], history[-1]
    print(f"reward − β·KL(π‖reference): {first:.3f} → {last:.3f} of {most.mean():.3f}")
    if len(sys.argv) > 1:
        draw(history, sys.argv[1])
