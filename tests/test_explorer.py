"""The transport explorer: its numbers against the library's, its widgets, its figure and its page."""

import base64
import gc
import io
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from browser import browser_page, needs_browser
from PIL import Image

import otclib
from otclib.explorer import EXACT, LAST, NOWHERE, Explorer, Panel, page, picture
from otclib.transport import sinkhorn


@pytest.fixture(scope="module")
def explorer(runs, poisoned):
    table, manifest = poisoned
    return Explorer(runs, table, manifest=manifest, pool=60)


@pytest.fixture
def panel(explorer):
    return Panel(explorer)


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_the_view_is_sinkhorns_plan(explorer, runs, poisoned):
    table, _ = poisoned
    network, preprocess, tokenizer = otclib.models.load(runs["otcclip"] / "model.safetensors")
    view = explorer.view(7, run="otcclip", reg=0.2)
    with torch.no_grad():
        image = otclib.models.encode_image(network, preprocess(table[7]["image"])[None])
        text = otclib.models.encode_text(network, tokenizer([table[7]["caption"]]))
    solved = sinkhorn(1 - image.tokens[0] @ text.tokens[0].T, None, text.mask[0].float(), reg=0.2)
    assert view.cost == pytest.approx(float(solved.cost), abs=1e-5)
    assert " ".join(view.words) == table[7]["caption"]
    spans = otclib.models.word_spans(tokenizer, table[7]["caption"])
    expected = torch.stack([solved.plan[:, s.first : s.last].sum(1) for s in spans], 1)
    np.testing.assert_allclose(view.plan, expected, atol=1e-5)
    np.testing.assert_allclose(view.plan.sum(0), view.weights, atol=2e-4)
    np.testing.assert_allclose(view.plan.sum(1), 1 / 64, atol=2e-4)
    assert view.weights.sum() == pytest.approx(1.0)
    assert view.maps().shape == (len(view.words), 8, 8)
    assert view.maps()[0].sum() == pytest.approx(1.0, abs=1e-3)
    assert view.maps()[0, 1, 2] == pytest.approx(view.plan[10, 0] / view.weights[0])  # row 1, column 2
    assert view.cosine == pytest.approx(float(1 - image.pooled[0] @ text.pooled[0]), abs=1e-5)


def test_words_may_stay_at_home(explorer):
    exact, free = explorer.view(7), explorer.view(7, unbalanced=0.02)
    assert free.plan.sum() != pytest.approx(1.0, abs=1e-3) or np.abs(free.plan.sum(0) - free.weights).max() > 1e-3
    assert np.abs(exact.plan.sum(0) - exact.weights).max() < 1e-3


def test_the_ranking_is_that_of_all_pairs(explorer, runs, poisoned):
    table, _ = poisoned
    view = explorer.view(3, run="clip", reg=0.2, top=4)
    network, preprocess, tokenizer = otclib.models.load(runs["clip"] / "model.safetensors")
    captions = [*dict.fromkeys([*explorer.pool, table[3]["caption"]])]
    with torch.no_grad():
        image = otclib.models.encode_image(network, preprocess(table[3]["image"])[None])
        text = otclib.models.encode_text(network, tokenizer(captions))
    cosine = (1 - image.pooled @ text.pooled.T)[0]
    cost = sinkhorn(1 - image.tokens @ text.tokens.transpose(1, 2), None, text.mask.float(), reg=0.2, tol=1e-6).cost
    for name, distance in (("cosine", cosine), ("transport", cost)):
        rank, nearest = view.ranking[name]
        order = distance.argsort()
        assert [d for _, d in nearest] == pytest.approx(distance[order[:4]].tolist(), abs=2e-3)
        own = distance[captions.index(table[3]["caption"])]
        assert abs(rank - 1 - int((distance < own).sum())) <= 1, "ties within rounding apart"
    assert view.ranking["cosine"][1][0][0] == captions[int(cosine.argmin())]


def test_epochs_and_runs(explorer, runs, poisoned):
    assert list(explorer.checkpoints["clip"]) == [LAST]
    assert list(explorer.checkpoints["otcclip"]) == ["1", LAST], "the last epoch's weights are the run's"
    first, last = explorer.view(2, run="otcclip", epoch="1"), explorer.view(2, run="otcclip")
    assert np.abs(first.plan - last.plan).max() > 1e-4
    again = explorer.view(2, run="otcclip", epoch="1")
    np.testing.assert_array_equal(first.plan, again.plan)
    alone = Explorer(runs["otcclip"] / "epochs" / "01.safetensors", poisoned[0], pool=10).view(2)
    np.testing.assert_allclose(alone.plan, first.plan, atol=1e-6)


