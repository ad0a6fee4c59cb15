"""``measure-xent train lm``: a small language model on the Python standard library's own source."""

import argparse
import copy
import functools
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

import measure_xent as mx
from measure_xent import correct, log

from . import mesh as devices
from .corpus import LIBRARY, Corpus, encode, read, train_tokenizer
from .terminal import CommandError, output_folder, positive, seed, training_bar
from .transformer import AXES, Parameters, hidden_states, init

TEMPERATURE = 0.8  # of the sample
SAMPLE_TOKENS = 160
HELD_OUT_WINDOWS = 32, 512  # while training, and at the end

EPILOG = """
The loss of a batch is one integral, and the logits, tokens x vocabulary, never exist:

    P = Empirical((hidden, next_tokens))
    Q = LinearSoftmax(embedding, class_axis=0)          tied to the input's embedding
    loss = -P.expect(log(Q))

Held-out nats and bytes are sums over the batches, divided once, so a batch that is not full weighs what it holds.

examples:
  measure-xent train lm                                 five minutes or so on two cores
  measure-xent train lm --resume                        goes on from the last checkpoint, to the same numbers
  measure-xent train lm --source ~/novel.txt --vocabulary 4096 --out runs/novel
  measure-xent train lm --width 512 --layers 8 --context 512 --batch-size 32 --steps 20000

On several devices the rows of a batch are spread over them. --mesh says how: over data are rows, over fsdp rows and parameters,
over model the vocabulary. Of several processes each reads its own rows, and OUT is a folder that all see:

  measure-xent train lm --mesh data=4,model=2
  measure-xent train lm --coordinator host:1234 --processes 2 --process 0      and the same with --process 1 elsewhere

A process that crashes or is killed ends the others within a minute; --resume, on any mesh, goes on from the checkpoint.

OUT/checkpoints has the parameters and the optimiser's state, OUT/tokenizer.json the vocabulary, OUT/metrics.json the figures,
OUT/sample.txt what the model writes, OUT/report.png the pictures. Ctrl-C stops early and keeps them all; --resume goes on.
"""


class Settings(NamedTuple):
    """All that decides a run's numbers, beside its text."""

    steps: int = 700
    batch_size: int = 8
    context: int = 128
    vocabulary: int = 16384
    width: int = 256
    layers: int = 4
    heads: int = 4
    lr: float = 2e-3
    seed: int = 0


class State(NamedTuple):
    parameters: Parameters
    optimizer: Any


