"""The page: its figures, its pictures, its safety; what it looks like was judged in a browser."""

import base64
import io
import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from sapp_cli.checkpoint.source import open_checkpoint
from sapp_cli.checkpoint.statistics import BlockStatistics
from sapp_cli.grid import BlockGrid, MatrixLayout
from sapp_cli.report.figures import keep_within_shares
from sapp_cli.report.gallery import EDGES, LONGEST_SIDE, Gallery, scaled_down
from sapp_cli.report.html import html_report
from sapp_cli.report.inspect import layer_facts
from sapp_cli.report.measure import measure
from sapp_cli.report.run import read_run
from sapp_cli.report.sparsity import LayerFacts
from tests.checkpoint.files import save_floats
from tests.report.outputs import MANIFEST, count_work, write_manifest, write_output
from tests.report.pages import Page, assert_self_contained

HOSTILE = 'x"><script>alert(1)</script><img src=x onerror=alert(1)>${{7*7}}.weight'


def page_of(path, name="out"):
    checkpoint, gallery = open_checkpoint(path), Gallery()
    report = measure(checkpoint, layer_facts(checkpoint, None), gallery.add)
    return html_report(name, report, gallery, read_run(checkpoint.folder))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return page_of(write_output(tmp_path_factory.mktemp("html") / "out"))


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_headline_figures(page):
    words = "".join(page.text.split())
    for figure in (
        "39 parameters; 1 of 2 prunable layers are pruned, with magnitude in 40 steps",
        "156 B → 112 B 1.4× smaller",
        "blocks removed 66.7 % 65.0 % requested, 1 pruned layer",
        "zeros in prunable weights 44.4 % of 36",
        "zeros in the whole model 43.6 % of 39",
        "accuracy (higher is better) 0.9700 → 0.9600 0.0100 worse",
        "loss (lower is better) 0.5000 → 0.4500 0.0500 better",
    ):
        assert "".join(figure.split()) in words


def test_the_table_is_a_table(page):
    assert page.rows == [
        ["layer", "sparsity", "target", "kept / blocks", "block", "shape", "dense", "block-sparse"],
        ["first.weight", "66.7 %", "65.0 %", "2 / 6", "2×2", "4×6", "96 B", "52 B"],
        ["second.weightrule 'second*'", "0.0 %", "–", "–", "–", "3×4", "48 B", "–"],
        ["blocks of pruned layers", "66.7 %", "", "", "", "", "96 B", "52 B"],
        ["all prunable weights", "44.4 %", "", "", "", "", "144 B", "100 B"],
        ["whole model", "43.6 %", "", "", "", "", "156 B", "112 B"],
    ]
    assert {attributes["scope"] for attributes in page.all("th")} == {"col", "row"}


def test_multiply_adds_and_shares_where_the_run_knows_them(tmp_path, text):
    page = Page(page_of(count_work(write_output(tmp_path / "out"))))
    assert [row[-2:] for row in page.rows] == [
        ["mult-adds", "share"],
        ["80of 240", "40.0 %"],  # 2 blocks of 4 entries, ten times
        ["120of 120", "60.0 %"],
        ["", ""],
        ["", ""],
        ["200of 360", ""],
    ]
    assert "multiply-adds of an example360 → 2001.8× fewer" in page.text.replace("\N{NO-BREAK SPACE}", " ").replace(
        "\n", ""
    )
    values = [attributes.get("data-value") for tag, attributes in page.tags if tag == "td"]
    assert values[7:9] == ["80", "0.4"]
    assert "ultiply-adds" not in text


def test_a_pixel_of_the_picture_is_a_block(page):
    (image,) = page.all("img")
    assert image["alt"] == "Kept blocks of first.weight: 2 of 6 blocks kept; 2×3 blocks of 2×2"
    assert (image["width"], image["height"], image["style"]) == ("3", "2", "aspect-ratio: 1.500")
    kind, data = image["src"].split(",")
    assert kind == "data:image/png;base64"
    opacity = imread(io.BytesIO(base64.b64decode(data)), format="png")[..., 3]
    assert opacity.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_drawings_are_named_and_described_and_take_their_colours_from_the_page(text, page):
    drawings = page.all("svg")
    assert len(drawings) == 6  # layers, run, norms; wide and narrow
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert set(drawing["aria-labelledby"].split()) <= page.ids
    assert "Phases: dense to step 10, sparse to step 40. Below on the same axis: loss, accuracy." in text
    assert not re.findall(r"#00000\d", text)
    used, defined = set(re.findall(r"var\((--[\w-]+)\)", text)), set(re.findall(r"(--[\w-]+):", text))
    assert used <= defined
    references = re.findall(r'(?:url\(#|href="#)([\w-]+)', text)
    assert references
    assert set(references) <= page.ids


def test_nothing_is_fetched_and_only_our_script_runs(text, page):
    assert_self_contained(text, page)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")


