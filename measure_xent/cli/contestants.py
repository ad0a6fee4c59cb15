"""Who runs in ``measure-xent bench``: ours, its peers and the limit, as functions of the same operands; and the truth."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import measure_xent as mx

EPSILON = 0.1  # of label smoothing
BONUS = 0.01  # of the entropy
WIDTH = 256  # features of the matmul that makes the logits
OPERATIONS = {
    "value": "one loss a row",
    "gradient": "the mean loss and its gradient in the logits",
    "smoothed": f"the same with labels smoothed by {EPSILON}",
    "dense": "the same against a dense target",
    "binary": "the mean loss of a binary label each, and its gradient in the logits",
    "matmul": f"the mean loss and its gradients, logits made by a matmul over {WIDTH} features",
}
HEAD_OPERATIONS = {
    "value": "the mean loss",
    "gradient": "the mean loss and its gradients in hidden and weight",
    "smoothed": f"the same with labels smoothed by {EPSILON}",
    "entropy": f"the mean loss less {BONUS} of the entropy, and its gradients",
    "master": "the mean loss and its gradients, a float32 weight whose products are in half precision",
    "each": "a loss a token and the gradients under a cotangent for each",
    "kept": "the same, a number a logit kept for the gradients",
}
OF_TOKENS = {"each", "kept"}
CHECKED = 32  # rows that are compared with float64


class Case(NamedTuple):
    """What is timed: an operation on logits ROWSxCLASSES, or on a head TOKENSxFEATURESxCLASSES."""

    operation: str
    shape: str
    dtype: str

    @property
    def sizes(self) -> list[int]:
        return [int(n) for n in self.shape.split("x")]

    @property
    def is_head(self) -> bool:
        return len(self.sizes) == 3

    def operands(self, seed: int, rows: int | None = None) -> tuple[jax.Array, ...]:
        """(logits, labels), or (hidden, weight, labels); labels are masses [rows, classes] of a dense target, and bits."""
        n, *features, classes = self.sizes
        n = rows or n
        keys = jax.random.split(jax.random.key(seed), 3)
        labels = jax.random.randint(keys[0], (n,), 0, classes)
        if self.operation == "matmul":
            features = [WIDTH]
        if self.operation == "dense":
            labels = jax.nn.softmax(jax.random.normal(keys[2], (n, classes), self.dtype))
        if self.operation == "binary":
            labels = jax.random.bernoulli(keys[2], 0.5, (n, classes)).astype(self.dtype)
        if not features:
            return 3 * jax.random.normal(keys[1], (n, classes), self.dtype), labels
        hidden = jax.random.normal(keys[1], (n, *features), self.dtype)
        of_weight = "float32" if self.operation == "master" else self.dtype
        weight = jax.random.normal(keys[2], (*features, classes), of_weight) / np.sqrt(features[0]).astype(of_weight)
        return hidden, weight, labels

    def contestants(self) -> dict[str, Callable]:
        """Functions of the operands, to be compiled."""
        if self.is_head:
            return _head_contestants(self.operation)
        return dict(_row_contestants(self.operation))

    def torch_calls(self, operands: tuple[jax.Array, ...], device: str) -> dict[str, Callable]:
        """Functions of nothing, on the same numbers; none where torch is not installed."""
        if not importlib.util.find_spec("torch"):
            return {}
        return (_torch_head_calls if self.is_head else _torch_row_calls)(self.operation, operands, device)

    def errors(self, seed: int) -> tuple[float, float]:
        """What ours is off by, beside float64, on fresh rows: of the loss, relative to it if it is above 1; of the
        gradients, relative to the largest entry."""
        operands = self.operands(seed, min(CHECKED, self.sizes[0]))
        got = jax.device_get(jax.jit(self.contestants()["ours"])(*operands))
        values, gradients = (got, ()) if self.operation == "value" else got
        truth, slopes, columns = _in_float64(self, *operands)
        off = np.max(np.abs(values - truth) / np.maximum(1, np.abs(truth)))
        gradients = jax.tree.leaves(gradients)
        if columns is not None and gradients:
            gradients[-1] = gradients[-1][:, columns]
        relative = [
            np.max(np.abs(a.astype(np.float64) - b)) / (np.max(np.abs(b)) or 1)
            for a, b in zip(gradients, slopes, strict=True)
        ]
        return float(off), float(max(relative, default=0.0))


class Figure(NamedTuple):
    """One row of the table: milliseconds, temporaries and peak memory in MiB by contestant, and ours' errors."""

    operation: str
    shape: str
    dtype: str
    milliseconds: dict[str, float]
    temporaries: dict[str, float]
    peak: dict[str, float]
    loss_error: float
    gradient_error: float


