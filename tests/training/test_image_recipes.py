"""The recipes with CLIP, end to end on miniature data: each trains, saves, loads, and is what it says it is.

Nothing of a recipe changes but paths, sizes of towers and batches, and the number of steps. That of MedPix is
in ``tests/cli/test_train_images.py``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import (
    AutoModel,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    LlamaConfig,
    Qwen3Config,
    Qwen3Model,
    TrainerCallback,
)

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.arguments import parse_recipe, read_recipe
from radtower.training.runs import ClipRun
from radtower.training.towers.load_text_tower import load_text_tower
from radtower.training.train_medclip import train_medclip

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,  # differences between texts must show
}
REPORTS = [
    "no nodule",
    " ".join(["There is a small nodule. There is no effusion in the left upper lobe."] * 4),
    "There is effusion",
    "no effusion",
    "nodule present, and a small effusion in the left lung",
    "small nodule in the upper lobe",
]
PROMPT = "Instruct: Create a dense embedding that captures the medical findings for image retrieval"
QUERY = "\nQuery:"


@dataclass(frozen=True)
class Trained:
    """A run of a recipe: where it is, what it was before, and the loss of the first step."""

    folder: Path
    before: dict[str, torch.Tensor]
    loss: float

    def model(self) -> Any:
        return AutoModel.from_pretrained(self.folder).eval()

    def moved(self, part: str) -> dict[str, bool]:
        return {
            name: not torch.equal(value, self.before[name])
            for name, value in self.model().state_dict().items()
            if name.startswith(part)
        }


class _KeepWeights(TrainerCallback):
    """What the model is before its first step; adapters, which start at zero, are left out."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.weights = {
            name.replace(".base_layer", ""): value.clone()
            for name, value in kwargs["model"].state_dict().items()
            if ".lora_" not in name
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def tokenizer(tiny_llm_folder):
    """As that of Qwen3-Embedding: a text ends in the token that also pads, which is not its eos token."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <pad>", pair="$A <pad> $B <pad>", special_tokens=[("<pad>", tokenizer.pad_token_id)]
    )
    tokenizer.padding_side = "left"
    return tokenizer


@pytest.fixture(scope="module")
def manifest(folder):
    rng = np.random.default_rng(0)
    rows = []
    for number, report in enumerate(REPORTS):
        Image.fromarray(rng.integers(0, 256, (18, 22), dtype=np.uint8)).save(folder / f"i{number}.png")
        rows.append((f"s{number}", f"p{number}", f"i{number}.png", report, "train"))
    columns = ["study_id", "patient_id", "image_path", "report", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def clip_folder(folder):
    """A CLIP with both halves and its image processor, which projects as far as the recipes do."""
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(1)
    for size in (512, 1280):
        config = CLIPConfig(
            vision_config=small | {"image_size": 16, "patch_size": 8, "initializer_range": 0.3},
            text_config=small | {"vocab_size": 40},
            projection_dim=size,
        )
        CLIPModel(config).save_pretrained(folder / f"clip{size}")
        processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        processor.save_pretrained(folder / f"clip{size}")
    return folder


@pytest.fixture(scope="module")
def qwen_folder(folder, tokenizer):
    """Laid out as Qwen3-Embedding: a bare decoder beside the files of sentence-transformers."""
    path = folder / "qwen"
    torch.manual_seed(2)
    Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), **SIZES)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    files = {
        "config.json": config | {"architectures": ["Qwen3ForCausalLM"]},
        "modules.json": [
            {"idx": idx, "name": str(idx), "path": place, "type": f"sentence_transformers.models.{kind}"}
            for idx, (place, kind) in enumerate(
                [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
            )
        ],
        "1_Pooling/config.json": {"pooling_mode_lasttoken": True, "include_prompt": True},
        "config_sentence_transformers.json": {
            "prompts": {"query": f"Instruct: Given a query, retrieve passages{QUERY}", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    (path / "1_Pooling").mkdir()
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def llm2vec_folder(folder, tiny_llm_folder):
    """In the layout of the public LLM2Vec4CXR: a flat configuration, decoder and latent head in one file."""
    path = folder / "llm2vec4cxr"
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_folder)
    tokenizer.save_pretrained(path)
    decoder = LlamaConfig(vocab_size=len(tokenizer), **SIZES)
    torch.manual_seed(3)
    encoder = LLMBiEncoder(LLMBiEncoderConfig(text_config=decoder, num_latents=6))
    config = decoder.to_dict() | {"architectures": ["LLM2Vec4CXRModel"]}
    (path / "config.json").write_text(json.dumps(config))
    save_file(encoder.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.fixture(scope="module")
def train(folder, manifest):
    """Run a recipe with other paths and sizes."""

    def run_recipe(name: str, **sizes: Any) -> Trained:
        output = folder / name
        sizes |= {"manifest": str(manifest), "output_dir": str(output), "per_device_train_batch_size": 6}
        machine = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
        settings = read_recipe(RECIPES / f"{name}.yaml") | sizes | machine
        run, arguments = parse_recipe(settings | {"max_steps": 3}, ClipRun)
        keep = _KeepWeights()
        assert train_medclip(run, arguments, [keep], on_note=pytest.fail) == output
        first = json.loads((output / "training_log.jsonl").read_text().splitlines()[0])
        return Trained(output, keep.weights, first["loss"])

    return run_recipe


@pytest.fixture(scope="module")
def as_released(train, clip_folder, qwen_folder):
    return train("qwenclip_as_released", vision=str(clip_folder / "clip512"), text=str(qwen_folder))


@pytest.fixture(scope="module")
def fixed(train, clip_folder, qwen_folder):
    return train("qwenclip", vision=str(clip_folder / "clip512"), text=str(qwen_folder), chunk_size=2)


@pytest.fixture(scope="module")
def llm2clip(train, clip_folder, llm2vec_folder):
    return train("llm2clip4cxr", vision=str(clip_folder / "clip1280"), text=str(llm2vec_folder), chunk_size=2)


def _require_use(trained: Trained, images: list[Path]) -> None:
    """The folder loads as any model does, and its tower of images has learned."""
    model = trained.model()
    assert isinstance(model, MedCLIPModel)
    found = model.compute_similarities(images, REPORTS[:3])
    assert found.shape == (2, 3)
    assert found.abs().max() <= 1.0001
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    layers = {n: m for n, m in trained.moved("vision_model").items() if ".mlp." in n or "output.dense" in n}
    assert layers
    assert all(layers.values())


@pytest.fixture
def images(folder, manifest):
    return [folder / "i0.png", folder / "i1.png"]


@torch.no_grad()
def _text_vectors(qwen_folder: Path, tokenizer: Any, *, is_legacy: bool) -> torch.Tensor:
    """Last tokens of prompt and reports, by a plain decoder; without padding, or as the released code."""
    decoder = Qwen3Model.from_pretrained(qwen_folder).eval()
    embed = decoder.get_input_embeddings()
    words = PROMPT.partition("Create")
    parts = (words[0], words[1] + words[2])
    ids = [i for part in parts for i in tokenizer(part, add_special_tokens=False).input_ids]
    prompt = embed(torch.tensor([ids]))
    vectors = []
    for batch in [REPORTS] if is_legacy else [[report] for report in REPORTS]:
        inputs = tokenizer([QUERY + report for report in batch], padding=True, return_tensors="pt")
        embeds = torch.cat([prompt.expand(len(batch), -1, -1), embed(inputs["input_ids"])], dim=1)
        mask = torch.cat([torch.ones(len(batch), len(ids)), inputs["attention_mask"]], dim=1)
        states = decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        vectors.append(states[:, -1])
    return torch.cat(vectors)


@torch.no_grad()
def _first_loss(trained: Trained, clip_folder: Path, texts: torch.Tensor, log_scale: float) -> float:
    clip = CLIPModel.from_pretrained(clip_folder / "clip512").eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder / "clip512")
    opened = [Image.open(clip_folder / f"i{number}.png").convert("RGB") for number in range(len(REPORTS))]
    pixels = processor(opened, return_tensors="pt")["pixel_values"]
    image = F.normalize(clip.get_image_features(pixels).pooler_output, dim=-1)
    text = F.normalize(texts @ trained.before["text_projection.weight"].T, dim=-1)
    logits, own = torch.tensor(log_scale).exp() * image @ text.T, torch.arange(len(REPORTS))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)).item() / 2


def test_the_released_recipe_trains_on_vectors_that_depend_on_the_batch(
    as_released, clip_folder, qwen_folder, tokenizer
):
    released = _text_vectors(qwen_folder, tokenizer, is_legacy=True)
    unpadded = _text_vectors(qwen_folder, tokenizer, is_legacy=False)
    cosines = torch.cosine_similarity(released, unpadded)
    assert cosines.argmax() == 1, "the longest report has no padding"
    assert cosines.sort().values[-2] < 0.995, f"no defect to reproduce: {cosines.tolist()}"
    expected = _first_loss(as_released, clip_folder, released, 4.6052)
    assert as_released.loss == pytest.approx(expected, abs=2e-4)
    cured = _first_loss(as_released, clip_folder, unpadded, 4.6052)
    assert as_released.loss != pytest.approx(cured, abs=2e-3)


def test_the_released_recipe_never_teaches_its_prompt(as_released, images):
    _require_use(as_released, images)
    text = as_released.moved("text_model")
    assert "text_model.soft_prompt.weight" in text
    assert not any(text.values())
    for part in ("visual_projection", "text_projection", "logit_scale"):
        assert all(as_released.moved(part).values()), part
    config = as_released.model().config.text_config
    assert (config.prompt_padding, config.normalize, config.pooling) == ("legacy_middle", False, "last_token")


def test_the_fixed_recipe_trains_on_vectors_that_do_not(fixed, clip_folder, qwen_folder, tokenizer, images):
    unpadded = F.normalize(_text_vectors(qwen_folder, tokenizer, is_legacy=False), dim=-1)
    expected = _first_loss(fixed, clip_folder, unpadded, 2.6592)
    assert fixed.loss == pytest.approx(expected, abs=0.05)  # in bf16
    _require_use(fixed, images)
    model = fixed.model()
    together = model.encode_text(REPORTS)
    torch.testing.assert_close(together, model.encode_text(REPORTS, batch_size=1), atol=1e-5, rtol=0)


def test_the_fixed_recipe_teaches_its_prompt_and_nothing_else_of_the_text_tower(fixed):
    assert {name for name, has_moved in fixed.moved("text_model").items() if has_moved} == {
        "text_model.soft_prompt.weight"
    }
    prompt = fixed.model().text_model.soft_prompt.weight
    assert (prompt != fixed.before["text_model.soft_prompt.weight"]).any(dim=1).all(), (
        "a vector did not learn"
    )


def test_what_is_pooled_is_the_token_behind_the_text(fixed, tokenizer):
    model = fixed.model()
    inputs = model.processor(text=REPORTS)
    assert inputs["input_ids"].shape[1] > inputs["attention_mask"].sum(dim=1).min()
    mask = inputs["attention_mask"]
    lasts = [ids[m == 1][-1].item() for ids, m in zip(inputs["input_ids"], mask, strict=True)]
    assert set(lasts) == {tokenizer.pad_token_id}
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    with torch.no_grad():
        states = model.text_model(**inputs).last_hidden_state
        last = [row[m == 1][-1] for row, m in zip(states, mask, strict=True)]
        expected = F.normalize(torch.stack(last), dim=-1)
        torch.testing.assert_close(model.text_features(**inputs), expected, atol=1e-6, rtol=0)
    # Where a text is cut, the token stays.
    cut = model.processor(text=REPORTS[1:2], max_length=5)["input_ids"][0]
    assert (len(cut), cut[-1].item()) == (5, tokenizer.pad_token_id)


@torch.no_grad()
def test_the_lowest_layers_alone_pool_that_token_too(qwen_folder, tokenizer):
    settings = {"llm_pooling": "last_token", "num_llm_layers": 1, "bidirectional": False, "max_length": 60}
    tower, _ = load_text_tower(ClipRun(manifest="m.csv", vision="v", text=str(qwen_folder), **settings))
    assert len(tower.model.layers) == 1
    decoder = Qwen3Model.from_pretrained(qwen_folder).eval()
    decoder.layers = decoder.layers[:1]
    for report in REPORTS:
        ids = tokenizer(report, truncation=True, max_length=60).input_ids
        assert ids[-1] == tokenizer.pad_token_id
        last = decoder(torch.tensor([ids])).last_hidden_state[:, -1]
        expected = F.normalize(last, dim=-1)  # as the folder says
        torch.testing.assert_close(tower.encode_text(report), expected, atol=1e-5, rtol=0)


def test_the_recipe_of_llm2clip4cxr_changes_attention_alone(llm2clip, images, llm2vec_folder):
    _require_use(llm2clip, images)
    moved = llm2clip.moved("text_model")
    updated = {f"text_model.model.layers.{n}.self_attn.{k}_proj.weight" for n in (0, 1) for k in "qkvo"}
    assert {name for name, has_moved in moved.items() if has_moved} == updated
    assert any(name.startswith("text_model.latent_attn") for name in moved)
    source = load_file(llm2vec_folder / "model.safetensors")
    assert all(torch.equal(value, llm2clip.before[f"text_model.{name}"]) for name, value in source.items())
    assert all(llm2clip.moved("text_projection").values())
    assert [list(value.shape) for name, value in llm2clip.before.items() if "text_projection" in name] == [
        [32],
        [32],
        [1280, 32],
        [1280],
    ]
    config = llm2clip.model().config.text_config
    assert (config.bidirectional, config.pooling, config.latent_variant) == (True, "latent_attention", "v0")
