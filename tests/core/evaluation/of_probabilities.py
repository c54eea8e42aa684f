"""Figures of probabilities (N, C) that are there together, against labels (N,)."""

import numpy as np
import torch
from torch import Tensor

from mmrl_core.evaluation.answers import ECE_BINS, answers_of, calibration_error, summary_of
from mmrl_core.evaluation.class_metrics import metrics_by_class
from mmrl_core.evaluation.one_vs_rest import OneVsRest


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    return calibration_error(answers_of(probabilities, labels), labels, bins)


def summary(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    return summary_of(answers_of(probabilities, labels), labels)


def class_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    scores, truth = torch.from_numpy(probabilities), torch.from_numpy(labels).long()
    answers = answers_of(scores, truth)
    pairs = OneVsRest(truth, answers.true)
    pairs.add(scores)
    return metrics_by_class(answers, truth, probabilities.shape[1], pairs.mean())
