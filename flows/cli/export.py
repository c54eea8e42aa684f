"""`mmrl export`: an adapter as an ONNX file for programs without PyTorch."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.class_list import ClassFile, ClassNames, class_list, say_what_surprises
from flows.cli.options import DEFAULT_PARAMS, PATH, AsJson, ChampionOf, Overrides, ParamsFile, settings_of, show
from flows.project.outputs import atomic_output, check_out_path
from flows.project.progress import progress


def export(
    out: Annotated[Path, typer.Option("--out", help="Folder for model.onnx and model.json.", **PATH)],
    model: Annotated[str | None, typer.Option(help="Adapter folder or models:/NAME@ALIAS; default: champion.")] = None,
    dataset: ChampionOf = None,
    class_names: ClassNames = None,
    classes: ClassFile = None,
    params: ParamsFile = DEFAULT_PARAMS, set_: Overrides = [], json_: AsJson = False,
) -> None:  # fmt: skip
    """Write an ONNX file that labels images, compared with PyTorch."""
    from flows.registry import versions

    check_out_path(out, changed=True)
    class_names = class_list(class_names, classes)
    predictor = versions.open_predictor(settings_of(model, params, set_), model, dataset)
    say_what_surprises(predictor, class_names)
    from mmrl_core.export import STEPS, export_onnx

    with atomic_output(out) as path, progress("export", len(STEPS), what="step") as report:
        card = export_onnx(predictor, path, class_names, report)
    shown = {name: card[name] for name in ("opset", "largest_relative_difference", "files")}
    show({"classes": len(card["class_names"]), **shown}, json_, str(out))
    if not json_:
        print("next: onnxruntime runs model.onnx; model.json says how an image becomes its input (examples/onnx_plain)")
