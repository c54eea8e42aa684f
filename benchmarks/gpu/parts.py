"""The parts in their order, what is right before what is fast, and the seconds that each may take."""

from benchmarks.gpu import correct, rates, speed
from benchmarks.gpu.run import Part

PARTS = {
    "golden": Part(correct.golden, 40),
    "graphs": Part(correct.graphs, 60),
    "precisions": Part(correct.precisions, 45),
    "resume": Part(correct.resume, 45),
    "two-at-once": Part(correct.two_at_once, 60),
    "products": Part(speed.products, 30),
    "steps": Part(speed.steps, 120),
    "memory": Part(speed.memory, 120),
    "left-over": Part(speed.left_over, 40),
    "views": Part(rates.views, 45),
    "search": Part(rates.search, 90),
    "evaluation": Part(rates.evaluation, 45),
    "serving": Part(rates.serving, 45),
}
