"""Figures: functions that take arrays and tables and return a matplotlib figure. None trains, loads or encodes."""

from otclib.figures.pairs import by_artist, contact_sheet, planted_caption, planted_pairs, rematched, trigger, triggers
from otclib.figures.systems import ablation, attack_grid, by_epoch, comparison, dose, each_attack, lookalikes, worlds
from otclib.figures.training import assignments, distance_bands, learning_curves, separation, two_curves
from otclib.figures.transport import bounds, grounding, matching_speed, reg_sweep, word_overlays

__all__ = [
    "ablation",
    "assignments",
    "attack_grid",
    "bounds",
    "by_artist",
    "by_epoch",
    "comparison",
    "contact_sheet",
    "distance_bands",
    "dose",
    "each_attack",
    "grounding",
    "learning_curves",
    "lookalikes",
    "matching_speed",
    "planted_caption",
    "planted_pairs",
    "reg_sweep",
    "rematched",
    "separation",
    "trigger",
    "triggers",
    "two_curves",
    "word_overlays",
    "worlds",
]
