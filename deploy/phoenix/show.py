#!/usr/bin/env python3
"""Shows the trace of a rollout in Arize Phoenix, from nothing: http://127.0.0.1:6006

  python3 deploy/phoenix/show.py [--once] [--picture FILE] [--folgore PATH] [-- train my.yaml key=value ...]

Installs Phoenix (20.26.1, from PyPI, about 0.9 GB with what it needs) in target/phoenix, starts it on this machine only, runs a
short demonstration, or what stands after `--`, with its traces going there, and prints the trace of the last sample as
Phoenix gives it back. Phoenix then stays up until Ctrl-C; --once ends it. --picture draws the page of that trace with Chromium.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
PHOENIX = "arize-phoenix==20.26.1"
ADDRESS = "http://127.0.0.1:6006"
PROJECT = "folgore"
DEMO = ["train", "demo", "--run-name", "traced", "--max-steps", "2", "eval.before=false", "eval.after=false"]


def installed(place):
    """Phoenix's executable, which is put into `place` where it is not there."""
    program = os.path.join(place, "bin", "phoenix")
    if not os.path.exists(program):
        print(f"installs {PHOENIX} in {place}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([os.path.join(place, "bin", "pip"), "install", "-q", PHOENIX], check=True)
    return program


def get(path):
    """What Phoenix answers, or None while it knows nothing of it."""
    try:
        with urllib.request.urlopen(ADDRESS + path, timeout=10) as answer:
            return json.load(answer)["data"]
    except (urllib.error.URLError, ConnectionError, ValueError):
        return None


def until(what, seconds, ready):
    """What `ready` gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = ready()
        if found:
            return found
        time.sleep(1)
    sys.exit(f"error: {what}: not after {seconds} s")


def whole_trace():
    """The spans of the newest sample that was scored and has its root."""
    traces = {}
    for span in get(f"/v1/projects/{PROJECT}/spans?limit=1000") or []:
        traces.setdefault(span["context"]["trace_id"], []).append(span)
    whole = [spans for spans in traces.values() if {"sample", "invoke_agent rollout"} <= {span["name"] for span in spans}]
    return max(whole, key=lambda spans: max(span["end_time"] for span in spans), default=None)


def tell(spans, parent=None, depth=0):
    """Prints the tree of `spans` below `parent`."""
    below = [span for span in spans if span["parent_id"] == parent]
    for span in sorted(below, key=lambda span: span["start_time"]):
        attributes = span["attributes"]
        told = [f"{name}={attributes[name]}" for name in ("rl.group", "rl.sample", "rl.reward", "rl.outcome") if name in attributes]
        if span["span_kind"] == "LLM":
            told.append(f"{attributes['llm.token_count.prompt']} + {attributes['llm.token_count.completion']} tokens")
        print("  " * depth + span["name"], span["span_kind"].lower().replace("unknown", ""), *told)
        tell(spans, span["context"]["span_id"], depth + 1)


def page(spans):
    """The address of a trace, its generation opened."""
    project = next(project["id"] for project in get("/v1/projects") if project["name"] == PROJECT)
    opened = next((span["id"] for span in spans if span["span_kind"] == "LLM"), spans[0]["id"])
    return f"{ADDRESS}/projects/{project}/traces/{spans[0]['context']['trace_id']}?selectedSpanNodeId={opened}"


def draw(url, path):
    """Draws `url` to the file `path`."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("error: --picture needs chromium on PATH")
    # a browser of its own, which a root user of a container may start too
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1500,900", "--virtual-time-budget=20000"]
    subprocess.run([browser, *flags, f"--screenshot={path}", url], check=True, timeout=120, stderr=subprocess.DEVNULL)
    print(f"picture: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--once", action="store_true", help="end Phoenix afterwards")
    parser.add_argument("--picture", metavar="FILE", help="draw the page of the trace")
    parser.add_argument("--folgore", default=os.path.join(ROOT, "target", "release", "folgore"))
    parser.add_argument("--place", default=os.path.join(ROOT, "target", "phoenix"), help="where Phoenix is installed")
    parser.add_argument("command", nargs="*", help="what folgore does, after --")
    args = parser.parse_args()
    if not shutil.which(args.folgore):
        sys.exit(f"error: no {args.folgore}: build it with `cargo build --release`")
    if get("/v1/projects"):
        sys.exit(f"error: something answers at {ADDRESS} already")
    phoenix = installed(os.path.abspath(args.place))
    print("starts Phoenix", flush=True)

    with tempfile.TemporaryDirectory() as data:
        mine = {"PHOENIX_HOST": "127.0.0.1", "PHOENIX_WORKING_DIR": data, "PHOENIX_TELEMETRY_ENABLED": "false"}
        with open(os.path.join(data, "log"), "w") as log:
            server = subprocess.Popen([phoenix, "serve"], env={**os.environ, **mine}, stdout=log, stderr=subprocess.STDOUT)
        try:
            until("Phoenix answers", 120, lambda: server.poll() is not None or get("/v1/projects"))
            if server.poll() is not None:
                sys.exit("error: Phoenix ended: " + open(os.path.join(data, "log")).read()[-2000:])
            there = {"OTEL_EXPORTER_OTLP_ENDPOINT": ADDRESS, "OTEL_METRICS_EXPORTER": "none"}
            there["OTEL_RESOURCE_ATTRIBUTES"] = f"openinference.project.name={PROJECT}"
            command = args.command or [*DEMO, "--output-dir", os.path.join(data, "runs")]
            if subprocess.run([args.folgore, *command, "log.otel_content=true"], env={**os.environ, **there}).returncode:
                sys.exit("error: folgore failed, as it says above")
            spans = until("a whole trace in Phoenix", 120, whole_trace)
            print(f"\n{len(spans)} spans of trace {spans[0]['context']['trace_id']}:")
            tell(spans)
            print(page(spans), flush=True)
            if args.picture:
                draw(page(spans), os.path.abspath(args.picture))
            if not args.once:
                print("Phoenix stays up: Ctrl-C ends it", flush=True)
                server.wait()
        except KeyboardInterrupt:
            pass
        finally:
            server.terminate()
            server.wait(timeout=30)


if __name__ == "__main__":
    main()
