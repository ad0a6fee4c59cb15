"""``measure-xent score``: every format gives numpy's figures; what is broken is told of, nothing passed off as whole."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from measure_xent.cli import main
from measure_xent.cli.totals import of_rows

rng = np.random.default_rng(0)
N, V = 600, 5
Z = (2 * rng.normal(size=(N, V))).astype(np.float32)
P = np.exp(Z.astype(np.float64)) / np.exp(Z.astype(np.float64)).sum(-1, keepdims=True)
Y = np.array([rng.choice(V, p=p) for p in P])
Y[:20] = -100
W = rng.choice([0.0, 0.5, 2.0], N)
G = rng.choice(["a", "b"], N)


def write(folder, name, predictions=Z, labels=Y, kind="logits", **more):
    path = folder / name
    arrays = {kind: predictions, "labels": labels, **more}
    if path.suffix == ".npz":
        (np.savez_compressed if "small" in name else np.savez)(path, **arrays)
    elif path.suffix == ".safetensors":
        blob, header = b"", {}
        for key, a in arrays.items():
            code = {"float32": "F32", "float64": "F64", "int64": "I64"}[str(a.dtype)]
            header[key] = {"dtype": code, "shape": a.shape, "data_offsets": [len(blob), len(blob) + a.nbytes]}
            blob += a.tobytes()
        head = json.dumps(header).encode()
        path.write_bytes(len(head).to_bytes(8, "little") + head + blob)
    else:
        columns = {key: a for key, a in arrays.items() if key != kind}
        stem = kind.rstrip("s")
        if "list" in name:
            columns[kind] = list(predictions)
        else:
            columns |= {f"{stem}_{c}": predictions[:, c] for c in range(predictions.shape[1])}
        (parquet.write_table if path.suffix == ".parquet" else csv.write_csv)(pa.table(columns), path)
    return path


def score(capsys, path, *options):
    status = main(["score", str(path), "--json", *options])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, err


def expected(w, rows=slice(None)):
    counts = (Y != -100) * w
    counts, y, p = counts[rows], np.clip(Y, 0, V - 1)[rows], P[rows]
    nats = -np.log(p[np.arange(len(y)), y])
    mean = lambda f: (counts * f).sum() / counts.sum()
    right = p.argmax(-1) == y
    second = np.argsort(-p, axis=-1)[:, :2]
    half = 1.959964 * np.sqrt((counts**2 * (nats - mean(nats)) ** 2).sum()) / counts.sum()
    edges = np.minimum((p.max(-1) * 15).astype(int), 14)
    gaps = [(counts * (right - p.max(-1)))[edges == b].sum() / counts.sum() for b in range(15)]
    return {
        "rows": int((counts != 0).sum()),
        "nats": mean(nats),
        "nats_interval": [mean(nats) - half, mean(nats) + half],
        "accuracy": mean(right),
        "top_k_accuracy": mean((second == y[:, None]).any(-1)),
        "calibration_error": np.abs(gaps).sum(),
        "brier_of_the_mode": mean((right - p.max(-1)) ** 2),
    }


def agrees(figures, oracle):
    for name, value in oracle.items():
        np.testing.assert_allclose(figures[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow("tables of every format")
@pytest.mark.parametrize(
    ("name", "kind", "predictions"),
    [
        ("a.npz", "logits", Z),
        ("small.npz", "probs", P),
        ("a.safetensors", "log_probs", np.log(P)),
        ("a.csv", "logits", Z),
        ("a.parquet", "probs", P),
        ("list.parquet", "log_probs", np.log(P)),
    ],
)
def test_every_format(tmp_path, capsys, name, kind, predictions):
    path = write(tmp_path, name, predictions, kind=kind)
    status, report, _ = score(capsys, path, "--top-k", "2", "--block", "0.001")  # many blocks
    assert status == 0
    agrees(report["overall"], expected(np.ones(N)))
    assert report["overall"]["bits"] == pytest.approx(report["overall"]["nats"] / np.log(2))
    assert report["overall"]["perplexity"] == pytest.approx(np.exp(report["overall"]["nats"]))
    low, high = report["overall"]["calibration_error_interval"]
    assert 0 <= low <= high


def test_weights_groups_classes_and_the_plot(tmp_path, capsys):
    path = write(tmp_path, "a.npz", weights=W, groups=G)
    status, report, _ = score(capsys, path, "--top-k", "2", "--block", "0.003", "--plot", str(tmp_path / "r.png"))
    assert status == 0
    agrees(report["overall"], expected(W))
    for group in "ab":
        agrees(report["by_group"][group], expected(W, group == G))
    for label in range(V):
        agrees(report["by_class"][str(label)], expected(W, label == Y))
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_the_table(tmp_path, capsys):
    assert main(["score", str(write(tmp_path, "a.npz", groups=G))]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("overall", "group a", "class 4", "±", "calibration error"))


def test_bad_rows_are_named_and_there_are_no_figures(tmp_path, capsys):
    z, y, w = Z.copy(), Y.copy(), W.copy()
    z[[30, 500], 1] = np.nan
    y[[40, 599]] = [V, -1]
    z[3], z[np.flatnonzero(W == 0)[-1]] = np.nan, np.nan  # rows that do not count
    w[[30, 500, 40, 599]], w[50] = 1.0, -1.0
    status, report, err = score(capsys, write(tmp_path, "a.npz", z, y, weights=w), "--block", "0.002")
    assert (status, report) == (1, None)
    assert "2 labels outside the classes: rows 40, 599" in err
    assert "2 NaN in the predictions: rows 30, 500" in err
    assert "1 weights that are negative or not finite: rows 50" in err
    p = P.copy()
    p[7] *= 2
    y = np.where(Y == -100, 0, Y)
    _, _, err = score(capsys, write(tmp_path, "b.npz", p, y, kind="probs"))
    assert "1 rows that are not probabilities, of sum 1 to 0.01" in err
    assert ": rows 7" in err
    _, _, err = score(capsys, write(tmp_path, "c.npz", labels=np.full(N, -100)))
    assert "none of its 600 rows counts" in err


def test_infinite_losses_are_figures(tmp_path, capsys):
    z = Z.copy()
    z[100, Y[100]] = -np.inf
    status, report, _ = score(capsys, write(tmp_path, "a.npz", z))
    assert status == 0
    assert report["overall"]["nats"] == "inf"
    assert np.isfinite(report["overall"]["accuracy"])


@pytest.mark.parametrize("name", ["a.npz", "small.npz", "a.safetensors", "a.parquet"])
def test_cut_off(tmp_path, capsys, name):
    path = write(tmp_path, name)
    path.write_bytes(path.read_bytes()[:-1000])
    status, report, err = score(capsys, path)
    assert (status, report) == (1, None)
    assert "cut off" in err


def test_what_is_missing_is_named(tmp_path, capsys):
    said = lambda path, *options: score(capsys, path, *options)[::2]
    path = write(tmp_path, "a.npz", more=Z)
    assert said(tmp_path / "none.npz") == (1, f"measure-xent: {tmp_path}/none.npz: No such file or directory\n")
    assert ".npz, .safetensors, .csv or .parquet" in said(tmp_path / "a.txt")[1]
    assert "no 'truth' for --labels; there are logits, labels, more" in said(path, "--labels", "truth")[1]
    assert "Say so by --kind" in said(path, "--predictions", "more")[1]
    assert said(path, "--predictions", "more", "--kind", "logits")[0] == 0
    assert "has shape (3,)" in said(write(tmp_path, "b.npz", labels=Y[:3]))[1]
    assert "not integers" in said(write(tmp_path, "c.npz", labels=Y / 2))[1]
    (tmp_path / "ragged.csv").write_text("label,logit_0,logit_1\n0,1.0,2.0\n1,3.0\n")
    assert said(tmp_path / "ragged.csv")[0] == 1


@pytest.mark.slow("tables of every format")
def test_columns_that_are_no_classes(capsys, tmp_path):
    """An id or an index beside the classes is not one; unnamed columns are asked about; rows are counted over the file."""
    plain = write(tmp_path, "a.csv")
    table = csv.read_csv(plain)
    named = table.append_column("id", [np.arange(N)])
    csv.write_csv(named, tmp_path / "id.csv")
    agrees(score(capsys, tmp_path / "id.csv", "--top-k", "2")[1]["overall"], expected(1))
    _, report, _ = score(capsys, tmp_path / "id.csv")
    assert report["classes"] == V
    assert report["rows_ignored"] == 20
    others = named.rename_columns(["" if n == "id" else n.replace("logit", "out") for n in named.column_names])
    csv.write_csv(others, tmp_path / "index.csv")
    assert "a column without a name" in score(capsys, tmp_path / "index.csv", "--kind", "logits")[2]
    _, report, _ = score(capsys, tmp_path / "index.csv", "--kind", "logits", "--predictions", "out_", "--top-k", "2")
    agrees(report["overall"], expected(1))
    lines = plain.read_text().splitlines()
    lines[501] = "," + lines[501].split(",", 1)[1]
    plain.write_text("\n".join(lines) + "\n")
    assert "missing in rows, counted from 0, [500]" in score(capsys, plain, "--block", "0.01")[2]


def test_names_that_do_not_say_enough(capsys, tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, predictions=Z, labels=Y)
    assert "are predictions logits, log-probs or probs? Say so by --kind" in score(capsys, path)[2]
    agrees(score(capsys, path, "--kind", "logits", "--top-k", "2")[1]["overall"], expected(1))
    assert "NaN" not in score(capsys, path, "--kind", "probs")[2]
    np.savez(path, logits=np.asfortranarray(Z), labels=Y)
    assert "Fortran" in score(capsys, path)[2]


def test_bytes_and_columns_in_any_order(capsys, tmp_path):
    """Big-endian arrays, float64 logits far from 0, columns sorted as text, groups that are NaN, names with brackets."""
    two = ("--top-k", "2")
    for dtype in (">f4", ">f2", "<f4"):
        np.savez(tmp_path / "a.npz", logits=Z.astype(dtype), labels=Y)
        report = score(capsys, tmp_path / "a.npz", *two)[1]["overall"]
        np.testing.assert_allclose(report["nats"], expected(1)["nats"], rtol=1e-3 if dtype == ">f2" else 1e-5)
    np.savez(tmp_path / "a.npz", logits=Z.astype(float) + 1e6, labels=Y)
    agrees(score(capsys, tmp_path / "a.npz", *two)[1]["overall"], expected(1))

    classes, rows = 12, 40
    z, y = rng.normal(size=(rows, classes)), rng.integers(classes, size=rows)
    names = sorted(f"logit_{c}" for c in range(classes))
    csv.write_csv(pa.table({n: z[:, int(n[6:])] for n in names} | {"labels": y}), tmp_path / "sorted.csv")
    nats = np.log(np.exp(z).sum(-1)) - z[np.arange(rows), y]
    np.testing.assert_allclose(score(capsys, tmp_path / "sorted.csv")[1]["overall"]["nats"], nats.mean(), rtol=1e-5)

    groups = np.where(np.arange(N) % 3 == 0, np.nan, 1.0)
    np.savez(tmp_path / "a.npz", logits=Z, labels=np.maximum(Y, 0), groups=groups)
    by_group = score(capsys, tmp_path / "a.npz", "--block", "0.001")[1]["by_group"]
    assert {k: v["rows"] for k, v in by_group.items()} == {"nan": 200, "1.0": 400}
    np.savez(tmp_path / "a.npz", logits=Z, labels=np.maximum(Y, 0), groups=np.where(G == "a", "[/]", "[bold]x"))
    assert main(["score", str(tmp_path / "a.npz")]) == 0
    assert "[/]" in capsys.readouterr().out
    assert main(["score", str(tmp_path / "a.npz"), "--plot", str(tmp_path / "x.foo")]) == 1
    assert "--plot" in capsys.readouterr().err


def test_what_is_not_asked_for_is_not_read(capsys, tmp_path):
    """Objects, Fortran's order, dtypes unknown here: of arrays beside, they do not matter; of those read, they are named."""
    path = write(tmp_path, "a.npz", names=np.array([None, "b"], object), turned=np.asfortranarray(Z))
    agrees(score(capsys, path, "--top-k", "2")[1]["overall"], expected(1))
    assert "names holds objects" in score(capsys, path, "--groups", "names")[2]
    path = write(tmp_path, "a.safetensors")
    head = json.loads(path.read_bytes()[8:].split(b"}}")[0] + b"}}")
    blob = path.read_bytes()[-(Z.nbytes + Y.nbytes) :]

    def rewrite(more=b"", **change):
        text = json.dumps(head | change).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + blob + more)
        return score(capsys, path, "--top-k", "2")

    end = len(blob)
    _, report, _ = rewrite(b"1234", small={"dtype": "F8_E4M3", "shape": [4], "data_offsets": [end, end + 4]})
    agrees(report["overall"], expected(1))
    assert "which are not [-600, -5] of F32" in rewrite(logits=head["logits"] | {"shape": [-N, -V]})[2]
    assert "broken" in rewrite(labels=head["labels"] | {"data_offsets": [end - Y.nbytes - 8, end]})[2]


