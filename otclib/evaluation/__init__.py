"""Evaluation: zero-shot accuracy, attack success, probes, retrieval and grounding of a trained model."""

from otclib.evaluation.attack_success import (
    Targets,
    attack_metrics,
    backdoor_z_score,
    backdoors,
    head_metrics,
    success_rate,
    trigger_metrics,
)
from otclib.evaluation.grounding import GROUNDING_REG, coverage, grounding, word_maps
from otclib.evaluation.probing import by_class, linear_probe, retrieval, separation
from otclib.evaluation.run import Watcher, default_watch, evaluate
from otclib.evaluation.zero_shot import Remembering, class_embeddings, classify, pooled

__all__ = [
    "GROUNDING_REG",
    "Remembering",
    "Targets",
    "Watcher",
    "attack_metrics",
    "backdoor_z_score",
    "backdoors",
    "by_class",
    "class_embeddings",
    "classify",
    "coverage",
    "default_watch",
    "evaluate",
    "grounding",
    "head_metrics",
    "linear_probe",
    "pooled",
    "retrieval",
    "separation",
    "success_rate",
    "trigger_metrics",
    "word_maps",
]