def test_hostile_names_are_text(tmp_path):
    out = write_output(tmp_path / "out", sparse=False)
    document = json.loads((out / "sparsity.json").read_text().replace("first.weight", json.dumps(HOSTILE)[1:-1]))
    document["layers"][1]["reason"] = HOSTILE
    (out / "sparsity.json").write_text(json.dumps(document))
    save_floats(out / "model.safetensors", **{HOSTILE: np.eye(4, 6), "second.weight": np.ones((3, 4))})
    metrics = {HOSTILE: MANIFEST["metrics"]["accuracy"], "ﷺ\u202e$x$": MANIFEST["metrics"]["loss"]}
    phases = [{"phase": HOSTILE, "round": 0, "first_step": 1, "last_step": 40}]
    write_manifest(out, metrics=metrics, method=HOSTILE, phases=phases)
    records = [{"step": step, "sparsity": 0.5, "loss": 1.0, "metrics": dict.fromkeys(metrics, 0.5)} for step in (1, 40)]
    (out / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    text = page_of(out, HOSTILE)
    page = Page(text)
    assert len(re.findall(r"<script", text)) == 1
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert len(page.all("img")) == 1
    assert HOSTILE in page.of["h1"]
    assert HOSTILE in page.of["tbody"]
    assert "\u202e" not in text


def test_the_same_checkpoint_gives_the_same_page(text, tmp_path):
    assert page_of(write_output(tmp_path / "out")) == text


def test_a_dense_checkpoint_has_its_norms_and_nothing_of_pruning(tmp_path):
    weights = {"a.weight": np.ones((32, 16)), "b.weight": np.full((16, 16), np.nan)}
    text = page_of(save_floats(tmp_path / "m.safetensors", **weights))
    page = Page(text)
    assert len(page.all("svg")) == 2
    assert not page.all("img")
    assert "All blocks of all layers" in page.text
    assert "Blocks with NaN or inf, in 1 layer, are left out." in page.text
    assert "2 blocks in 1 layer;" in text
    assert "no layer is pruned" in page.text


@pytest.mark.parametrize(
    "weights", [{}, {"bias": np.ones(3)}, {"a.weight": np.zeros((4, 4))}, {"a.weight": np.ones((0, 4))}]
)
def test_pages_of_almost_nothing(tmp_path, weights):
    Page(page_of(save_floats(tmp_path / "m.safetensors", **weights)))


def test_large_grids_are_averaged():
    kept = np.zeros((2 * LONGEST_SIDE + 1, 3), np.bool_)  # three rows to a cell, the last cell of one row
    kept[0, 0] = kept[1, 0] = kept[-1, 2] = True
    shares, factors = scaled_down(kept)
    assert factors == (3, 1)
    assert shares.shape == (65, 3)
    assert (shares[0].tolist(), shares[-1].tolist()) == ([2 / 3, 0, 0], [0, 0, 1])
    assert shares[1:-1].sum() == 0


def test_norms_are_those_of_the_kept_blocks():
    layout, grid = MatrixLayout("linear", (2, 3)), BlockGrid((2, 3), (1, 1))
    norms = np.array([[1, 2, 3], [0, np.inf, 1e-30]], np.float32)
    found = BlockStatistics(norms, norms != 0, 5, False)
    gallery = Gallery()
    gallery.add(LayerFacts("a", (2, 3), 4, True, None, "", layout, grid), found)
    view = gallery.views["a"]
    assert view.norms[2] == 1.5  # of 10⁻³⁰, 1, 2 and 3
    assert view.histogram.sum() == 4
    assert view.histogram[0] == 1  # what is below the first edge
    assert np.flatnonzero(view.histogram)[1:].tolist() == [
        np.searchsorted(EDGES, norm, "right") - 1 for norm in (1, 2, 3)
    ]
    assert not view.finite


def test_a_bar_says_which_layer_it_is(page):
    assert "first.weight: 66.7 % of 4×6" in page.of["title"]


def test_an_accuracy_has_no_room_above_1():
    def limits(values):
        axes = Figure().add_subplot()
        axes.plot(values)
        axes.margins(y=0.15)
        keep_within_shares(axes, values)
        return axes.get_ylim()

    assert limits([0.5, 0.99])[1] == 1.0
    assert limits([0.0, 0.5])[0] == 0.0
    assert limits([0.5, 1.5])[1] > 1.5
    assert limits([float("nan")])[1] > 0


def test_pictures_of_a_large_model_are_folded_by_kind_of_layer(tmp_path):
    half = np.kron(np.eye(4, dtype=np.float32), np.ones((16, 16), np.float32))
    names = [f"layer.{index}.{part}.weight" for index in range(13) for part in ("up", "down")]
    save_floats(tmp_path / "large.safetensors", **dict.fromkeys([*names, "head.weight"], half))
    page = Page(page_of(tmp_path / "large.safetensors"))
    assert page.of["summary"] == "layer.{0..12}.up.weight ×13layer.{0..12}.down.weight ×13"
    assert len(page.all("img")) == 27
