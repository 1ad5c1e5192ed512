"""Loads one repository in every way that `compatibility.py` asks for; runs where RadTower may be missing.

Imports torch and transformers only. Reads a JSON list of jobs from standard input and prints one JSON line
per job: what it is, and the numbers of the model, or the error.
"""

import importlib.util
import json
import sys
from typing import Any

import torch
import transformers

VOLUME = torch.linspace(-1000, 400, 60 * 64 * 64).reshape(60, 64, 64)
TEXTS = ["No pleural effusion.", "There is a small nodule in the right upper lobe."]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "auto": "auto"}


def numbers(auto: str, source: str, **options: Any) -> list[float]:
    """Load with an Auto class, and run: pooled vectors, or logits."""
    trusted = {"trust_remote_code": True}
    model = getattr(transformers, auto).from_pretrained(source, **trusted, **options).eval()
    where = {name: options[name] for name in ("revision", "subfolder") if name in options}
    with torch.no_grad():
        if model.config.model_type == "llm_biencoder":
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **trusted, **where)
            output = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
        elif model.config.model_type == "ct3d_vision":
            processor = transformers.AutoImageProcessor.from_pretrained(source, **trusted, **where)
            pixels = processor([VOLUME], spacings_mm=[(6.0, 5.0, 5.0)])["pixel_values"]
            output = model(pixels.to(model.dtype))
        else:
            processor = transformers.AutoProcessor.from_pretrained(source, **trusted, **where)
            inputs = processor(images=[VOLUME], spacings_mm=[(6.0, 5.0, 5.0)], text=TEXTS)
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            output = model(**inputs)
    first = next(output[name] for name in ("logits", "pooler_output", "text_embeds") if name in output)
    values = [first] if "image_embeds" not in output else [output["image_embeds"], first]
    return torch.cat([value.float().flatten() for value in values]).tolist()


def main() -> None:
    """Do all jobs of standard input."""
    if importlib.util.find_spec("radtower") is not None:
        import radtower  # noqa: F401 -- registers the classes: no remote code is used then
    for job in json.load(sys.stdin):
        options = dict(job["options"])
        if "dtype" in options:
            options["dtype"] = DTYPES[options["dtype"]]
        try:
            found = {"numbers": numbers(job["auto"], job["source"], **options)}
        except Exception as error:  # whatever it is, it goes into the table
            found = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:160]}
        print("RESULT", json.dumps({**job, **found}), flush=True)


if __name__ == "__main__":
    main()
