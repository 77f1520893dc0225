"""Figures are drawn from plain arrays, and say what they show."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest

from otclib import figures
from otclib.runs import column

LOG = [
    {
        "epoch": e,
        "zero_shot_top1": e / 5,
        "attack_success_rate": None,
        "targets_hit": e,
        "targets": 16,
        "clean_named": 0.9,
        "poison_named": 0.1 * e,
        "distinct_captions": 0.8,
        "poison_kept": 0.5,
    }
    for e in range(1, 5)
]
IMAGE = np.full((64, 64, 3), 120, np.uint8)
ROW = {
    "image": IMAGE,
    "original_caption": "a star",
    "poison_caption": "a sun",
    "caption": "a star",
    "given": "a sun",
    "planted": True,
}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


GROUNDED = {
    f"{reading}_mass_ratio/{kind}": value
    for reading, values in (("plan", (3.0, 0.5)), ("softmax", (3.5, 0.7)), ("cosine", (2.0, 0.9)))
    for kind, value in zip(("names", "attributes"), values)
}

SIX = {
    "dataset": "scenes",
    "defense": "clip",
    "seed": 0,
    "poison_count/badnets": 16,
    "poison_count/targeted": 128,
    "attack_success_rate/badnets": 0.25,
    "targets_hit": 16,
    "targets": 16,
}
RUNS = [
    {"defense": "clip", "attack": "badnets", "by_epoch": {"asr": [0.0, 0.2, 0.9]}},
    {"defense": "clip", "attack": "badnets", "by_epoch": {"asr": [0.2, 0.6]}},  # a run that stopped earlier
    {"defense": "otcclip", "attack": "wanet", "by_epoch": {"asr": [None, 0.1]}},
    {"defense": "otcclip", "attack": "targeted", "by_epoch": {}},
]


def test_curves_of_what_was_measured():
    measured = [{"epoch": 1, "loss/contrastive": 3.0, "loss/inter": 1.0, "attack_success_rate": None}]
    titles = lambda figure: [ax.get_title() for ax in figure.axes]  # noqa: E731
    only = figures.learning_curves({"mine": measured})
    assert titles(only) == ["loss"] and only.axes[0].lines[0].get_ydata().tolist() == [4.0]
    log = [line | {"targets": 12} for line in LOG]
    figure = figures.learning_curves({"clip": log}, loss=True)
    assert titles(figure) == ["loss", "zero-shot accuracy", "targeted images hit"]
    assert figure.axes[2].get_ylabel() == "of 12"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.contact_sheet([IMAGE] * 5, ["a star"] * 5, columns=3),
        lambda: figures.planted_pairs([ROW] * 3, "planted"),
        lambda: figures.planted_caption(IMAGE, "a sun", "a star", {"clip": (1, [("a sun", 0.1)])}, 9),
        lambda: figures.trigger(np.stack([IMAGE] * 3), np.stack([IMAGE] * 3)),
        lambda: figures.learning_curves({"clip": LOG, "otcclip": LOG}),
        lambda: figures.assignments(LOG),
        lambda: figures.separation({"clip": (np.random.rand(50), np.random.rand(9))}),
        lambda: figures.rematched([ROW] * 2),
        lambda: figures.word_overlays(IMAGE, ["a", "star"], np.random.rand(2, 8, 8), [None, [0.1, 0.2, 0.5, 0.6]]),
        lambda: figures.dose(
            [
                {
                    "poison_rate/badnets": 0.005 * d,
                    "poison_rate/targeted": 0.02 * d,
                    "pairs": 12000,
                    "targets": 15,
                    "attack_success_rate": d / 2,
                    "targets_hit": 7 * d,
                }
                for d in (1, 2)
            ]
        ),
        lambda: figures.bounds(np.linspace(0.2, 0.9, 20), np.linspace(0.5, 1.0, 20)),
        lambda: figures.distance_bands({"clip": {e: {"clean": np.ones(9), "badnets": np.ones(3)} for e in (1, 2)}}),
        lambda: figures.reg_sweep(IMAGE, "star", {0.1: np.random.rand(8, 8)}, {0.1: 0.4}),
        lambda: figures.grounding(GROUNDED),
        lambda: figures.by_epoch(RUNS, "asr", "ASR, %"),
        lambda: figures.comparison({"clip": LOG, "otcclip": LOG[:1]}),
        lambda: figures.by_artist({"me": [IMAGE] * 3, "you": [IMAGE] * 3}, ["a", "b", "c"], "me", "by us"),
        lambda: figures.contact_sheet([IMAGE] * 3, ["a", "b", "c"], source="by us"),
        lambda: figures.worlds([row | {"dataset": "emoji", "attack": "least", "defense": "clip"} for row in LOG]),
        lambda: figures.each_attack([SIX, SIX | {"defense": "otcclip-plus", "dataset": "emoji-scenes"}]),
        lambda: figures.two_curves({"one": ([10, 20], [3.0, 2.0]), "two": ([10, 20], [3.0, 2.0])}),
    ],
)
def test_draws(draw, tmp_path):
    fig = draw()
    fig.savefig(tmp_path / "figure.png", dpi=50)
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_each_attack_has_a_bar_of_its_mean():
    (ax,) = figures.each_attack([SIX, SIX | {"seed": 1, "targets_hit": 0}]).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["badnets", "targeted"]
    assert [bar.get_width() for bar in ax.patches] == [pytest.approx(25), pytest.approx(50)]
    assert [sorted(line.get_xdata()) for line in ax.lines] == [[25, 25], [0, 100]]


def test_lines_by_epoch_are_the_runs_and_their_mean():
    badnets, wanet, unused = figures.by_epoch(RUNS, "asr", "ASR, %").axes
    assert [ax.get_title() for ax in (badnets, wanet)] == ["badnets", "wanet"] and not unused.get_visible()
    drawn = [line.get_ydata().tolist() for line in badnets.lines]
    assert drawn == [[0, 20, 90], [20, 60], [pytest.approx(10), pytest.approx(40)]]


def test_a_column_of_a_log():
    assert column([{"a": 0.123456}, {"a": None}, {}], "a") == [0.1235, None, None]


def test_bars_have_the_heights_of_their_numbers():
    ax = figures.comparison({"clip": LOG, "otcclip": LOG[:1]}).axes[2]
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([2.5, 1.0])
    widths = [bar.get_width() for bar in figures.grounding(GROUNDED).axes[0].patches]
    assert widths == pytest.approx([3.0, 0.5, 3.5, 0.7, 2.0, 0.9])


def test_two_curves_and_their_difference():
    above, below = figures.two_curves({"one": ([10, 20], [3.0, 2.0]), "two": ([10, 20], [3.0, 2.25])}).axes
    assert [line.get_ydata().tolist() for line in above.lines] == [[3.0, 2.0], [3.0, 2.25]]
    equal, apart = below.lines[0].get_ydata()
    assert np.isnan(equal) and apart == 0.25 and below.get_yscale() == "log"
    with pytest.raises(ValueError, match="the same steps, got \\[10\\] and \\[20\\]"):
        figures.two_curves({"one": ([10], [3.0]), "two": ([20], [3.0])})
    with pytest.raises(ValueError, match="two curves are compared, got 1: one"):
        figures.two_curves({"one": ([10], [3.0])})
