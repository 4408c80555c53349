"""Runs a Python reward function for Folgore: `python3 folgore_reward.py FILE FUNCTION`; with `--look` before them, only looks
whether it is there.

The function is one as TRL calls it, `f(prompts, completions, **columns)`, and gives a list with a number for each
completion, or None where it cannot judge. Folgore starts this program by itself where a run says `python: FILE:FUNCTION`.
It reads requests from standard input and writes replies to standard output, a line of JSON each (the schemas are in
`reward/schema/`). What the function prints goes to standard error, and from there into Folgore's log. Needs Python 3.9 and
nothing else; `import folgore_reward` gives `load` and `score` to other programs that answer requests.
"""

import asyncio
import importlib.util
import inspect
import json
import os
import sys
import threading
import time
import traceback

# TRL hands these to every function; a function that names them gets something harmless.
TOLERATED = {"trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}


def load(path, name):
    """The function `name` of the file `path`, whose folder may be imported from."""
    path = os.path.abspath(path)
    sys.path.insert(0, os.path.dirname(path))
    module = os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(module, path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    spec.loader.exec_module(loaded)
    function = getattr(loaded, name, None)
    if not callable(function):
        raise SystemExit(f"{path} has no function {name}")
    return function


def look(path, name):
    """Why the file `path` cannot give the function `name`, or None. Runs nothing of it."""
    import ast

    try:
        with open(path, "rb") as file:
            body = ast.parse(file.read(), path).body
    except (OSError, SyntaxError, ValueError) as error:
        return str(error)
    functions, others = [], set()
    while body:
        node = body.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            functions.append(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            others.add(node.id)
        elif isinstance(node, ast.alias):
            others.add(node.asname or node.name)
        body.extend(ast.iter_child_nodes(node))
    if name in functions or name in others or "*" in others:
        return None
    return f"{path} has no function {name}" + (f"; it has {', '.join(sorted(functions))}" if functions else "")


def arguments(function, items):
    """What `function` is called with for `items`: lists with an entry for each."""
    columns = {key: None for item in items for key in item["columns"]}
    given = {key: [item["columns"].get(key) for item in items] for key in columns}
    given["completion_ids"] = [item["completion_ids"] for item in items]
    given["stop_reason"] = [item["stop_reason"] for item in items]
    given["prompts"] = [item["prompt"] for item in items]
    given["completions"] = [
        item["completion"]
        if isinstance(item["prompt"], str)
        else [{"role": "assistant", "content": item["completion"]}]
        for item in items
    ]
    named = inspect.signature(function).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in named.values()):
        given = {key: value for key, value in given.items() if key in named}
    for key, value in TOLERATED.items():
        if key in named and key not in given:
            given[key] = value
    return given


def plain(value):
    """A score as JSON holds it: a number, null, or an error. Numbers of other libraries become plain ones."""
    if value is None:
        return None
    if isinstance(value, (str, bytes, list, tuple, dict, set)):
        return {"error": f"expected a number or None, got {value!r:.80}"}
    try:
        return float(value)
    except Exception as error:
        return {"error": f"expected a number or None, got {type(value).__name__}: {error}"}


def score(function, request, loop=None):
    """The reply to `request`. An exception becomes an error for the whole request, and never a number."""
    reply = {"id": request["id"]} if "id" in request else {}
    try:
        items = request["items"]
        scores = function(**arguments(function, items))
        if inspect.isawaitable(scores):
            scores = (loop or asyncio.new_event_loop()).run_until_complete(scores)
        if scores is None:
            raise TypeError("the function gave None, not a list of scores")
        scores = [plain(value) for value in scores]
        if len(scores) != len(items):
            raise ValueError(f"expected {len(items)} scores, got {len(scores)}")
        reply["scores"] = scores
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        reply["error"] = traceback.format_exception_only(type(error), error)[-1].strip()
    return reply


def requests(stream):
    """Requests from `stream`. When it ends, whoever asked is gone: a function that still computes gets ten seconds."""

    def end():
        time.sleep(10)
        os._exit(1)

    for line in stream:
        if line.strip():
            yield json.loads(line)
    threading.Thread(target=end, daemon=True).start()


def watched(stream):
    """`stream`'s lines by way of a thread, which sees the end of it while a function computes."""
    import queue

    lines = queue.Queue()

    def read():
        for request in requests(stream):
            lines.put(request)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return iter(lines.get, None)


def main():
    if sys.argv[-3] == "--look":
        raise SystemExit(look(*sys.argv[-2:]))
    # The pipes of the protocol move away from where prints, inputs and other processes would find them.
    source = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    function = load(*sys.argv[-2:])
    loop = asyncio.new_event_loop()
    for request in watched(source):
        answers.write(json.dumps(score(function, request, loop)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