def cotangent(n: int) -> jax.Array:
    """Of a loss a token: neither 1 nor alike."""
    return jnp.linspace(-1, 1, n)


def _in_float64(case: Case, *operands: jax.Array) -> tuple[Any, list[np.ndarray], np.ndarray | None]:
    """(losses or loss, gradients, columns of the weight's gradient that these are), by numpy."""
    rounded = lambda x: x.astype(operands[0].dtype).astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x
    *inputs, y = [np.asarray(rounded(x)) for x in operands]
    n, classes = len(y), inputs[-1].shape[-1]
    x = inputs[0].astype(np.float64)
    if case.operation == "binary":
        z = inputs[0].astype(np.float64)
        return np.logaddexp(0, np.where(y == 1, -z, z)).mean(), [(1 / (1 + np.exp(-z)) - y) / y.size], None
    blocks = [slice(a, a + 8192) for a in range(0, classes, 8192)]
    z = np.concatenate([x @ inputs[1][:, b].astype(np.float64) for b in blocks], -1) if len(inputs) > 1 else x
    largest = z.max(-1, keepdims=True)
    log_q = z - largest - np.log(np.exp(z - largest).sum(-1, keepdims=True))
    if case.operation == "dense":
        p = y.astype(np.float64)
        return -(p * log_q).sum(-1).mean(), [(p.sum(-1, keepdims=True) * np.exp(log_q) - p) / n], None
    eps = EPSILON if case.operation == "smoothed" else 0.0
    losses = -(1 - eps) * log_q[np.arange(n), y] - eps * log_q.mean(-1)
    bonus = BONUS if case.operation == "entropy" else 0.0
    entropy = -(np.exp(log_q) * log_q).sum(-1)
    losses -= bonus * entropy
    if case.operation == "value":
        return (losses.mean() if case.is_head else losses), [], None
    weights = np.asarray(cotangent(n), np.float64) if case.operation in OF_TOKENS else np.full(n, 1 / n)
    slope = np.exp(log_q) * (1 + bonus * (log_q + entropy[:, None])) - eps / classes
    slope[np.arange(n), y] -= 1 - eps
    slope *= weights[:, None]
    if len(inputs) == 1:
        return weights @ losses, [slope], None
    of_hidden = np.sum([slope[:, b] @ inputs[1][:, b].astype(np.float64).T for b in blocks], axis=0)
    columns = np.unique(np.concatenate([y, np.linspace(0, classes - 1, 256, dtype=int)]))
    return weights @ losses, [of_hidden, x.T @ slope[:, columns]], columns


