"""The commands of documents that a test runs, in an order in which each finds what it needs; who runs the others."""

import itertools
import json
import shutil
from pathlib import Path

from mmrl_core.data.embedded import digits
from tests.support.workspace import QUICK, make_workspace

# In place of what documents leave to the reader.
REAL = {
    "/where/the/class/folders/lie": "birds", "FOLDER": "birds", "/where/your/datasets/lie": "raw", "ROOT": "raw",
    "/new/pictures": "pictures", "PATH...": "pictures", "FILE": "file", "DIR": "onnx", "KEY": "digits", "M": "mmrl",
    "S": "16", "K": "1", "COMMAND": "train", "NAME@ALIAS": "digits-base-to-novel@champion",
    "REASON": "wrong on night shots",
}  # fmt: skip
NOT_DOCUMENTED = (  # as they are, but needed by what follows
    "mmrl fingerprint --training",
    "mmrl prepare --dataset digits --shots 16 --seed 1",
    "mmrl evaluate --dataset digits --method mmrl --shots 16 --seed 1",
    "mmrl evaluate-baselines --dataset digits --shots 16",
)
BY_NAME = "mmrl register --dataset digits --method linear_probe --shots 16 --seed 1"
FORCED = "mmrl promote --dataset digits --version 2 --force REASON"
STORY = (
    "mmrl --help",
    "mmrl --version",
    "mmrl COMMAND --help",
    "mmrl COMMAND -h",
    "mmrl init first",
    "mmrl upgrade",
    "mmrl datasets",
    "mmrl check",
    "mmrl check FOLDER",
    "mmrl check ROOT",
    "mmrl backbones",
    "mmrl backbones siglip",
    "mmrl backbones --refused",
    "mmrl backbones --markdown",
    "mmrl estimate",
    "mmrl estimate --set backbone.name=ViT-L-14 --classes 100 --batch 32 --device-memory 24GB",
    "mmrl fingerprint --dataset KEY",
    NOT_DOCUMENTED[0],
    "mmrl prepare --dataset KEY",
    NOT_DOCUMENTED[1],
    "mmrl tune --dataset KEY --method M",
    "mmrl train --dataset KEY --method M --shots S --seed K",
    NOT_DOCUMENTED[2],
    "mmrl fit-baselines --dataset KEY --shots S",
    NOT_DOCUMENTED[3],
    "mmrl summarize",
    "mmrl compare docs/demo.json --keep",
    "mmrl compare docs/demo.json",
    "mmrl register",
    "mmrl promote",
    BY_NAME,
    FORCED,
    "mmrl rollback REASON",
    FORCED,
    "mmrl rollback --dataset digits 'wrong on night shots'",
    "mmrl history",
    "mmrl reproduce digits-base-to-novel@champion --out again",
    "mmrl predict /new/pictures --out labels.csv --abstain",
    "mmrl predict PATH...",
    "mmrl predict pictures --out labels.csv",
    "mmrl predict pictures --abstain --class five --class six --out other.csv",
    "mmrl backup FILE",
    "mmrl clean",
    "mmrl clean --older-than 30d",
)
# Two images of EuroSAT are found and counted, and are not all of it: exit 2 says so.
EXIT = {"mmrl check": 2, "mmrl check ROOT": 2}
# As in STORY, but for a number or a name that is the reader's.
LIKE = {
    "mmrl init FOLDER": "mmrl init first",
    "mmrl register --dataset KEY --method M --shots S --seed K": BY_NAME,
    "mmrl promote --dataset digits --version 7 --force REASON": FORCED,
    "mmrl reproduce NAME@ALIAS --out DIR": "mmrl reproduce digits-base-to-novel@champion --out again",
    "mmrl compare FILE": "mmrl compare docs/demo.json",
}
# What takes long or needs servers: the test that runs it, and what of the command stands in that test.
PROTOCOLS, WHOLE = "tests/slow/test_protocols.py", "tests/slow/test_whole_story.py"
INSTALLED = "tests/slow/installed/test_installed.py"
CORE, FEATURES = "test_the_core_alone_adapts_predicts_and_exports", "test_the_core_alone_embeds_checks_and_lists"
SHIFTS = "test_domain_generalisation_is_another_evaluation_of_the_cross_dataset_adapter"
ELSEWHERE = {
    "mmrl flow adapt": ("tests/slow/conftest.py::adapted", '"flow", "adapt"'),
    "mmrl flow adapt --set data.protocol=joint": (
        f"{PROTOCOLS}::test_joint_asks_more_of_the_same_adapter_than_base_to_novel",
        '"flow", "adapt", "--set", "data.protocol=joint"',
    ),
    "mmrl flow adapt --set data.protocol=few-shot --set 'datasets=[objects]' --set 'shots=[1,2,4,8,16]' "
    "--set 'seeds=[1,2]' --set 'methods=[mmrlpp]' --set search.enabled=false --set train.epochs=10 "
    "--set train.lr=0.004 --set adapter.reg_weight=10": (
        f"{PROTOCOLS}::test_the_few_shot_protocol", "FEW_SHOT", "run_stages",
    ),
    "mmrl flow adapt --set data.protocol=cross-dataset --set 'datasets=[digits]' --set 'targets=[letters,objects]' "
    "--set 'shots=[16]'": (f"{PROTOCOLS}::{SHIFTS}", "CROSS", "run_stages"),
    "mmrl flow adapt --set data.protocol=domain-generalization "
    "--set 'targets=[digits_inverted,digits_noisy,digits_rotated,digits_outlines]'": (
        f"{PROTOCOLS}::{SHIFTS}", "SHIFTS", '"dvc", "repro"',
    ),
    "mmrl flow adapt --set 'datasets=[digits]' --set 'methods=[mmrlpp]' --set 'shots=[4]' --set 'seeds=[1]' "
    "--set search.enabled=false": (
        f"{INSTALLED}::guided", "first-ten-minutes.md",
    ),
    "mmrl flow serve --cron '0 2 * * *'": (
        "tests/slow/test_pipeline.py::test_a_served_flow_has_its_schedule_and_runs_when_it_is_triggered",
        "serve_adapt('0 2 * * *'",
    ),
    "mmrl serve": ("tests/support/serving.py::serve", '"serve"'),
    "mmrl serve --dataset digits": ("tests/support/serving.py::serve", '"serve"'),
    "mmrl serve --model models:/digits-base-to-novel@champion --port 9000": (
        f"{WHOLE}::traffic", '"--model"', "models:/",
    ),
    "mmrl serve --model models:/digits-base-to-novel@released": (f"{WHOLE}::traffic", '"--model"', "RELEASED"),
    "mmrl flow release": (
        "tests/slow/test_end_to_end.py::test_the_champion_is_released_once_and_the_history_says_how_it_came_to_be",
        '"flow release --json"',
    ),
    "mmrl export --out onnx": (
        "tests/flows/cli/test_export.py::test_without_a_name_the_champion_is_exported", '"export", "--out"',
    ),
    "mmrl export --out DIR": (
        "tests/flows/cli/test_export.py::test_without_a_name_the_champion_is_exported", '"export", "--out"',
    ),
    "mmrl init": ("tests/flows/scaffold/test_new.py::test_an_empty_folder_becomes_the_demo", '"init"'),
    "mmrl init birds --images /where/the/class/folders/lie": (
        "tests/flows/scaffold/test_new.py::test_images_are_found_and_written_into_settings_that_keep_their_comments",
        '"init", "project", "--images"',
    ),
    "mmrl predict new.png --model adapter": (f"{INSTALLED}::{CORE}", '"predict"', '"--model", "adapter"'),
    "mmrl export --model adapter --out exported": (f"{INSTALLED}::{CORE}", '"export", "--model", "adapter", "--out"'),
    "mmrl embed PATH... --out FILE": (f"{INSTALLED}::{FEATURES}", '"embed"', '"--out", "features.parquet"'),
    "mmrl embed photos --model adapter --out features.parquet": (
        "tests/flows/cli/test_embed.py::test_with_an_adapter_its_own_features_come_as_well", '"--model"',
    ),
    "mmrl drift": (
        "tests/flows/serving/test_metrics.py::test_the_command_says_whether_there_is_drift_by_its_exit_status_too",
        '"drift"',
    ),
    "mmrl restore FILE": (
        "tests/flows/maintenance/test_restore.py::test_a_lost_store_comes_back_whole_and_predicts", '"restore"',
    ),
    "mmrl backup FILE --upgrade-store": (
        "tests/flows/maintenance/test_backup.py::test_an_older_mlflows_store_is_saved_as_it_is_and_upgraded_only_when_told",
        "--upgrade-store",
    ),
    "mmrl import CHECKPOINT --out DIR --classes FILE": (
        "tests/flows/cli/test_cli.py::imports_clips_own_list", '"import"', '"--classes"', '"--out"',
    ),
}  # fmt: skip
READ_ONLY = {
    "mmrl pretrain --out DIR": "33 minutes",
    "mmrl --install-completion": "it writes into the shell's own files",
}  # parsed, and run by nobody


