"""A peer: LitServe over the exported ONNX file, in batches as its documentation advises. It has an environment of its
own, without this project: `python lit.py PORT`, with the folder of the export in `MODEL`.
"""

import base64
import io
import json
import os
import sys
from pathlib import Path

import litserve
import numpy as np
import onnxruntime
from PIL import Image

FOLDER = Path(os.environ["MODEL"])
BATCH, WAIT = 16, 0.005  # images, seconds


class Served(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.card = json.loads((FOLDER / "model.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(FOLDER / "model.onnx", options)

    def decode_request(self, request: dict) -> np.ndarray:
        size = self.card["image_size"]
        image = Image.open(io.BytesIO(base64.b64decode(request["image"]))).convert("RGB")
        width, height = (size * side // min(image.size) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        square = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
        mean, std = (np.array(self.card[key], np.float32) for key in ("mean", "std"))
        return ((square - mean) / std).transpose(2, 0, 1)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(["probabilities"], {"images": np.stack(images)})[0]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict:
        names, best = self.card["class_names"], int(output.argmax())
        by_name = dict(zip(names, output.tolist(), strict=True))
        return {"label": names[best], "probability": by_name[names[best]], "probabilities": by_name}


if __name__ == "__main__":
    server = litserve.LitServer(Served(max_batch_size=BATCH, batch_timeout=WAIT), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
