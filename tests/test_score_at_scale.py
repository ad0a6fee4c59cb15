"""``measure-xent score`` of many files, of two models, and on several processes: as of one file, read by one process."""

import contextlib
import json
import os
import pathlib
import signal
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from measure_xent.cli import main
from measure_xent.cli.dataset import find, open_dataset, paired, parts
from measure_xent.cli.predictions import Names
from measure_xent.cli.terminal import CommandError
from measure_xent.cli.totals import Scoring

rng = np.random.default_rng(0)
N, V = 300, 4
Z = (2 * rng.normal(size=(N, V))).astype(np.float32)
Y = rng.integers(V, size=N)
W, G = rng.choice([0.0, 0.5, 2.0], N), rng.choice(["a", "b"], N)
CUTS = [0, 70, 71, 180, N]
TINY = ("--block", "0.0005")  # of some thirty rows


def write(path, rows=slice(None), z=Z, y=Y, more=True):
    arrays = {"logits": z[rows], "labels": y[rows]} | ({"weights": W[rows], "groups": G[rows]} if more else {})
    if path.suffix == ".npz":
        (np.savez_compressed if "small" in path.name else np.savez)(path, **arrays)
    else:
        logits = arrays.pop("logits")
        table = pa.table({f"logit_{c}": logits[:, c] for c in range(V)} | arrays)
        parquet.write_table(table, path, row_group_size=25) if path.suffix == ".parquet" else csv.write_csv(table, path)
    return path


def split(folder, suffixes=(".npz",) * 4, **how):
    folder.mkdir(exist_ok=True)
    cuts = zip(CUTS, CUTS[1:], suffixes, strict=False)
    return [write(folder / f"part-{i}{s}", slice(a, b), **how) for i, (a, b, s) in enumerate(cuts)]


def score(capsys, *arguments):
    status = main(["score", *map(str, arguments), "--json", *TINY])
    out, err = capsys.readouterr()
    return status, json.loads(out) if out else None, err


def same(a, b, rtol=1e-12):
    """Reports, but for where they are from."""
    assert a.keys() == b.keys()
    for key, value in a.items():
        if key in ("files", "compare"):
            continue
        if isinstance(value, dict):
            same(value, b[key], rtol)
        elif isinstance(value, str):
            assert value == b[key]
        else:
            np.testing.assert_allclose(np.array(value, float), np.array(b[key], float), rtol=rtol, err_msg=key)


def test_files_are_one_data_set(tmp_path, capsys):
    """Globs, folders and URLs, of one kind of file; of several, where these say the same."""
    _, whole, _ = score(capsys, write(tmp_path / "whole.npz"))
    files = split(tmp_path / "npz")
    (tmp_path / "npz" / "_SUCCESS").touch()
    write(tmp_path / "npz" / "_left.npz")
    folder = tmp_path / "npz"
    for how in (files, [folder], [f"{folder}/part-?.npz"], [f"file://{folder}"], [f"file://{folder}/part-*.npz"]):
        status, report, err = score(capsys, *how)
        assert status == 0, err
        same(whole, report)
        assert len(report["files"]) == 4
    for suffixes in ((".parquet",) * 4, (".csv", ".parquet", ".csv", ".parquet")):
        name = "-".join(s[1:] for s in suffixes)
        status, report, err = score(capsys, *split(tmp_path / name, suffixes))
        assert status == 0, err
        same(whole, report, rtol=1e-6)  # decimals of a csv


def test_urls(tmp_path, capsys):
    from upath import UPath

    whole = write(tmp_path / "whole.npz")
    for suffix in (".npz", ".parquet", ".csv"):
        for path in split(tmp_path / suffix[1:], (suffix,) * 4):
            UPath(f"memory://{suffix[1:]}/{path.name}").write_bytes(path.read_bytes())
        _, report, err = score(capsys, f"memory://{suffix[1:]}/*{suffix}")
        assert report is not None, err
        same(score(capsys, whole)[1], report, rtol=1e-6)
        assert report["files"][0] == f"memory://{suffix[1:]}/part-0{suffix}"
    assert "memory://nothing/a.npz" in score(capsys, "memory://nothing/a.npz")[2]
    assert "nosuch://a.npz: " in score(capsys, "nosuch://a.npz")[2]


