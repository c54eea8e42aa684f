"""Small models as other libraries save them."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = {**LAYERS, "hidden_size": 32, "intermediate_size": 72, "image_size": 32, "patch_size": 16}
WORDS = ["a", "photo", "of", "cat", "dog", "a's", ".", "the", "and", "so", "on"]


def _spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far enough from zero that activations and epsilons tell."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return model.eval()


def clip_model(**changes) -> CLIPModel:
    """Towers of different widths; `changes` are of both."""
    text = {**LAYERS, "hidden_size": 16, "intermediate_size": 40, **changes}
    image = {**IMAGES, "hidden_size": 48, "intermediate_size": 100, "num_attention_heads": 3, **changes}
    return _spread(CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=24)))


def siglip_model() -> SiglipModel:
    text = {**LAYERS, "hidden_size": 16, "intermediate_size": 40, "vocab_size": 99, "max_position_embeddings": 8,
            "projection_size": 32}  # fmt: skip
    return _spread(SiglipModel(SiglipConfig(text_config=text, vision_config=IMAGES)))


def save_clip(folder: Path, model: CLIPModel, **options) -> Path:
    model.save_pretrained(folder, **options)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def save_siglip(folder: Path, model: SiglipModel, **options) -> Path:
    model.save_pretrained(folder, **options)
    SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    """Words, and one mark at the end, as SigLIP's has."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)


def change_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def pooled(output) -> torch.Tensor:
    """Features (B, E), which transformers 5 gives within an output and earlier releases as they are."""
    return getattr(output, "pooler_output", output)