def add_parser(tasks: Any) -> None:
    parser = tasks.add_parser(
        "lm",
        help="a small language model on Python's own source, in minutes",
        description="Train a small transformer, and a byte-pair vocabulary for it, on the Python standard library's source.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    whole = positive(int)
    options = {
        "steps": (whole, "optimiser steps"),
        "batch_size": (whole, "sequences a step, over all devices"),
        "context": (whole, "tokens a sequence"),
        "vocabulary": (_vocabulary, "tokens of the byte-pair encoding"),
        "width": (whole, "features of a hidden state"),
        "layers": (whole, "of attention and perceptron"),
        "heads": (whole, "of attention"),
        "lr": (positive(float), "AdamW's highest learning rate"),
        "seed": (seed, "the same seed gives the same result"),
    }
    add = parser.add_argument
    add("--source", type=Path, metavar="PATH", help="a text, or a folder of texts (the standard library)")
    for name, (kind, text) in options.items():
        default = Settings._field_defaults[name]
        add(f"--{name.replace('_', '-')}", type=kind, metavar=name[0].upper(), help=f"{text} ({default})")
    add("--checkpoint-every", type=whole, default=100, metavar="STEPS", help="steps between checkpoints (%(default)s)")
    add(
        "--resume", action="store_true", help="go on from the last checkpoint in OUT, with its run's options but --mesh"
    )
    add("--out", type=Path, default=Path("runs/lm"), metavar="FOLDER", help="output folder (%(default)s)")
    devices.add_options(add)
    parser.set_defaults(run=run)


def _vocabulary(text: str) -> int:
    if not 257 <= (value := int(text)) <= 1 << 20:
        raise argparse.ArgumentTypeError(f"at least 257, the bytes and an end mark, and at most {1 << 20}, got {text}")
    return value


def run(arguments: argparse.Namespace) -> int:
    """Trains, keeps checkpoints, evaluates on the held-out files and writes the report."""
    devices.connect(arguments)
    if jax.process_count() == 1:
        return _run(arguments)
    try:
        return _run(arguments)
    except jax.errors.JaxRuntimeError as error:
        devices.end_with_the_others(error)
        raise


def _run(arguments: argparse.Namespace) -> int:
    import orbax.checkpoint as ocp

    folder, given = (arguments.out / "checkpoints").resolve(), vars(arguments)
    if arguments.resume and not folder.is_dir():
        raise CommandError(f"--resume: no checkpoint in {folder}")
    output_folder(arguments.out)
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as checkpoints:
        last = checkpoints.latest_step()
        if arguments.resume and last is None:
            raise CommandError(f"--resume: no checkpoint in {folder}")
        if not arguments.resume and last is not None:
            raise CommandError(
                f"--out {arguments.out}: has a run of {last} steps; --resume goes on with it, or choose another"
            )
        if last is None:
            chosen = {name: given[name] for name in Settings._fields if given[name] is not None}
            settings, source, history = Settings(**chosen), arguments.source or LIBRARY, None
        else:
            history = checkpoints.restore(last, args=ocp.args.Composite(history=ocp.args.JsonRestore()))["history"]
            settings, source = resumed(history["run"], given)
        if settings.width % (2 * settings.heads):
            raise CommandError(f"--width {settings.width}: has to be a multiple of {2 * settings.heads}, twice --heads")
        mesh = devices.make_mesh(arguments.mesh, settings.batch_size)
        corpus, tokenizer = load(source, arguments.out, settings, new=last is None)
        state, new = start(settings, corpus, source)
        state = jax.device_put(state, shardings := spread(mesh, state))
        if history is None:
            history = new
        else:
            if history["run"]["checksum"] != new["run"]["checksum"]:
                raise CommandError(f"--source {source}: not the text it was when the run to --resume read it")
            saved = ocp.args.Composite(state=ocp.args.StandardRestore(state))
            state = checkpoints.restore(last, args=saved)["state"]

        def save(step: int) -> None:
            if step not in checkpoints.all_steps():
                # Written behind the next steps' back: what they change has to be another's.
                parts = dict(state=ocp.args.StandardSave(state), history=ocp.args.JsonSave(copy.deepcopy(history)))
                checkpoints.save(step, args=ocp.args.Composite(**parts), force=True)

        def evaluate_now(step: int) -> None:
            due = step % 50 == 0 or step in (1, settings.steps)
            if due and step and str(step) not in history["held_out_loss"]:
                figures = evaluate(state.parameters, corpus, settings, HELD_OUT_WINDOWS[0], mesh)
                history["held_out_loss"][str(step)] = figures["nats"]

        def read_losses() -> None:
            history["train_loss"] += [float(loss) for loss in losses]
            losses.clear()

        step = first = len(history["train_loss"])
        whole = jax.NamedSharding(mesh, jax.P())
        train_step = jax.jit(functools.partial(update, settings), out_shardings=(shardings, whole))
        losses, began, interrupted = [], None, False
        with training_bar("{task.fields[loss]}") as progress:
            bar = progress.add_task("training lm", total=settings.steps, completed=step, loss="")
            try:
                evaluate_now(step)
                while step < settings.steps:
                    shape = settings.batch_size, settings.context + 1
                    rows = functools.partial(corpus.batch, step, settings.batch_size, settings.context, settings.seed)
                    state, loss = train_step(state, devices.by_rows(mesh, rows, shape))
                    losses.append(loss)
                    step += 1
                    if began is None:  # the first step compiles
                        began = jax.block_until_ready(loss) and time.perf_counter()
                    if step % 10 == 0 or step == settings.steps:
                        read_losses()
                        done = (step - first - 1) * settings.batch_size * settings.context
                        speed = done / (time.perf_counter() - began)
                        shown = f"loss {history['train_loss'][-1]:.3f}, {speed:,.0f} tokens/s"
                        progress.update(bar, completed=step, loss=shown)
                    evaluate_now(step)
                    if step % arguments.checkpoint_every == 0 or step == settings.steps:
                        read_losses()
                        save(step)
            except KeyboardInterrupt:
                if step == 0 or jax.process_count() > 1:  # the others are at another step
                    raise
                interrupted = True
                read_losses()
                step = len(history["train_loss"])
                save(step)
                progress.update(bar, completed=step)
        checkpoints.wait_until_finished()
    if interrupted:
        print(f"stopped after {step} steps; --resume goes on", file=sys.stderr)
    elif first == settings.steps:
        print(f"the run had all of its {first} steps already", file=sys.stderr)
    return report(arguments.out, state.parameters, corpus, tokenizer, settings, history, mesh)


def load(source: Path, out: Path, settings: Settings, *, new: bool) -> tuple[Corpus, Any]:
    """The text as tokens, of a new vocabulary or of the run's."""
    from jax.experimental import multihost_utils
    from rich.console import Console
    from tokenizers import Tokenizer

    if not source.exists():
        raise CommandError(f"--source {source}: no such file or folder")
    with Console(stderr=True).status(f"reading {source}, making {settings.vocabulary} tokens of it"):
        parts, path = read(source), out / "tokenizer.json"
        if new and devices.is_first():
            train_tokenizer(parts[0], settings.vocabulary).save(str(path))
        multihost_utils.sync_global_devices("tokenizer")
        tokenizer = Tokenizer.from_file(str(path))
        corpus = encode(parts, tokenizer)
    if len(corpus.train) - 1 - settings.context < settings.batch_size * settings.context:
        raise CommandError(
            f"--source {source}: {len(corpus.train)} tokens to train on, too few for a step of {settings.batch_size} "
            f"sequences of {settings.context}; give more text, or a smaller --batch-size or --context"
        )
    return corpus, tokenizer


def start(settings: Settings, corpus: Corpus, source: Path) -> tuple[State, dict[str, Any]]:
    """The state and the history before the first step."""
    shape = dict(vocabulary=len(corpus.byte_lengths), width=settings.width, layers=settings.layers)
    parameters = init(jax.random.key(settings.seed), **shape)
    run = settings._asdict() | {"source": str(source.resolve()), "checksum": corpus.checksum}
    return State(parameters, optimizer(settings).init(parameters)), {"run": run, "train_loss": [], "held_out_loss": {}}


def spread(mesh: Any, state: State) -> Any:
    """The shardings of a state, its optimiser's moments as the parameters that they are of."""

    def one(path, x):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return devices.sharding(mesh, x.shape, AXES.get(names[-1] if names else "", (None,) * x.ndim))

    return jax.tree_util.tree_map_with_path(one, state)


def resumed(run: dict[str, Any], given: dict[str, Any]) -> tuple[Settings, Path]:
    """The saved run's settings and source, if what is given does not contradict them."""
    source = given["source"] and str(given["source"].resolve())
    for name, value in (given | {"source": source}).items():
        if value is not None and value != run.get(name, value):
            option = f"--{name} {value}".replace("_", "-")
            raise CommandError(f"{option}: the run to --resume has {run[name]}; start another with --out")
    return Settings(**{name: run[name] for name in Settings._fields}), Path(run["source"])


def optimizer(settings: Settings) -> optax.GradientTransformation:
    """AdamW behind a clipped gradient, with a warm-up and a cosine's decay."""
    warm_up = max(1, min(100, settings.steps // 10))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, settings.lr, warm_up, max(settings.steps, warm_up + 1), settings.lr / 10
    )
    matrices = lambda parameters: {name: "gain" not in name for name in parameters}
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.95, weight_decay=0.1, mask=matrices))