def test_what_is_no_data_set(tmp_path, capsys):
    files = split(tmp_path / "a")
    said = lambda *how: score(capsys, *how)[::2]
    (tmp_path / "empty").mkdir()
    for how, words in (
        ([tmp_path / "empty"], "a folder without .npz"),
        ([tmp_path / "a" / "*.parquet"], "no file is named so"),
        ([files[0], tmp_path / "a"], "part-0.npz: given twice"),
        ([], "either FILE, one or more, or --compare A B"),
        ([files[0], "--compare", *files[:2]], "either FILE, one or more, or --compare A B"),
        ([files[0], "--workers", 2, "--scheduler", "tcp://127.0.0.1:1"], "either --workers"),
    ):
        status, err = said(*how)
        assert status == 1
        assert words in err
    np.savez(tmp_path / "wide.npz", logits=np.zeros((3, 7)), labels=np.zeros(3, int))
    np.savez(tmp_path / "probs.npz", probs=np.full((3, V), 1 / V), labels=np.zeros(3, int))
    assert f"wide.npz: its classes are 7, and those of {files[0]} 4" in said(files[0], tmp_path / "wide.npz")[1]
    assert "probs.npz: its kind are probs" in said(files[0], tmp_path / "probs.npz")[1]


def test_bad_rows_are_named_by_their_file(tmp_path, capsys):
    z, y = Z.copy(), Y.copy()
    z[[3, 100], 0], y[[181, 182]] = np.nan, V
    files = split(tmp_path / "a", z=z, y=y, more=False)
    status, report, err = score(capsys, *files)
    assert (status, report) == (1, None)
    assert "4 files" in err
    assert "of 300 rows, counted from 0 in each file" in err
    assert f"2 NaN in the predictions: {files[0]} rows 3; {files[2]} rows 29" in err
    assert f"2 labels outside the classes: {files[3]} rows 1, 2" in err


def test_words_of_several_files(tmp_path, capsys):
    """The classes are those of all files, though one may lack some."""
    words = np.array(["ant", "bee", "cat", "dog"])
    order = np.argsort(Y, kind="stable")
    whole = score(capsys, write(tmp_path / "a.npz", order, more=False))[1]
    by_class = {words[int(c)]: s for c, s in whole["by_class"].items()}
    files = split(tmp_path / "w", z=Z[order], y=words[Y[order]], more=False)
    same(by_class, score(capsys, *files)[1]["by_class"])
    tables = split(tmp_path / "t", (".parquet", ".csv", ".parquet", ".csv"), z=Z[order], y=words[Y[order]], more=False)
    same(by_class, score(capsys, *tables)[1]["by_class"], rtol=1e-6)


@pytest.mark.parametrize("suffixes", [(".npz",) * 4, (".parquet",) * 4, (".npz", ".csv", ".parquet", ".small.npz")])
def test_parts_have_every_row_once(tmp_path, suffixes):
    """However many they are, of one set or of two whose reading may begin elsewhere; the bytes are those of the files."""
    suffixes = [f"-small{s[6:]}" if "small" in s else s for s in suffixes]
    one = open_dataset([*map(str, split(tmp_path / "one", suffixes))], Names(), 1000)
    two = open_dataset([str(write(tmp_path / "two.parquet"))], Names(), 900)
    for sets in ([one], [one, two]):
        for n in (1, 2, 3, 7, 50, 1000):
            shares = parts(sets, n)
            assert len(shares) <= n
            for i, data in enumerate(sets):
                got = [block for _, pieces in shares for block in data.reading.blocks(pieces[i])]
                np.testing.assert_array_equal(np.concatenate([b.labels for b in got]), Y)
                np.testing.assert_allclose(np.concatenate([b.predictions for b in got]), Z, rtol=1e-6)
            assert sum(size for size, _ in shares) <= sum(d.size for d in sets)
            for _, pieces in shares if len(sets) == 2 else ():
                blocks = paired(*(data.reading.blocks(own) for data, own in zip(sets, pieces, strict=True)))
                assert all(np.array_equal(a.labels, b.labels) for a, b in blocks)
    if suffixes[0] == suffixes[1] == ".npz":
        assert len(parts([one], 50)) == 50