def test_columns_of_odd_kinds(capsys, tmp_path):
    path, lists = tmp_path / "a.parquet", list(map(list, Z))
    said = lambda **columns: (
        parquet.write_table(pa.table({"labels": Y} | columns), path) or score(capsys, path, "--top-k", "2")
    )
    agrees(said(logits=pa.array(lists, pa.large_list(pa.float32())))[1]["overall"], expected(1))
    assert "not of lists of numbers" in said(logits=[[["a"]]] * N)[2]
    assert "not of one value a row" in said(logits=lists, groups=[[1]] * N)[2]
    (tmp_path / "twice.csv").write_text("label,logit_0,logit_0\n0,1.0,2.0\n")
    assert "several columns are named 'logit_0'" in score(capsys, tmp_path / "twice.csv")[2]


def test_a_smaller_block_at_the_end_is_no_other_program(capsys, tmp_path):
    of_rows.clear_cache()
    path = write(tmp_path, "a.npz")  # 600 rows, 262 at a time
    agrees(score(capsys, path, "--top-k", "2", "--block", "0.005")[1]["overall"], expected(1))
    assert of_rows._cache_size() == 1


@pytest.mark.slow("runs of the command, one after the other")
def test_what_is_compiled_is_kept(tmp_path):
    path = write(tmp_path, "a.npz")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"XDG_CACHE_HOME": str(tmp_path)}
    run = lambda **more: subprocess.run(
        [sys.executable, "-m", "measure_xent", "score", str(path)],
        env=environment | more,
        check=True,
        capture_output=True,
    )
    elsewhere = tmp_path / "elsewhere"
    run(JAX_COMPILATION_CACHE_DIR=str(elsewhere), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.1")
    assert list(elsewhere.glob("jit_of_rows*"))
    assert not (tmp_path / "measure-xent").exists()
    run()
    assert list((tmp_path / "measure-xent").glob("jit_of_rows*"))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_first_k_of_infinite_and_equal_logits(capsys, tmp_path, dtype):
    """A class is among the first k if fewer than k are larger, by however little."""
    inf, tiny = np.inf, {"float32": 1e-30, "float64": 1e-30, "float16": 6e-8}[dtype]
    z = np.array(
        [[0, -inf, inf, inf], [0, -inf, -inf, 1], [tiny, 2 * tiny, 0, 0], [3e4, -3e4, 0, 1], [1, 1, 1, 1]], dtype
    )
    for y in range(4):
        np.savez(tmp_path / "a.npz", logits=z, labels=np.full(5, y), groups=np.arange(5))
        for k in (1, 2, 3):
            report = score(capsys, tmp_path / "a.npz", "--top-k", str(k))[1]["by_group"]
            got = [report[str(i)]["top_k_accuracy"] for i in range(5)]
            assert got == ((z > z[:, [y]]).sum(-1) < k).tolist()


WORDS = np.array(["ant", "bee", "cat", "dog", "eel"])


@pytest.mark.slow("tables of every format")
def test_labels_that_are_words(capsys, tmp_path):
    """By the names of the columns, in any order, or in alphabetical order; by_class has them; what is none is told of."""
    said = np.where(Y == -100, "-100", WORDS[np.maximum(Y, 0)])  # the number that is ignored is one in words, too
    two, turned = ("--top-k", "2"), [3, 1, 4, 0, 2]
    columns = {f"prob_{WORDS[c]}": P[:, c] for c in turned}
    csv.write_csv(pa.table({"species": said, **columns}), tmp_path / "a.csv")
    parquet.write_table(pa.table({"species": pa.array(said).dictionary_encode(), **columns}), tmp_path / "a.parquet")
    parquet.write_table(pa.table({"species": said, **{WORDS[c]: P[:, c] for c in turned}}), tmp_path / "bare.parquet")
    np.savez(tmp_path / "a.npz", probs=P, species=said)
    np.savez(tmp_path / "bytes.npz", probs=P, species=said.astype("S"))
    parquet.write_table(pa.table({"species": said, "probs": list(P)}), tmp_path / "list.parquet")
    for name in ("a.csv", "a.parquet", "bare.parquet", "a.npz", "bytes.npz", "list.parquet"):
        more = ("--kind", "probs") if name == "bare.parquet" else ()
        _, report, err = score(capsys, tmp_path / name, "--labels", "species", "--block", "0.005", *two, *more)
        assert report is not None, (name, err)
        agrees(report["overall"], expected(np.ones(N)))
        for c, word in enumerate(WORDS):
            agrees(report["by_class"][word], expected(np.ones(N), c == Y))
    numbers = np.where(Y == -100, "-100", np.maximum(Y, 0).astype(str))
    np.savez(tmp_path / "a.npz", probs=P, labels=numbers)
    agrees(score(capsys, tmp_path / "a.npz", *two)[1]["overall"], expected(np.ones(N)))
    np.savez(tmp_path / "a.npz", probs=P, labels=np.where(said == "eel", "bee", said))
    assert "ant, bee, cat, dog: 4 of them for 5 classes" in score(capsys, tmp_path / "a.npz")[2]
    wrong = np.where(np.arange(N) == 30, "elk", said)
    csv.write_csv(pa.table({"species": wrong, **columns}), tmp_path / "a.csv")
    assert "1 labels outside the classes: rows 30" in score(capsys, tmp_path / "a.csv", "--labels", "species")[2]


@pytest.mark.parametrize("kind", ["probs", "logits", "log_probs"])
def test_one_column_of_two_classes(capsys, tmp_path, kind):
    """p of the second class, as an array [rows] or [rows, 1] or a column; labels are integers, words, true and false."""
    p = rng.uniform(size=N)
    p[:3] = 1e-12, 1 - 1e-12, 0.5
    y = (rng.uniform(size=N) < p).astype(int)
    nats = -np.log(np.where(y == 1, p, 1 - p)).mean()
    z = {"probs": p, "logits": np.log(p) - np.log1p(-p), "log_probs": np.log(p)}[kind]
    np.savez(tmp_path / "a.npz", **{kind: z}, labels=y)
    np.savez(tmp_path / "b.npz", **{kind: z[:, None]}, labels=np.where(y, "yes", "no"))
    csv.write_csv(pa.table({kind: z, "label": y == 1}), tmp_path / "a.csv")
    parquet.write_table(pa.table({kind.rstrip("s"): z, "label": np.where(y, "spam", "ham")}), tmp_path / "a.parquet")
    for name, names in (("a.npz", "01"), ("b.npz", ("no", "yes")), ("a.csv", "01"), ("a.parquet", ("ham", "spam"))):
        _, report, err = score(capsys, tmp_path / name)
        assert report is not None, (name, err)
        assert report["classes"] == 2
        assert set(report["by_class"]) == set(names)
        np.testing.assert_allclose(report["overall"]["nats"], nats, rtol=1e-5)
        np.testing.assert_allclose(report["overall"]["accuracy"], np.mean((p > 0.5) == y), rtol=1e-6)
    np.savez(tmp_path / "a.npz", probs=p[:-1], labels=y)
    assert f"has a number for each of the labels, which have shape ({N},)" in score(capsys, tmp_path / "a.npz")[2]


def test_labels_of_other_dtypes(capsys, tmp_path):
    """Floats that are whole, as of a column with gaps; unsigned and narrow integers; a NaN is no class."""
    for dtype in ("float32", "float64", "float16", "int8"):
        path = write(tmp_path, "a.npz", labels=Y.astype(dtype))
        agrees(score(capsys, path, "--top-k", "2")[1]["overall"], expected(np.ones(N)))
    for dtype in ("uint8", "uint64", "uint32"):
        report = score(capsys, write(tmp_path, "a.npz", Z[20:], Y[20:].astype(dtype)), "--top-k", "2")[1]["overall"]
        agrees(report, expected(np.ones(N)))
    y = Y.astype(float)
    y[[40, 50]] = np.nan
    weights = np.where(np.arange(N) == 50, 0.0, 1.0)
    assert (
        "1 labels outside the classes: rows 40" in score(capsys, write(tmp_path, "a.npz", labels=y, weights=weights))[2]
    )
    y[40] = 1.5
    assert "labels are float64, not integers: row 40 has 1.5" in score(capsys, write(tmp_path, "a.npz", labels=y))[2]


@pytest.mark.filterwarnings("error")
def test_intervals_are_of_figures_that_can_be_and_nothing_warns(capsys, tmp_path):
    """Shares in [0, 1], nats from 0, perplexities from 1: of few rows, of all right and all wrong, of losses inf and 1e4."""
    z = np.array([[9.0, 0, 0], [0, 0.1, 0], [0, 0, 50]])
    cases = [
        (z, [0, 1, 2]),
        (z, [1, 2, 0]),
        (z[:1], [0]),
        (z[:2], [0, 0]),
        (1e4 * z, [1, 1, 1]),
        (1e300 * z, [1, 0, 2]),
    ]
    cases.append((np.where(z == 50, np.inf, np.where(z == 9, -np.inf, z)), [0, 1, 2]))
    for z, y in cases:
        _, report, err = score(capsys, write(tmp_path, "a.npz", np.asarray(z), np.array(y)))
        assert report is not None, err
        for name, figure in report["overall"].items():
            if name.endswith("_interval"):
                low, high = (np.inf if x == "inf" else x for x in figure)
                least, most = {"nats": (0, np.inf), "perplexity": (1, np.inf)}.get(name[:-9], (0, 1))
                assert low is None or least <= low <= high <= most, (name, figure)
