"""Everything that can be wrong with a release's bundle: each changes the folder that it is given."""

import json
import os
import shutil

import onnx
from PIL import Image
from safetensors.torch import load, save_file

from mmrl_core.files import sha256_file
from tests.support.alter import alter_card, alter_tensors


def edit(path, change) -> None:
    """Change a JSON document in place."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def expect(change):
    """A damage to what the examples are expected to be."""
    return lambda bundle: edit(bundle / "examples/expected.json", lambda document: change(document["probabilities"]))


def say(**entries):
    """A damage to onnx/model.json."""
    return lambda bundle: edit(bundle / "onnx/model.json", lambda document: document.update(entries))


def write(name: str, content: bytes):
    return lambda bundle: (bundle / name).write_bytes(content)


def cut(name: str):
    return lambda bundle: (bundle / name).write_bytes(
        (bundle / name).read_bytes()[: (bundle / name).stat().st_size // 2]
    )


def matrix(change):
    def damage(bundle):
        path = bundle / "classes.safetensors"
        save_file(change(load(path.read_bytes())["text_features"]), path)

    return damage


def graph(change):
    """A damage to the ONNX file that leaves its model.json right about its sha256."""

    def damage(bundle):
        path = bundle / "onnx/model.onnx"
        model = onnx.load(path)
        change(model.graph)
        onnx.save(model, path)
        own_sha256(bundle)

    return damage


def operation_that_is_no_text(bundle) -> None:
    path = bundle / "onnx/model.onnx"
    path.write_bytes(path.read_bytes().replace(b"Softmax", b"Softma\xff"))
    own_sha256(bundle)


def own_sha256(bundle) -> None:
    sha256 = sha256_file(bundle / "onnx/model.onnx")
    edit(bundle / "onnx/model.json", lambda document: document.update(files={"model.onnx": sha256}))


def double(name: str):
    def change(graph) -> None:
        [node] = [node for node in graph.node if name in node.output]
        node.output[list(node.output).index(name)] = "before"
        two = onnx.helper.make_tensor("two", onnx.TensorProto.FLOAT, [], [2.0])
        graph.initializer.append(two)
        graph.node.append(onnx.helper.make_node("Mul", ["before", "two"], [name]))

    return graph(change)


def link(bundle) -> None:
    (bundle / "README.md").rename(bundle.parent / "README.md")
    (bundle / "README.md").symlink_to(bundle.parent / "README.md")


def link_a_folder(bundle) -> None:
    (bundle / "onnx").rename(bundle.parent / "onnx")
    (bundle / "onnx").symlink_to(bundle.parent / "onnx")


def no_examples(bundle) -> None:
    for path in (bundle / "examples").glob("*.png"):
        path.unlink()
    edit(bundle / "examples/expected.json", lambda document: document.update(probabilities={}))


def another_picture(bundle) -> None:
    Image.new("RGB", (96, 96)).save(bundle / "examples/3.png")


def a_picture_more(bundle) -> None:
    shutil.copy(bundle / "examples/3.png", bundle / "examples/6.png")
    expect(lambda rows: rows.update({"6.png": rows["3.png"]}))(bundle)


def turned_picture(bundle) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    with Image.open(bundle / "examples/3.png") as picture:
        picture.save(bundle / "examples/3.png", exif=exif)


def enlarge(adapter) -> None:
    """To weights that are numbers and give none."""
    alter_tensors(adapter, lambda tensors: [one.mul_(1e37) for name, one in tensors.items() if "head" not in name])


def names(*class_names: str):
    return lambda bundle: alter_card(bundle / "adapter", lambda card: card.update(class_names=list(class_names)))


DAMAGES = {
    "another expectation": expect(lambda rows: rows.update({"0.png": {"cat": 0.5, "dog": 0.5}})),
    "an expectation too few": expect(lambda rows: rows.pop("0.png")),
    "an expectation too many": expect(lambda rows: rows.update(more=rows["0.png"])),
    "an expectation of other classes": expect(lambda rows: rows["0.png"].update(bird=0)),
    "an expectation of classes in another order": expect(
        lambda rows: rows.update({"0.png": dict(reversed(rows["0.png"].items()))})
    ),
    "an expectation that is no number": expect(lambda rows: rows["5.png"].update(cat=float("nan"))),
    "an expectation that is text": expect(lambda rows: rows["5.png"].update(cat="0.5")),
    "an expectation that is huge": expect(lambda rows: rows["5.png"].update(cat=10**400)),
    "an expectation that is a list": expect(lambda rows: rows.update({"0.png": [0.5, 0.5]})),
    "expectations that are a list": lambda b: edit(b / "examples/expected.json", lambda d: d.update(probabilities=[])),
    "expectations of no key": lambda b: edit(b / "examples/expected.json", lambda d: d.pop("probabilities")),
    "expected.json is no JSON": write("examples/expected.json", b"{"),
    "expected.json is no object": write("examples/expected.json", b"[1]"),
    "expected.json is no text": write("examples/expected.json", b"\xff\xfe{}"),
    "expected.json is nested without end": write("examples/expected.json", b"[" * 100_000),
    "no expected.json": lambda b: (b / "examples/expected.json").unlink(),
    "no examples": no_examples,
    "an example too few": lambda b: (b / "examples/2.png").unlink(),
    "an example too many": a_picture_more,
    "another example": another_picture,
    "an example that is turned": turned_picture,
    "an example that is cut short": cut("examples/0.png"),
    "an example that is empty": write("examples/0.png", b""),
    "no card": lambda b: (b / "README.md").unlink(),
    "no adapter": lambda b: shutil.rmtree(b / "adapter"),
    "no ONNX file": lambda b: (b / "onnx/model.onnx").unlink(),
    "a link": link,
    "a link to a folder": link_a_folder,
    "a link that leads nowhere": lambda b: (b / "more").symlink_to("nowhere"),
    "a pipe": lambda b: os.mkfifo(b / "pipe"),
    "no class matrix": lambda b: (b / "classes.safetensors").unlink(),
    "a class matrix that is empty": write("classes.safetensors", b""),
    "a class matrix that is cut short": cut("classes.safetensors"),
    "a class matrix of another name": matrix(lambda w: {"w": w}),
    "a class matrix of no name": matrix(lambda w: {}),
    "a class matrix with another": matrix(lambda w: {"text_features": w, "w": w.clone()}),
    "a class matrix of another shape": matrix(lambda w: {"text_features": w[:1].contiguous()}),
    "a class matrix of one number": matrix(lambda w: {"text_features": w[0, 0].clone()}),
    "a class matrix of another type": matrix(lambda w: {"text_features": w.double()}),
    "a class matrix of whole numbers": matrix(lambda w: {"text_features": w.int()}),
    "a class matrix of no numbers": matrix(lambda w: {"text_features": w / 0}),
    "a class matrix of other values": matrix(lambda w: {"text_features": w.flip(0).contiguous()}),
    "an adapter of no numbers": lambda b: alter_tensors(b / "adapter", lambda t: t["space"].fill_(float("nan"))),
    "an adapter too large": lambda b: enlarge(b / "adapter"),
    "another adapter": lambda b: alter_tensors(b / "adapter", lambda t: t["space"].mul_(50)),
    "an adapter of other classes": names("cat", "cat", "fox"),
    "an adapter of a class less": names("cat", "fox"),
    "an adapter of twin classes": names("a b", "a_b", "cat"),
    "an adapter whose probe counts for less": lambda b: alter_card(
        b / "adapter", lambda c: c["head"].update(head_weight=0.5)
    ),
    "an adapter of another temperature": lambda b: alter_card(
        b / "adapter", lambda c: c["calibration"].update(trained=3.0)
    ),
    "an adapter of another probe": lambda b: alter_tensors(b / "adapter", lambda t: t["head.weight"].neg_()),
    "an adapter of one class": lambda b: alter_card(b / "adapter", lambda c: c.update(class_names=["cat"])),
    "an adapter of no template": lambda b: alter_card(b / "adapter", lambda c: c.update(template="")),
    "ONNX of nothing": write("onnx/model.onnx", b""),
    "ONNX of garbage": write("onnx/model.onnx", b"garbage " * 1000),
    "ONNX cut short": cut("onnx/model.onnx"),
    "ONNX of another input": graph(lambda g: setattr(g.input[0], "name", "pixels")),
    "ONNX of an output less": graph(lambda g: g.output.pop()),
    "ONNX of outputs in another order": graph(lambda g: g.output.append(g.output.pop(0))),
    "ONNX without a node": graph(lambda g: g.node.pop(len(g.node) // 2)),
    "ONNX of an unknown operation": graph(lambda g: setattr(g.node[3], "op_type", "Nothing")),
    "ONNX of an operation that is no text": operation_that_is_no_text,
    "ONNX without a weight": graph(lambda g: g.initializer.pop()),
    "ONNX of other logits": double("logits"),
    "ONNX of other probabilities": double("probabilities"),
    "ONNX of other features": double("image_features"),
    "model.json of other classes": say(class_names=["dog", "cat"]),
    "model.json of another template": say(template="{}"),
    "model.json of another size": say(image_size=224),
    "model.json of another mean": say(mean=[0.5, 0.5, 0.5]),
    "model.json of another scale": say(std=[1, 1, 1]),
    "model.json of other steps": say(preprocessing=[]),
    "model.json of another resize mode": say(resizing={"mode": "squash"}),
    "model.json of another background": say(decoding={"background": [0, 0, 0]}),
    "model.json of another logit scale": say(logit_scale=1),
    "model.json of another adapter": say(adapter={"sha256": "0" * 64}),
    "model.json of another backbone": say(backbone={"name": "tiny", "sha256": "0" * 64}),
    "model.json of other files": say(files={}),
    "model.json of another kind": say(kind="adapter"),
    "model.json of no opset": say(opset="18"),
    "model.json of no difference": say(largest_relative_difference=None),
    "model.json of no versions": say(compared={}),
    "model.json is no JSON": write("onnx/model.json", b"kind: onnx"),
    "model.json is empty": write("onnx/model.json", b"{}"),
}