def _row_contestants(operation: str) -> Iterator[tuple[str, Callable]]:
    """(name, function of the operands and labels): ours, optax's, and the limit."""

    def ours(z, y):
        return mx.cross_entropy(mx.Dirac(y), mx.Categorical(z))

    def ours_smoothed(z, y):
        target = (1 - EPSILON) * mx.Dirac(y) + EPSILON * mx.DiscreteUniform(z.shape[-1])
        return mx.cross_entropy(target, mx.Categorical(z))

    optax_s = optax.losses.softmax_cross_entropy_with_integer_labels

    def optax_smoothed(z, y):
        return optax.losses.softmax_cross_entropy(
            z, optax.losses.smooth_labels(jax.nn.one_hot(y, z.shape[-1]), EPSILON)
        )

    def ours_dense(z, p):
        return mx.cross_entropy(mx.Discrete(weights=p), mx.Categorical(z))

    def ours_binary(z, y):
        return mx.cross_entropy(mx.Bernoulli(probs=y), mx.Bernoulli(z))

    def with_gradient(loss):
        return lambda z, y: jax.value_and_grad(lambda z: loss(z, y).mean())(z)

    def with_matmul(loss):
        return lambda h, w, y: jax.value_and_grad(lambda h, w: loss(h @ w, y).mean(), (0, 1))(h, w)

    match operation:
        case "value":
            yield from {"ours": ours, "optax": optax_s, "limit": lambda z, y: z.max(-1)}.items()
        case "gradient":
            yield from {
                "ours": with_gradient(ours),
                "optax": with_gradient(optax_s),
                "limit": lambda z, y: 2 * z,
            }.items()
        case "smoothed":
            yield "ours", with_gradient(ours_smoothed)
            yield "optax", with_gradient(optax_smoothed)
            yield "limit", lambda z, y: 2 * z
        case "dense":
            yield "ours", with_gradient(ours_dense)
            yield "optax", with_gradient(optax.losses.softmax_cross_entropy)
            yield "limit", lambda z, y: z * y
        case "binary":
            yield "ours", with_gradient(ours_binary)
            yield "optax", with_gradient(optax.losses.sigmoid_binary_cross_entropy)
            yield "limit", lambda z, y: z * y
        case "matmul":
            yield "ours", with_matmul(ours)
            yield "optax", with_matmul(optax_s)
            yield "limit", lambda h, w, y: ((h @ w) @ w.T, h.T @ (h @ w))


def _tensor(x: jax.Array) -> Any:
    """The same memory as torch's."""
    import torch  # pyright: ignore[reportMissingImports]

    return torch.from_dlpack(x)


def _torch_row_calls(operation: str, operands: tuple[jax.Array, ...], device: str) -> dict[str, Callable]:
    import torch  # pyright: ignore[reportMissingImports]

    *inputs, y = operands
    tensors = [_tensor(x).requires_grad_(operation != "value") for x in inputs]
    target = _tensor(y) if y.ndim > 1 else _tensor(y).long()
    options = {"label_smoothing": EPSILON} if operation == "smoothed" else {}
    functions = torch.nn.functional
    of = functions.binary_cross_entropy_with_logits if operation == "binary" else functions.cross_entropy

    def call():
        logits = tensors[0] @ tensors[1] if operation == "matmul" else tensors[0]
        loss = of(logits, target, reduction="none" if operation == "value" else "mean", **options)
        if operation != "value":
            torch.autograd.grad(loss, tensors)

    return {"torch": call}


def _head_contestants(operation: str) -> dict[str, Callable]:
    """Ours, optax's on all the logits, tokamax's where it is installed, the limit."""

    def target(y, classes):
        smoothed = (1 - EPSILON) * mx.Dirac(y) + EPSILON * mx.DiscreteUniform(classes)
        return smoothed if operation == "smoothed" else mx.Dirac(y)

    def ours(h, w, y):
        options = {"kept": {"residual_bytes": 1 << 60}, "master": {"dtype": h.dtype}}
        Q = mx.LinearSoftmax(w, **options.get(operation, {}))
        if operation in OF_TOKENS:
            return jnp.vdot(mx.cross_entropy(mx.Dirac(y), Q(h)), cotangent(len(y)))
        if operation == "entropy":
            return mx.Empirical((h, y)).expect(-mx.log(Q) - BONUS * mx.entropy(Q))
        return mx.cross_entropy(mx.joint(mx.Empirical(h), target(y, w.shape[1])), Q)

    def theirs(h, w, y):
        logits = h @ w.astype(h.dtype)
        if operation == "smoothed":
            targets = optax.losses.smooth_labels(jax.nn.one_hot(y, w.shape[1]), EPSILON)
            return optax.losses.softmax_cross_entropy(logits, targets).mean()
        losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
        if operation == "entropy":
            log_q = jax.nn.log_softmax(logits)
            losses += BONUS * jnp.sum(jnp.exp(log_q) * log_q, axis=-1)
        return jnp.vdot(losses, cotangent(len(y))) if operation in OF_TOKENS else losses.mean()

    losses = {"ours": ours, "optax": theirs}
    if operation in ("value", "gradient") and importlib.util.find_spec("tokamax"):
        import tokamax  # pyright: ignore[reportMissingImports]
        from absl import flags

        flags.FLAGS.mark_as_parsed()  # else tokamax reads this command's line as its own
        losses["tokamax"] = lambda h, w, y: tokamax.linear_softmax_cross_entropy_loss(
            h, y, w.astype(h.dtype), reduction="mean", implementation="xla"
        )
    if operation == "value":
        return losses | {"limit": lambda h, w, y: h @ w}
    gradients = {name: lambda h, w, y, f=f: jax.value_and_grad(f, (0, 1))(h, w, y) for name, f in losses.items()}

    def products(h, w, y):
        w = w.astype(h.dtype)
        return (h @ w) @ w.T, h.T @ (h @ w)

    return gradients | {"limit": products}


