"""Text as tokens: the Python standard library's own source, or any folder's, and a byte-pair vocabulary made of it."""

import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from .terminal import CommandError

LIBRARY = Path(sysconfig.get_path("stdlib"))
# Not written by hand to be read: tables of characters and keywords, tests, what is installed beside.
LEFT_OUT = {"site-packages", "dist-packages", "test", "encodings", "pydoc_data"}
END = "<|end|>"  # of a file


class Corpus(NamedTuple):
    """Streams of tokens, files one behind the other."""

    train: Int[np.ndarray, "n"]
    held_out: Int[np.ndarray, "m"]
    byte_lengths: Int[np.ndarray, "V"]

    @property
    def checksum(self) -> int:
        """Of all that is trained and tested on."""
        return zlib.crc32(self.held_out.tobytes(), zlib.crc32(self.train.tobytes()))

    def batch(
        self, step: int, size: int, context: int, seed: int, rows: slice = slice(None)
    ) -> Int[np.ndarray, "size context+1"]:
        """The training windows of a step, or some rows of them: a new shuffle each epoch, known from the step alone."""
        epoch_steps = (len(self.train) - 1 - context) // context // size
        epoch, place = divmod(step, epoch_steps)
        random = np.random.default_rng((seed, epoch))
        starts = random.integers(context) + context * random.permutation(epoch_steps * size)
        return np.stack([self.train[a : a + context + 1] for a in starts[place * size : (place + 1) * size][rows]])

    def held_out_batches(
        self, size: int, context: int, windows: int
    ) -> Iterator[tuple[Int[np.ndarray, "size context+1"], np.ndarray]]:
        """(windows, weights) of up to so many held-out windows, from all over; what is no text has weight 0."""
        all_windows = -(-(len(self.held_out) - 1) // context)
        count = min(windows, all_windows)
        padded = -(-count // size) * size
        weights = np.zeros((padded, context), np.float32)
        tokens = np.zeros((padded, context + 1), self.held_out.dtype)
        for i, window in enumerate(np.linspace(0, all_windows - 1, count).astype(int)):
            piece = self.held_out[window * context : (window + 1) * context + 1]
            tokens[i, : len(piece)], weights[i, : len(piece) - 1] = piece, 1
        for i in range(0, padded, size):
            yield tokens[i : i + size], weights[i : i + size]


def read(source: Path) -> tuple[list[str], list[str]]:
    """(texts to train on, texts held out): of a folder every tenth file, by its name, of a file its last tenth."""
    if source.is_file():
        text = _text(source)
        cut = len(text or "") * 9 // 10
        parts = ([text[:cut]], [text[cut:]]) if text else ([], [])
    else:
        parts = [], []
        for path in sorted(source.rglob("*.py" if source == LIBRARY else "*")):
            inside = path.relative_to(source)
            if not (source == LIBRARY and LEFT_OUT & set(inside.parts)) and path.is_file() and (text := _text(path)):
                parts[zlib.crc32(inside.as_posix().encode()) % 10 == 0].append(text)
    found = sum(map(len, parts))
    if found == 0 or not all(parts):
        few = "of which none is held out: about every tenth is, so give more, or one file" if found else "in UTF-8"
        raise CommandError(f"--source {source}: {found or 'no'} texts {few}")
    return parts


def _text(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None
    return None if "\0" in text else text


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """A byte-level byte-pair encoding (Sennrich et al. 2016; Radford et al. 2019) of so many tokens, or as many as it finds."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer: Any = trainers.BpeTrainer
    options = dict(vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer(**options))
    return tokenizer


def encode(parts: tuple[list[str], list[str]], tokenizer: Any) -> Corpus:
    """Both parts as streams, with an end mark behind each text."""
    end = tokenizer.token_to_id(END)
    tokenizer.encode_special_tokens = True  # a text that spells the mark does not end there

    def stream(texts):
        files = (np.array([*code.ids, end], np.int32) for code in tokenizer.encode_batch_fast(texts))
        return np.concatenate(list(files))

    # A character of a byte-level token is a byte.
    lengths = [0 if i == end else len(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())]
    train, held_out = map(stream, parts)
    return Corpus(train, held_out, np.array(lengths))
