"""Every metric once: its key in ``metrics.json`` and in the log, its label, its unit, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Metric:
    """A number that is measured. A share has the unit ``%``, and is stored as a number in [0, 1]."""

    key: str
    label: str
    unit: str = ""
    better: str = ""  # "higher" or "lower", or neither
    digits: int = 1
    short: str = ""  # in the one line of an epoch
    total: str = ""  # of an attack's success: the key of the number of images that it is measured on

    @property
    def factor(self) -> float:
        """From the stored number to the one that is shown."""
        return 100 if self.unit.startswith("%") else 1

    @property
    def title(self) -> str:
        """The label with its unit, as the head of a row or a column."""
        return f"{self.label}, {self.unit}" if self.unit else self.label

    def summary(self, values: Iterable[float | None], digits: int | None = None) -> str:
        """The mean of stored values, and their range if they differ; empty if there are none."""
        return summary(values, self.factor, self.digits if digits is None else digits)

    def shown(self, value: float) -> str:
        """One stored value with its unit."""
        return f"{self.factor * value:.{self.digits}f}" + (f" {self.unit}" if self.unit else "")


def summary(values: Iterable[float | None], factor: float = 1, digits: int = 1) -> str:
    """Return the values in words: ``mean (least to most)``, times ``factor``; only the mean if all are equal.

    None is left out, and no values give an empty text. Whole numbers (counts) have no decimals in their range.

    >>> summary([0.995, None, 0.97], factor=100)
    '98.2 (97.0 to 99.5)'
    >>> summary([15, 16, 16])
    '15.7 (15 to 16)'
    >>> summary([16, 16])
    '16'
    """
    there = [factor * v for v in values if v is not None]
    if not there:
        return ""
    ends = 0 if all(isinstance(v, int) for v in there) else digits  # counts are whole
    low, high = f"{min(there):.{ends}f}", f"{max(there):.{ends}f}"
    return low if low == high else f"{np.mean(there):.{digits}f} ({low} to {high})"


def paired(values: Sequence[float], others: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of ``values - others``, and its interval (mean, low, high) by Student's t.

    The two are measured on the same seeds, in the same order, so what a seed does to both cancels. One seed has no
    interval: its ends are infinite.

    >>> print("{:.2f} [{:.2f}, {:.2f}]".format(*paired([0.9, 0.8, 0.7], [0.8, 0.7, 0.5])))
    0.13 [-0.01, 0.28]

    Raises
    ------
    ValueError : they are not equally many, or there are none.
    """
    if not len(values) or len(values) != len(others):
        raise ValueError(f"paired values are equally many, at least one, got {len(values)} and {len(others)}")
    difference = np.subtract(values, others)
    mean, n = float(difference.mean()), len(difference)
    if n == 1:
        return mean, -np.inf, np.inf
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * difference.std(ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (low, high) of a rate of which ``successes`` in ``n`` trials were seen.

    The interval is two-sided, and its ends are shares in [0, 1]. It is not empty where no success was seen:

    >>> print("at most {:.2%}".format(wilson(0, 1946)[1]))
    at most 0.20%

    Raises
    ------
    ValueError : there is no trial, or ``successes`` does not lie between 0 and ``n``.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a rate has at least one trial and no more successes than trials, got {successes} of {n}")
    low, high = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(low), float(high)


def at_most(key: str, runs: Sequence[Mapping]) -> str:
    """Return, as text, the upper end of the 95 % Wilson interval of an attack's rate, over all images of all runs.

    It is rounded up to two digits. The text is empty if that is 100 %, for other metrics (without ``total``), and if a
    run lacks the value or the number of its images, as records of earlier code do. The interval takes the runs to have
    one rate. The range over seeds says whether they do.

    >>> at_most("attack_success_rate", [{"attack_success_rate": 0.0, "triggered_images": 1946}] * 3)
    '≤ 0.066 %'
    >>> at_most("targets_hit", [{"targets_hit": 1, "targets": 16}, {"targets_hit": 0, "targets": 16}])
    '≤ 16 %'
    """
    metric = of(key)
    counted = [(run.get(key), run.get(metric.total)) for run in runs]
    known = [(value, n) for value, n in counted if value is not None and n is not None]
    if not known or len(known) < len(counted):
        return ""
    successes = sum(round(value * n) if metric.unit else value for value, n in known)
    percent = 100 * wilson(successes, sum(n for _, n in known))[1]
    digits = max(0, 1 - math.floor(math.log10(percent)))
    bound = math.ceil(percent * 10**digits) / 10**digits
    return f"≤ {bound:.{digits}f} %" if bound < 100 else ""


_ALL = (
    Metric("zero_shot_top1", "zero-shot accuracy", "%", "higher", short="zero-shot"),
    Metric("attack_success_rate", "backdoor success (ASR)", "%", "lower", short="ASR", total="triggered_images"),
    Metric("untriggered_target_rate", "ASR without the trigger", "%"),
    Metric("clean_model_rate", "ASR on a clean model", "%"),
    Metric("triggered_top1", "triggered images still called what they show", "%", "higher"),
    Metric("clean_model_triggered_top1", "... called so by a clean model", "%"),
    Metric("test_images", "test images", "", digits=0),
    Metric("triggered_images", "triggered images of another class than the target", "", digits=0),
    Metric("targets_hit", "targeted images hit", "", "lower", total="targets"),
    Metric("targets", "targeted images", "", digits=0),
    Metric("targets_right", "targeted images called what they show", "", "higher"),
    Metric("clean_model_hits", "targeted images hit on a clean model", ""),
    Metric("backdoor_z_score", "backdoor z-score", "", "lower"),
    Metric("clean_model_z_score", "backdoor z-score of a clean model", ""),
    Metric("head_top1", "accuracy of the linear head", "%", "higher"),
    Metric("head_attack_success_rate", "ASR of the linear head", "%", "lower", total="triggered_images"),
    Metric("poison_auroc", "poison AUROC", "", "higher", 3),
    Metric("poison_recall", "poison flagged: recall", "", "higher", 2),
    Metric("poison_precision", "poison flagged: precision", "", "higher", 2),
    Metric("linear_probe/scenes", "linear probe, scenes", "%", "higher"),
    Metric("linear_probe/emoji-scenes", "linear probe, emoji scenes", "%", "higher"),
    Metric("linear_probe/emoji", "linear probe, emoji by group", "%", "higher"),
    Metric("linear_probe/test", "linear probe, test images", "%", "higher"),
    Metric("linear_probe/digits", "linear probe, digits", "%", "higher"),
    Metric("linear_probe/letters", "linear probe, letters", "%", "higher"),
    Metric("image_to_text_recall_at_1", "image-to-text R@1", "%", "higher"),
    Metric("text_to_image_recall_at_1", "text-to-image R@1", "%", "higher"),
    Metric("val_pairs", "pairs of the retrieval", "", digits=0),
    Metric("probe_images", "images on which the probe is tested", "", digits=0),
    Metric("located_words", "words whose object is located", "", digits=0),
    Metric("mass_chance", "pointing by chance", "%"),
    Metric("plan_pointing_accuracy", "plan pointing", "%", "higher"),
    Metric("cosine_pointing_accuracy", "cosine pointing", "%", "higher"),
    Metric("plan_mass_ratio", "plan mass on the object / chance", "", "higher", 2),
    Metric("plan_mass_ratio/names", "plan mass, names of objects alone / chance", "", "higher", 2),
    Metric("plan_mass_ratio/attributes", "plan mass, colours and sizes alone / chance", "", "higher", 2),
    Metric("cosine_mass_ratio", "cosine mass on the object / chance", "", "higher", 2),
    Metric("cosine_mass_ratio/names", "cosine mass, names of objects alone / chance", "", "higher", 2),
    Metric("seconds_per_epoch", "seconds per epoch", "", "lower", 0),
    Metric("core_seconds_per_epoch", "core-seconds per epoch", "", "lower", 0),
    Metric("seconds_total", "core-seconds in all", "", "lower", 0),
    Metric("seconds_until_safe", "core-seconds until accurate and safe", "", "lower", 0),
    Metric("poison_kept", "planted pairs kept", "%", "lower", short="poison kept"),
    Metric("clean_kept", "clean pairs kept", "%", "higher"),
    # followed while a run trains, in the log alone
    Metric("clean_left_out", "clean pairs left out", "%", "lower"),
    Metric("poison_left_out", "planted pairs left out", "%", "higher"),
)
METRICS = {metric.key: metric for metric in _ALL}


def of(key: str) -> Metric:
    """The metric of a key; a rate of one attack of several, ``attack_success_rate/<kind>``, as such.

    Raises
    ------
    KeyError : an unknown key.
    """
    if key in METRICS:
        return METRICS[key]
    name, slash, kind = key.rpartition("/")
    if slash and name == "poison_rate":
        return Metric(key, f"{kind} poison rate", "% of pairs", digits=2)
    if slash and name == "poison_count":
        return Metric(key, f"{kind} planted", "pairs", digits=0)
    if slash and name in METRICS:
        whole = METRICS[name]
        total = whole.total and f"{whole.total}/{kind}"
        return replace(whole, key=key, label=f"{whole.label}, {kind}", short="", total=total)
    raise KeyError(f"unknown metric {key!r}: there are {', '.join(METRICS)}")


def spoken(values: Mapping) -> list[str]:
    """Return the metrics that have a short label, each with its value, the targeted images that were hit, and the dose.

    >>> spoken({"zero_shot_top1": 0.98, "poison_count/badnets": 60, "poison_rate/badnets": 0.005})
    ['zero-shot 98.0 %', 'badnets planted 60 (0.50 %)']
    """
    words = [f"{m.short} {m.shown(values[m.key])}" for m in _ALL if m.short and values.get(m.key) is not None]
    words += [f"targets {values['targets_hit']}/{values['targets']}"] if "targets_hit" in values else []
    kinds = [key.removeprefix("poison_count/") for key in values if key.startswith("poison_count/")]
    return words + [
        f"{k} planted {values[f'poison_count/{k}']} ({100 * values[f'poison_rate/{k}']:.2f} %)" for k in kinds
    ]