def head(parameters: Parameters) -> mx.LinearSoftmax:
    return mx.LinearSoftmax(parameters["embedding"], class_axis=0)


def hidden_of(heads: int, parameters: Parameters, windows: Int[Array, "B T+1"]) -> Float[Array, "B T D"]:
    """What the head is to tell the next token by."""
    states = functools.partial(hidden_states, heads=heads)
    return devices.automatic(states, devices.ROWS, parameters, windows[:, :-1])


def update(settings: Settings, state: State, windows: Int[Array, "B T+1"]) -> tuple[State, Float[Array, ""]]:
    """One step of the optimiser, and the loss before it."""

    def loss(parameters):
        hidden = hidden_of(settings.heads, parameters, windows)
        P = mx.Empirical((hidden, windows[:, 1:]), weights=jnp.ones(hidden.shape[:2]))
        return -P.expect(log(head(parameters)))

    value, gradient = jax.value_and_grad(loss)(state.parameters)
    updates, state_of_optimizer = optimizer(settings).update(gradient, state.optimizer, state.parameters)
    parameters: Any = optax.apply_updates(state.parameters, updates)
    return State(parameters, state_of_optimizer), value


def evaluate(
    parameters: Parameters, corpus: Corpus, settings: Settings, windows: int, mesh: Any = None
) -> dict[str, Any]:
    """Figures of held-out text, each a ratio of two integrals that are summed over the batches."""
    batches = corpus.held_out_batches(settings.batch_size, settings.context, windows)
    place = lambda x: x if mesh is None else devices.by_rows(mesh, x.__getitem__, x.shape)
    with_bytes = ((windows, weights, corpus.byte_lengths[windows[:, 1:]]) for windows, weights in batches)
    parts = (_integrals(settings.heads, parameters, *map(place, batch)) for batch in with_bytes)
    total = jax.tree.map(lambda *parts: sum(parts), *parts)
    nats = float(total["nats"] / total["mass"])
    return {
        "nats": nats,
        "bits_per_byte": float(total["nats"] / total["bytes"]) / math.log(2),
        "perplexity": math.exp(min(nats, 700)),
        "accuracy": float(total["correct"] / total["mass"]),
        "tokens": int(total["mass"]),
        "nats_by_place": np.asarray(total["nats_by_place"] / total["mass_by_place"]).tolist(),
    }


