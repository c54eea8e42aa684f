"""Other people's figures, to set beside a results table; never this project's own."""

SOURCE = (
    "Published figures, not measured here: ViT-B/16 of OpenAI, 16 shots, average of the 11 benchmark datasets, three "
    "seeds. Re-runs: the AlignedNorm authors, mixed precision. They compare with the table above only for the same "
    "backbone and the same datasets."
)
HEADER = ["method", "base", "novel", "harmonic mean"]
BASE_TO_NOVEL = (
    ("CLIP", 69.34, 74.22, 71.70),
    ("CoOp", 82.69, 63.22, 71.66),
    ("MaPLe", 82.28, 75.14, 78.55),
    ("PromptSRC", 84.26, 76.10, 79.97),
    ("MMA", 83.20, 76.80, 79.87),
    ("MMRL", 85.68, 77.16, 81.20),
    ("MMRL, independent re-run", 85.71, 76.28, 80.72),
    ("MMRL++, independent re-run", 85.43, 77.79, 81.43),
)


def published(protocol: str) -> dict | None:
    """The figures that exist for a protocol, in percent, marked as published."""
    if protocol != "base-to-novel":
        return None
    rows = [dict(zip(("method", "base", "novel", "harmonic_mean"), row, strict=True)) for row in BASE_TO_NOVEL]
    return {"published": True, "source": SOURCE, "rows": rows}