def make_place(folder: Path) -> Path:
    """A project with settings and nothing made yet, and what the reader brings: class folders, pictures, datasets."""
    make_workspace(folder, dvc=True, **QUICK | {"shots": [16], "baselines": ["linear_probe"]}, data={"root": "raw"})
    (folder / "docs").mkdir()
    source = digits.open_source()
    for item in source.train[::8]:
        _write(folder / "birds" / item.class_name / Path(item.path).name, source.read(item))
    for item in source.test[::100]:
        _write(folder / "pictures" / Path(item.path).name, source.read(item))
    lists = {"train": source.train[:2], "val": source.val[:2], "test": source.test[:2]}
    rows = {split: [[f"{split}{at}.png", at, f"class {at}"] for at in (0, 1)] for split in lists}
    for split, items in lists.items():
        for (name, *_), item in zip(rows[split], items, strict=True):
            _write(folder / "raw/eurosat/2750" / name, source.read(item))
    (folder / "raw/eurosat/split_zhou_EuroSAT.json").write_text(json.dumps(rows))
    return folder


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def make_room(folder: Path, words: list[str]) -> None:
    """What a command writes must not be there already."""
    for word, after in itertools.pairwise(words):
        if word == "--out" and (folder / after).is_dir():
            shutil.rmtree(folder / after)
        elif word == "--out":
            (folder / after).unlink(missing_ok=True)