def differences(z, rows=slice(None)):
    """Of two models' rows, by hand: (mean, half of the interval) of nats and of accuracy."""
    nats = lambda z: np.log(np.exp(z.astype(float)).sum(-1)) - z[np.arange(N), Y]
    right = lambda z: (z.argmax(-1) == Y).astype(float)
    w = W * (np.isin(np.arange(N), np.arange(N)[rows]))
    for f in (nats, right):
        d = f(z) - f(Z)
        mean = (w * d).sum() / w.sum()
        yield mean, 1.959964 * np.sqrt((w**2 * (d - mean) ** 2).sum()) / w.sum()


def test_two_models_on_the_same_rows(tmp_path, capsys):
    """Weights and groups may be one model's alone; files and blocks need not be the same."""
    z = (Z + rng.normal(size=Z.shape)).astype(np.float32)
    a = split(tmp_path / "a")
    b = write(tmp_path / "b.parquet", z=z, more=False)
    _, report, err = score(capsys, "--compare", tmp_path / "a", b)
    assert report is not None, err
    assert report["compare"] == {"a": [*map(str, a)], "b": [str(b)]}
    parts_of = {"overall": slice(None), "a": G == "a", "b": G == "b"} | {str(c): c == Y for c in range(V)}
    got = {"overall": report["overall"], **report["by_group"], **report["by_class"]}
    assert got.keys() == parts_of.keys()
    for name, rows in parts_of.items():
        for what, (mean, half) in zip(("nats", "accuracy"), differences(z, rows), strict=True):
            figure = got[name]["difference"]
            np.testing.assert_allclose(figure[what], mean, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(figure[f"{what}_interval"], [mean - half, mean + half], rtol=1e-4, atol=1e-6)
    same(score(capsys, tmp_path / "a")[1]["overall"], report["overall"]["a"], rtol=1e-6)
    np.savez(tmp_path / "b.npz", logits=z, labels=Y, weights=W)
    same(score(capsys, tmp_path / "b.npz")[1]["overall"], report["overall"]["b"], rtol=1e-6)
    assert main(["score", "--compare", str(tmp_path / "a"), str(b), "--plot", str(tmp_path / "r.png")]) == 0
    out = capsys.readouterr().out
    assert "nats B − A" in out
    assert "group a" in out
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared(tmp_path, capsys):
    a = write(tmp_path / "a.npz")
    y, w = Y.copy(), W.copy()
    y[205], w[31] = (Y[205] + 1) % V, 7
    np.savez(tmp_path / "wide.npz", logits=np.zeros((N, 7)), labels=Y)
    cases = {
        write(tmp_path / "y.npz", y=y): "for labels at row 205",
        write(tmp_path / "short.npz", slice(0, 299)): "more rows than the other has, from row 299 on",
        tmp_path / "wide.npz": "has 4 classes",
    }
    for b, words in cases.items():
        status, report, err = score(capsys, "--compare", a, b)
        assert (status, report) == (1, None)
        assert words in err
    np.savez(tmp_path / "w.npz", logits=Z, labels=Y, weights=w)
    assert "has 7.0 for weights at row 31" in score(capsys, "--compare", tmp_path / "w.npz", a)[2]
    z = Z.copy()
    z[5, Y[5]] = -np.inf
    w = W.copy()
    w[5] = 1
    both = [tmp_path / "p.npz", tmp_path / "q.npz"]
    for path in both:
        np.savez(path, logits=z, labels=Y, weights=w)
    difference = score(capsys, "--compare", *both)[1]["overall"]["difference"]
    assert difference["nats"] is None  # of two infinite losses there is no difference
    assert difference["accuracy"] == 0
    np.savez(both[1], logits=Z, labels=Y, weights=w)
    assert score(capsys, "--compare", *both)[1]["overall"]["difference"]["nats"] == "-inf"


class Dying(Scoring):
    """One worker, or every one, is lost while it is at a part."""

    def total(self, part, done=lambda _: None):
        flag = pathlib.Path(os.environ["DYING"])
        if flag.name == "always" or not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Scoring.total(self, part, done)


@pytest.mark.long
def test_workers(tmp_path, capsys, monkeypatch):
    """The same figures; an error of one ends the run; at a scheduler's address; a part whose worker is lost is done again."""
    import cloudpickle
    from dask import config
    from distributed import LocalCluster

    from measure_xent.cli import cluster

    files = split(tmp_path / "a", (".parquet", ".npz", ".csv", ".npz"))
    b = write(tmp_path / "b.npz", z=-Z)
    here = [score(capsys, *files), score(capsys, "--compare", tmp_path / "a", b)]
    for one, arguments in zip(here, (files, ["--compare", tmp_path / "a", b]), strict=True):
        status, report, err = score(capsys, *arguments, "--workers", 2)
        assert status == 0, err
        same(one[1], report, rtol=1e-6)  # blocks of other sizes are other programs, in float32
    z = Z.copy()
    z[200] = np.nan
    broken = write(tmp_path / "broken.npz", z=z)
    assert "1 NaN in the predictions: rows 200" in score(capsys, broken, "--workers", 2)[2]
    (tmp_path / "ragged.csv").write_text("label,logit_0,logit_1\n" + 60 * "0,1.0,2.0\n" + "1,3.0\n")
    status, report, err = score(capsys, tmp_path / "ragged.csv", "--workers", 2)
    assert (status, report) == (1, None)
    assert "ragged.csv" in err

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    data = open_dataset([*map(str, files)], Names(), 500)
    monkeypatch.setenv("DYING", str(tmp_path / "once"))
    dying = Dying((data.reading,), (data.kind,), -100, 5, 15)
    shares = parts([data], 6)
    with (
        contextlib.closing(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")) as made,
        cluster.cluster(None, made.scheduler_address) as client,
    ):
        totals = cluster.total(client, dying, shares, lambda _: None)
        assert (tmp_path / "once").exists()
        whole = dying._replace().total(parts([data], 1)[0][1])
        np.testing.assert_allclose(totals.overall.moments, whole.overall.moments, rtol=1e-6)
        status, report, err = score(capsys, *files, "--scheduler", made.scheduler_address)
        assert status == 0, err
        same(here[0][1], report, rtol=1e-6)
    monkeypatch.setenv("DYING", str(tmp_path / "always"))
    with (
        config.set({"distributed.scheduler.allowed-failures": 0}),
        cluster.cluster(1, None) as client,
        pytest.raises(CommandError, match="lost again and again"),
    ):
        cluster.total(client, dying, shares[:1], lambda _: None)
    monkeypatch.setattr(cluster, "STARTING", 1)
    assert "--scheduler tcp://127.0.0.1:1: " in score(capsys, *files, "--scheduler", "tcp://127.0.0.1:1")[2]


def test_parts_that_are_empty(tmp_path, capsys):
    """A part without rows is none; all of them so are told of."""
    whole = score(capsys, write(tmp_path / "a.npz"))[1]
    for suffix in (".npz", ".parquet", ".csv"):
        empty = write(tmp_path / f"empty{suffix}", slice(0, 0))
        for order in ([empty, write(tmp_path / f"a{suffix}")], [tmp_path / f"a{suffix}", empty]):
            status, report, err = score(capsys, *order)
            assert status == 0, err
            same(whole, report, rtol=1e-6)
        assert "no rows" in score(capsys, empty)[2]
    none = {"weights": np.zeros(0), "groups": np.zeros(0, int), "labels": np.zeros(0, int)}
    parquet.write_table(pa.table({"logits": pa.array([], pa.list_(pa.float32())), **none}), tmp_path / "lists.parquet")
    same(whole, score(capsys, tmp_path / "lists.parquet", tmp_path / "a.npz")[1])


def test_groups_and_weights_of_several_files(tmp_path, capsys):
    """Equal groups are one, whatever they are stored as; one without rows that count is none; what only some have is told."""
    for name, groups in (("int", np.zeros(N, int)), ("str", np.array(["0"] * N)), ("bytes", np.array([b"0"] * N))):
        np.savez(tmp_path / f"{name}.npz", logits=Z, labels=Y, groups=groups)
    files = [tmp_path / f"{name}.npz" for name in ("int", "str", "bytes")]
    assert {k: v["rows"] for k, v in score(capsys, *files)[1]["by_group"].items()} == {"0": 3 * N}
    assert score(capsys, "--compare", *files[:2])[1]["by_group"]["0"]["difference"]["nats"] == 0
    np.savez(tmp_path / "null.npz", logits=Z, labels=Y, groups=G, weights=1.0 * (G == "b"))
    assert set(score(capsys, tmp_path / "null.npz")[1]["by_group"]) == {"b"}
    assert main(["score", str(tmp_path / "null.npz")]) == 0
    capsys.readouterr()
    plain = write(tmp_path / "plain.npz", more=False)
    assert f"{files[0]} has groups, and {plain} has none" in score(capsys, files[0], plain)[2]
    (tmp_path / "same.npz").symlink_to(plain)
    assert "given twice" in score(capsys, plain, tmp_path / "same.npz")[2]
    np.savez(tmp_path / "w32.npz", logits=Z, labels=Y, weights=(W / 3).astype(np.float32))
    np.savez(tmp_path / "w64.npz", logits=Z, labels=Y, weights=W / 3)
    assert score(capsys, "--compare", tmp_path / "w32.npz", tmp_path / "w64.npz")[0] == 0


def test_numbers_that_the_first_block_does_not_tell_of(tmp_path, capsys):
    """Probabilities that are all 0 and 1 at first; ones that float32 does not hold; blocks of any size."""
    n = 20000
    first = np.tile([1.0, 0.0], (n, 1))
    p = np.concatenate([first, [[0.25, 0.75], [1e-60, 1.0], [1e-40, 1.0]]])
    y = np.zeros(n + 3, int)
    lines = ["prob_0,prob_1,label", *("1,0,0" for _ in range(n)), "0.25,0.75,0", "1e-60,1,0", "1e-40,1,0"]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    np.savez(tmp_path / "a.npz", probs=p, labels=y)
    expected = -np.log([0.25, 1e-60, 1e-40]).sum() / (n + 3)
    for name in ("a.csv", "a.npz"):
        for block in ("1e-5", "0.01", "100000"):
            assert main(["score", str(tmp_path / name), "--json", "--block", block]) == 0
            np.testing.assert_allclose(json.loads(capsys.readouterr().out)["overall"]["nats"], expected, rtol=1e-6)


def test_find_keeps_the_order_given(tmp_path):
    a, b = (write(tmp_path / name) for name in ("b.npz", "a.npz"))
    assert find([str(a), str(b)]) == [a, b]
    assert find([str(tmp_path)]) == [b, a]
    odd = write(tmp_path / "odd[1].npz")
    assert find([str(odd)]) == [odd]
