"""A peer: plain FastAPI over the exported ONNX file, as one would write it by hand, for uvicorn as it is installed.
`MODEL` is the folder of the export."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel

FOLDER = Path(os.environ["MODEL"])
CARD = json.loads((FOLDER / "model.json").read_text())
NAMES, SIZE, MEAN, STD = (CARD[key] for key in ("class_names", "image_size", "mean", "std"))
OPTIONS = onnxruntime.SessionOptions()
OPTIONS.intra_op_num_threads = 1  # the requests' threads are as many as there are cores; more of them slow each other
SESSION = onnxruntime.InferenceSession(FOLDER / "model.onnx", OPTIONS)

app = FastAPI()


class Question(BaseModel):
    image: str


def pixels(encoded: bytes) -> np.ndarray:
    """(3, S, S)"""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    width, height = (SIZE * side // min(image.size) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - SIZE) / 2), round((height - SIZE) / 2)
    square = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), np.float32) / 255
    return ((square - np.array(MEAN, np.float32)) / np.array(STD, np.float32)).transpose(2, 0, 1)


@app.post("/predict")
def predict(question: Question) -> dict:
    """A plain function: FastAPI runs it in a thread."""
    [probabilities] = SESSION.run(["probabilities"], {"images": pixels(base64.b64decode(question.image))[None]})[0]
    best = int(probabilities.argmax())
    by_name = dict(zip(NAMES, probabilities.tolist(), strict=True))
    return {"label": NAMES[best], "probability": by_name[NAMES[best]], "probabilities": by_name}