def _torch_head_calls(operation: str, operands: tuple[jax.Array, ...], device: str) -> dict[str, Callable]:
    """torch on all the logits, its chunked head, and on a GPU cut-cross-entropy and Liger, where they are installed."""
    import torch  # pyright: ignore[reportMissingImports]

    F = torch.nn.functional
    hidden, weight, labels = operands
    h, w = (_tensor(x).requires_grad_(operation != "value") for x in (hidden, weight.T))
    y = _tensor(labels).long()
    smoothing = EPSILON if operation == "smoothed" else 0.0
    of_tokens = torch.linspace(-1, 1, len(y), device=y.device)

    def gradients(loss):
        if operation != "value":
            torch.autograd.grad(loss, (h, w))

    def dense():
        reduction = "none" if operation in OF_TOKENS else "mean"
        if operation == "entropy":
            log_q = F.log_softmax(h @ w.T, dim=-1)
            bonus = BONUS * (log_q.exp() * log_q).sum(-1).mean()
            return gradients(F.nll_loss(log_q, y) + bonus)
        loss = F.cross_entropy(h @ w.T.to(h.dtype), y, reduction=reduction, label_smoothing=smoothing)
        return gradients(loss @ of_tokens.to(loss.dtype) if operation in OF_TOKENS else loss)

    calls = {"torch": dense}
    if hasattr(F, "linear_cross_entropy") and operation in ("value", "gradient"):
        options = torch.nn.LinearCrossEntropyOptions()
        calls["torch chunked"] = lambda: gradients(F.linear_cross_entropy(h, w, y, options=options))
    if device == "gpu" and operation in ("value", "gradient"):
        if importlib.util.find_spec("cut_cross_entropy"):
            from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

            calls["cut-cross-entropy"] = lambda: gradients(linear_cross_entropy(h, w, y, reduction="mean"))
        if importlib.util.find_spec("liger_kernel"):
            from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
                LigerFusedLinearCrossEntropyLoss,
            )

            liger = LigerFusedLinearCrossEntropyLoss()
            calls["liger"] = lambda: gradients(liger(w, h, y))
            # Nothing in liger-kernel 0.8.5 chooses this one of its functions, which is the faster on such a GPU.
            whole = len(h) % 128 == 0 and len(w) % 256 == 0
            if whole and torch.cuda.get_device_capability() == (9, 0) and importlib.util.find_spec("cutlass"):
                from liger_kernel.ops.cutedsl.ops.fused_linear_cross_entropy_sm90 import (  # pyright: ignore[reportMissingImports]
                    LigerFusedLinearCrossEntropySM90Function,
                )

                sm90 = LigerFusedLinearCrossEntropySM90Function.apply
                calls["liger sm90"] = lambda: gradients(sm90(h, w, y, -100, "mean"))
    return calls
