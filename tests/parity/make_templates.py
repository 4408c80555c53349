#!/usr/bin/env python3
"""Makes tests/parity/fixtures/templates.json: chat templates and what transformers' apply_chat_template makes of conversations.

  VENV/bin/python tests/parity/make_templates.py [--folder FOLDER --out FILE]      (the VENV of make_fixtures.py)

With --folder, the templates are those of FOLDER/*.jinja; model/tests/chat.rs takes FILE from FOLGORE_TEMPLATES too.
"""
import argparse
import glob
import json
import os

import model_templates
from transformers import PreTrainedTokenizerFast

FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
NAMES = ["QWEN25", "QWEN3", "LLAMA31", "MISTRAL", "GEMMA", "DEEPSEEK"]


def cases(tok, template):
    out = []
    for conversation in model_templates.CONVERSATIONS:
        variables = json.loads(json.dumps(conversation))
        messages = variables.pop("messages")
        prompt = variables.pop("add_generation_prompt", True)
        case = {"messages": messages, "vars": dict(variables), "add_generation_prompt": prompt}
        arguments = dict(chat_template=template, add_generation_prompt=prompt, **variables)
        try:
            case["text"] = tok.apply_chat_template(messages, tokenize=False, **arguments)
            case["ids"] = tok.apply_chat_template(messages, tokenize=True, return_dict=False, **arguments)
        except Exception as error:
            case["error"] = str(error)
        out.append(case)
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder")
    parser.add_argument("--out", default=os.path.join(FIXTURES, "templates.json"))
    arguments = parser.parse_args()
    tok = PreTrainedTokenizerFast.from_pretrained(os.path.join(FIXTURES, "tiny-tied"))
    if arguments.folder:
        paths = sorted(glob.glob(os.path.join(arguments.folder, "*.jinja")))
        templates = [(os.path.basename(path), open(path, encoding="utf-8").read()) for path in paths]
    else:
        templates = [(name.lower(), getattr(model_templates, name)) for name in NAMES]
    made = [{"name": name, "template": template, "cases": cases(tok, template)} for name, template in templates]
    with open(arguments.out, "w", encoding="utf-8") as file:
        json.dump(made, file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")
    for entry in made:
        print(entry["name"], sum("text" in case for case in entry["cases"]), "rendered,", [c["error"][:90] for c in entry["cases"] if "error" in c])


if __name__ == "__main__":
    main()
