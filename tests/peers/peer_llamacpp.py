"""llama.cpp's llama-batched-bench: tokens a second of sequences that decode together, each after a prompt of its own."""
import argparse
import json
import os
import resource
import subprocess

import benchlib

ap = argparse.ArgumentParser()
ap.add_argument("--gguf", required=True)
ap.add_argument("--bin", default=os.environ.get("LLAMACPP_BIN") or os.path.join(benchlib.peers_dir(), "llamacpp/build/bin"))
ap.add_argument("--batches", default="1,32")
ap.add_argument("--prompt-tokens", type=int, default=64)
ap.add_argument("--new-tokens", type=int, default=64)
ap.add_argument("--reps", type=int, default=3)
a = ap.parse_args()

batches = [int(batch) for batch in a.batches.split(",")]
threads = str(benchlib.THREADS)
command = [os.path.join(a.bin, "llama-batched-bench"), "-m", a.gguf, "-t", threads, "-tb", threads]
command += ["-npp", str(a.prompt_tokens), "-ntg", str(a.new_tokens), "-npl", a.batches, "--output-format", "jsonl"]
command += ["-c", str(max(batches) * (a.prompt_tokens + a.new_tokens) + 64), "-b", "2048", "-ub", "512"]

calibration = {"before": benchlib.calibrate()}
speeds = {batch: [] for batch in batches}
with benchlib.Noise() as noise:
    for _ in range(a.reps):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        for row in (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")):
            speeds[row["pl"]].append(row["speed_tg"])
calibration["after"] = benchlib.calibrate()
config = {k: v for k, v in vars(a).items() if k not in ("bin", "gguf")} | {"gguf": os.path.basename(a.gguf)}
result = {f"batch{batch}_tok_s": [round(speed, 1) for speed in of] for batch, of in speeds.items()}
memory = {"peak_rss_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)}
benchlib.emit("llama.cpp", config, result, calibration, noise.report(), memory)