def test_any_open_clip_model(pairs):
    torch.manual_seed(0)
    explorer = Explorer("ViT-S-32-alt", pairs, pool=5, random=True)
    view = explorer.view(0, "a giraffe, never seen in the table", reg=0.3)
    assert view.grid == (7, 7) and view.image.shape == (224, 224, 3)
    assert view.words == ["a", "giraffe,", "never", "seen", "in", "the", "table"]
    assert view.weights[1] > view.weights[0], "a word of two tokens has twice a token's mass"
    assert picture.transport_view(view).axes


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"run": "nowhere"}, "no run 'nowhere': there are clip, otcclip"),
        ({"run": "clip", "epoch": "7"}, "clip has no epoch '7'"),
        ({"pair": 10_000}, "pair must lie in 0"),
        ({"caption": "  "}, "empty"),
        ({"caption": "a red zebrafish"}, "No caption of this table holds “zebrafish”"),
    ],
)
def test_what_cannot_be_shown(explorer, asked, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        explorer.view(**asked)


def test_what_cannot_be_explored(pairs, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights in"):
        Explorer(tmp_path, pairs)
    with pytest.raises(ValueError, match="empty table"):
        Explorer("small", pairs.select([]))
    with pytest.raises(ValueError, match="at least 1 caption"):
        Explorer("small", pairs, pool=0)
    for name in ("small", "ViT-S-32-alt"):
        with pytest.raises(ValueError, match=f"'{name}' names a model without weights.*random=True"):
            Explorer({"mine": name}, pairs)


def test_a_near_word_is_offered(explorer):
    known = sorted(explorer.vocabulary, key=len)[-1]
    assert known in explorer.unknown(f"a {known}x")
    assert not explorer.unknown(f"A {known.upper()}, .")


# -- widgets ---------------------------------------------------------------------------------------------------------


def pixels(panel):
    return np.asarray(Image.open(io.BytesIO(panel.picture.value)))


def test_every_widget_redraws(panel, explorer):
    moves = [
        (panel.reg, 0.02),
        (panel.unbalanced, 0.1),
        (panel.unbalanced, EXACT),
        (panel.run, "otcclip"),
        (panel.epoch, "1"),
        (panel.place, 20),
        (panel.place, NOWHERE),
        (panel.caption, explorer.captions[9]),
        (panel.word, lambda: (panel.word.value + 1) % len(panel.word.options)),
        (panel.pair, explorer.choices()[-1][1]),
    ]
    for widget, value in moves:
        before = pixels(panel)
        widget.value = value() if callable(value) else value
        after = pixels(panel)
        assert before.shape == after.shape and (before != after).any(), (widget.description, value)
        assert not panel.message.value and panel.milliseconds > 0


def test_the_picture_comes_first_and_is_not_held_up(panel, explorer, monkeypatch):
    """The nearest captions may need the whole pool encoded; a full garbage collection takes half a second."""
    said = []
    for widget, name in ((panel.picture, "picture"), (panel.nearest, "captions")):
        widget.observe(lambda _, name=name: said.append((name, gc.isenabled())), "value")
    rank = explorer._distances
    monkeypatch.setattr(explorer, "_distances", lambda *of: said.append("ranked") or rank(*of))
    panel.run.value, panel.epoch.value = "otcclip", "1"
    said.clear()
    panel.epoch.value = LAST
    assert said == [("picture", False), "ranked", ("captions", False)] and gc.isenabled()


def test_an_unknown_word_leaves_the_picture_and_says_so(panel):
    before = panel.picture.value
    panel.caption.value = "a <b>zebrafish</b>"
    assert "zebrafish" in panel.message.value and "<b>zebra" not in panel.message.value
    assert panel.picture.value == before
    panel.caption.value = panel.caption.options[-1]
    assert not panel.message.value and panel.picture.value != before


def test_a_click_on_the_picture_chooses(panel):
    """Points of the picture, in shares of its width and height: where the view draws the image, the plan, the words."""
    size = 8.4, 6.2

    def click(x, y):  # inches from the lower left
        panel._click(
            {"relativeX": 50 * x, "boundingRectWidth": 50 * size[0], "relativeY": 50 * (size[1] - y)}
            | {"boundingRectHeight": 50 * size[1]}
        )
        return panel.word.value, panel.place.value

    count = len(panel.view.words)
    before = panel.picture.value
    assert click(0.15 + 3.63 * 2.5 / 8, 1.8 + 3.63 * 6.5 / 8) == (panel.view.sharpest, 10)  # row 2, column 3
    assert panel.picture.value != before
    assert click(0.15 + 3.63 * 2.5 / 8, 1.8 + 3.63 * 6.5 / 8) == (panel.view.sharpest, NOWHERE)
    assert click(4.6, 1.8 + 3.63 * 0.5 / count) == (count - 1, NOWHERE)  # the last word beside the image
    assert click(5.1 + 2.6 * 40.5 / 64, 1.8 + 3.63 * (count - 0.5) / count) == (0, 40)  # the first row of the plan
    assert click(0.15 + 0.3, 0.5) == (0, 40) and click(8.3, 6.1) == (0, 40)


def test_a_planted_pair_is_marked_and_offers_both_captions(panel, explorer, poisoned):
    _, manifest = poisoned
    label, pair = explorer.choices()[0]
    assert label.startswith("planted: ") and panel.pair.value == pair
    row = next(row for row in manifest if row["id"] == explorer.pairs[pair]["id"])
    assert panel.caption.options[:2] == (row["poison_caption"], row["original_caption"])


def test_a_run_of_other_epochs(panel):
    panel.run.value = "otcclip"
    panel.epoch.value = "1"
    panel.run.value = "clip"
    assert panel.epoch.options == (LAST,) and panel.view.title == "clip"


# -- figure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["svg", "pdf"])
def test_the_figure_for_papers(explorer, tmp_path, suffix):
    figure = explorer.figure(4, reg=0.2)
    figure.savefig(tmp_path / f"plan.{suffix}")
    assert (tmp_path / f"plan.{suffix}").stat().st_size > 10_000


def test_the_figure_shows_the_plan(explorer):
    plt.close("all")
    view = explorer.view(4)
    figure = picture.transport_view(view, word=1, place=9)
    matrix = next(ax for ax in figure.axes if ax.get_xlabel().startswith("places"))
    np.testing.assert_array_equal(matrix.images[0].get_array(), view.plan.T)
    texts = [t.get_text() for ax in figure.axes for t in ax.texts]
    assert all(w in texts for w in view.words) and f"“{view.caption}”" in [t.get_text() for t in figure.texts]
    assert figure._repr_png_().startswith(b"\x89PNG") and not plt.get_fignums(), "shown without pyplot, and not kept"
    with pytest.raises(ValueError, match="word lies in 0"):
        picture.transport_view(view, word=99)
    with pytest.raises(ValueError, match="place in 0 ... 63"):
        picture.transport_view(view, place=64)


# -- page ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(explorer, tmp_path_factory):
    pair = explorer.choices()[0][1]
    file = tmp_path_factory.mktemp("page") / "plans.html"
    return page.write(explorer, file, [pair, 3], regs=(0.3, 0.1), marginals=(None, 0.1), progress=False), pair


def test_the_page_holds_the_plans(written, explorer):
    file, pair = written
    text = file.read_text()
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", text), "nothing is loaded from elsewhere"
    content = json.loads(re.search(r'id="content">(.*?)</script>', text, re.S).group(1))
    assert [c["kind"] for c in content["cases"]] == ["planted", "before planting", "clean"]
    assert content["runs"] == {"clip": [LAST], "otcclip": ["1", LAST]}
    packed = content["cases"][2]["plans"][1][1][0]  # otcclip after epoch 1, reg 0.1, exact marginals
    view = explorer.view(3, run="otcclip", epoch="1", reg=0.1)
    plan = np.frombuffer(base64.b64decode(packed["p"]), np.uint8).reshape(len(view.words), 64) / 255 * packed["most"]
    np.testing.assert_allclose(plan.T, view.plan, atol=view.plan.max() / 400)
    assert not list(file.parent.glob("*.part"))


def test_the_page_refuses_pairs_that_are_not_there(explorer, tmp_path):
    with pytest.raises(ValueError, match="pairs must be some of"):
        page.write(explorer, tmp_path / "plans.html", [10_000])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_browser
def test_the_pages_sliders_work(written):
    with browser_page() as view:
        errors = []
        view.on("pageerror", lambda error: errors.append(str(error)))
        view.goto(written[0].as_uri())
        drawn = [view.inner_html("#view")]
        for name in ("reg", "rho", "epoch"):
            view.focus(f"#{name}")
            view.keyboard.press("ArrowRight" if name == "rho" else "ArrowLeft")
            drawn.append(view.inner_html("#view"))
        view.click("#words button[aria-pressed=false] >> nth=0")
        drawn.append(view.inner_html("#view"))
        view.click(".place >> nth=20")
        assert view.inner_text("#place + output") == "row 3, column 5"
        drawn.append(view.inner_html("#view"))
        view.select_option("#case", "2")
        drawn.append(view.inner_html("#view"))
        assert not errors
        assert [a != b for a, b in zip(drawn, drawn[1:])] == [True] * 6
