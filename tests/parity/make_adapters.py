#!/usr/bin/env python3
"""Makes tests/parity/fixtures/adapters: what PEFT has beyond one rank for all, on the model of fixtures/tiny-tied.

  VENV/bin/python tests/parity/make_adapters.py          (the packages of make_fixtures.py)

Each folder holds the adapter as PEFT saves it and the logits of base and adapter together for the rows of make_fixtures.py;
`patterns` and `layers` also the gradient of the mean cross-entropy. `pissa` and `olora` are saved as they are trained, on a
base that PEFT changed; `pissa-converted` is the first one saved with path_initial_model_for_weight_conversion.
"""
import json
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import peft
import torch
from make_fixtures import OUT, ROWS, draw, mean_cross_entropy, write_json
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

FOLDER = "adapters"
SOME = r".*layers\.[01]\.(self_attn\.(q|v)_proj|mlp\.up_proj)"
CASES = {
    "patterns": dict(r=4, lora_alpha=6, target_modules=SOME, use_rslora=False,
                     rank_pattern={"layers.1.self_attn.q_proj": 2, "up_proj": 3}, alpha_pattern={"v_proj": 5}),
    "layers": dict(r=3, lora_alpha=4, target_modules=["q_proj", "down_proj", "o_proj"], layers_to_transform=[1],
                   exclude_modules=["o_proj"], use_rslora=True),
    "dora": dict(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_dora=True),
    "pissa": dict(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], init_lora_weights="pissa"),
    "olora": dict(r=4, lora_alpha=6, target_modules=["q_proj", "up_proj"], init_lora_weights="olora", use_rslora=True),
}


def save(model, name, **how):
    path = os.path.join(OUT, FOLDER, name)
    model.save_pretrained(path, **how)
    os.remove(os.path.join(path, "README.md"))
    saved = json.load(open(os.path.join(path, "adapter_config.json")))
    for key in ("target_modules", "exclude_modules"):  # sets: their order changes from run to run
        if isinstance(saved[key], list):
            saved[key].sort()
    saved["base_model_name_or_path"] = "tiny-tied"
    with open(os.path.join(path, "adapter_config.json"), "w") as file:
        json.dump(saved, file, indent=2, sort_keys=True)


def logits(model, name):
    with torch.no_grad():
        values = {f"logits.{i}": model(torch.tensor([row])).logits[0].contiguous() for i, row in enumerate(ROWS)}
    save_file(values, os.path.join(OUT, FOLDER, name, "logits.safetensors"))


def gradients(model, name):
    model.zero_grad()
    loss = mean_cross_entropy(model, ROWS)
    loss.backward()
    grads = {n.removeprefix("base_model.model.").replace(".default.weight", ""): p.grad.contiguous()
             for n, p in model.named_parameters() if "lora_" in n}
    save_file(grads, os.path.join(OUT, FOLDER, name, "gradients.safetensors"))
    write_json({"loss": float(loss.detach())}, FOLDER, name, "gradients.json")


def train(model, seed, noise):
    """Moves what trains, as training would."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            moved = torch.empty_like(parameter)
            draw(moved, noise, generator)
            with torch.no_grad():
                # norms stay norms
                parameter.copy_(parameter * (1 + moved) if "magnitude" in name else parameter + moved)


def main():
    shutil.rmtree(os.path.join(OUT, FOLDER), ignore_errors=True)
    os.makedirs(os.path.join(OUT, FOLDER))
    for seed, (name, lora) in enumerate(CASES.items(), 31):
        torch.manual_seed(seed)
        base = LlamaForCausalLM.from_pretrained(os.path.join(OUT, "tiny-tied"), dtype=torch.float32).eval()
        model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **lora)).eval()
        initial = os.path.join(OUT, FOLDER, "initial")
        if name == "pissa":
            # what conversion needs: the beginning, under a configuration that does not change the base again
            model.peft_config["default"].init_lora_weights = True
            model.save_pretrained(initial)
            model.peft_config["default"].init_lora_weights = "pissa"
        train(model, seed, 0.15)
        save(model, name)
        logits(model, name)
        if name in ("patterns", "layers"):
            gradients(model, name)
        if name == "pissa":
            save(model, "pissa-converted", path_initial_model_for_weight_conversion=initial)
            shutil.rmtree(initial)
            shutil.copy(os.path.join(OUT, FOLDER, name, "logits.safetensors"), os.path.join(OUT, FOLDER, "pissa-converted"))
    write_json({"rows": ROWS}, FOLDER, "rows.json")


if __name__ == "__main__":
    main()