@functools.partial(jax.jit, static_argnums=0)
def _integrals(heads, parameters, windows, weights, bytes_of_tokens):
    hidden, Q = hidden_of(heads, parameters, windows), head(parameters)
    P = mx.Atoms((hidden, windows[:, 1:]), weights=weights)
    nats, right = P.expect((-log(Q), correct(Q)))
    by_place = jnp.swapaxes(weights, 0, 1) * mx.cross_entropy(mx.Dirac(windows[:, 1:].T), Q(jnp.swapaxes(hidden, 0, 1)))
    return {
        "nats": nats,
        "correct": right,
        "mass": P.mass,
        "bytes": mx.Atoms(bytes_of_tokens, weights=weights).expect(lambda n: n),
        "nats_by_place": by_place.sum(1),
        "mass_by_place": weights.sum(0),
    }


def sample(parameters: Parameters, tokenizer: Any, prompt: str, settings: Settings) -> str:
    """What the model writes behind a prompt."""

    def draw(parameters, tokens, length, key):
        hidden = hidden_states(parameters, tokens[None], settings.heads)[0, length - 1]
        return head(parameters)(hidden / TEMPERATURE).sample(key)

    next_token = jax.jit(functools.partial(devices.automatic, draw, jax.P()))
    tokens = tokenizer.encode(prompt).ids
    for i in range(SAMPLE_TOKENS):
        seen = tokens[-settings.context :]
        padded = np.pad(seen, (0, settings.context - len(seen)))
        tokens.append(
            int(next_token(parameters, padded, len(seen), jax.random.fold_in(jax.random.key(settings.seed), i)))
        )
    return tokenizer.decode(tokens)


def report(
    out: Path,
    parameters: Parameters,
    corpus: Corpus,
    tokenizer: Any,
    settings: Settings,
    history: dict[str, Any],
    mesh: Any,
) -> int:
    """Writes and prints the figures, a sample and the picture."""
    from .figures import lm_report

    metrics = evaluate(parameters, corpus, settings, HELD_OUT_WINDOWS[1], mesh)
    if not math.isfinite(metrics["nats"]):
        raise CommandError(f"training diverged; try a smaller --lr than {settings.lr:g}, with another --out")
    written = sample(parameters, tokenizer, "def ", settings)
    if not devices.is_first():
        return 0
    (out / "sample.txt").write_text(written, encoding="utf-8")
    (out / "metrics.json").write_text(json.dumps(metrics | history, indent=1))
    lm_report(out / "report.png", metrics, history, len(corpus.byte_lengths), settings.batch_size * settings.context)
    print(
        f"---- sample ----\n{written}\n----------------\n"
        f"held-out cross-entropy  {metrics['nats']:.4f} nats a token, {metrics['bits_per_byte']:.4f} bits a byte\n"
        f"held-out perplexity     {metrics['perplexity']:.2f} of {len(corpus.byte_lengths)}\n"
        f"held-out accuracy       {metrics['accuracy']:.2%} of {metrics['tokens']} tokens\n"
        f"metrics, sample, picture {out}/metrics.json, sample.txt, report.png"
    )
    return 0
