"""Runs Folgore and a peer on the same work, one after the other (A B A B), and prints the ratios.

  python compare.py --folgore ../../target/release/folgore [--only step,train,...] [--rounds 2] [--out results.jsonl]

step       a whole GRPO step: 4 prompts x 8 samples, 64 + 64 tokens, LoRA of rank 16, f32   TRL
step512    the same with prompts of 512 tokens; TRL in micro-batches of 2, without warm-up  TRL
tiny       the first on 4 layers of 128                                                     TRL
train      LoRA training: 4 x 256 tokens, rank 16, f32                                      PEFT
recompute  the same with gradient checkpointing                                             PEFT
rollout    8 prompts of 128 tokens x 8 samples of 64                                        transformers
decode     tokens a second at batch 1 and 32, 64-token prompts, f32                         transformers
gguf       the same from GGUF files of the same weights, in f32 and in Q4_1                 llama.cpp

Both sides load the same weights (PEERS_DIR/smollm2-hf, for `gguf` PEERS_DIR/smollm2-*.gguf; for `tiny` each draws its own) and use PEER_THREADS threads. A
ratio is the peer's seconds divided by Folgore's, each the best of its rounds. Where calibrations of two rounds differ by more
than 15%, or others kept the machine busy, the line says so: then the ratio is a guess.
"""
import argparse
import json
import os
import subprocess
import sys

import benchlib

HERE = os.path.dirname(os.path.abspath(__file__))
PEERS = {
    "step": ["peer_trl_grpo.py", "--warmup", "1", "--steps", "2"],
    "step512": ["peer_trl_grpo.py", "--warmup", "0", "--steps", "1", "--prompt-tokens", "512", "--micro-batch", "2"],
    "tiny": ["peer_trl_grpo.py", "--warmup", "2", "--steps", "8", "--tiny"],
    "train": ["peer_peft_sft.py", "--warmup", "1", "--steps", "3"],
    "recompute": ["peer_peft_sft.py", "--warmup", "1", "--steps", "3", "--gradient-checkpointing"],
    "rollout": ["peer_hf_generate.py", "--prompts", "8", "--samples", "8", "--prompt-tokens", "128", "--new-tokens", "64"],
    "decode": ["peer_hf_generate.py", "--prompts", "4", "--samples", "8", "--prompt-tokens", "64", "--new-tokens", "64"],
    "gguf f32": ["peer_llamacpp.py", "--gguf", os.path.join(benchlib.peers_dir(), "smollm2-f32.gguf")],
    "gguf q4_1": ["peer_llamacpp.py", "--gguf", os.path.join(benchlib.peers_dir(), "smollm2-q4_1.gguf")],
}
# what one name stands for
GROUPS = {"gguf": ["gguf f32", "gguf q4_1"]}


def run(command):
    """The last line of JSON that the command prints."""
    benchlib.log("#", " ".join(command))
    done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        sys.exit(f"{command[0]} {command[1]}: exit code {done.returncode}, {len(lines)} lines of JSON")
    return json.loads(lines[-1])


def ours(folgore, what):
    model, more = benchlib.model_dir(), ["--only", what]
    if what.startswith("gguf"):
        model, more = PEERS[what][-1], ["--only", "decode"]
    elif what == "step512":
        more = ["--only", "step", "--prompt-tokens", "512", "--repeat", "1"]
    elif what == "tiny":
        model, more = "random:tiny", ["--only", "step", "--repeat", "8"]
    return run([folgore, "bench", "--model", model, "--threads", str(benchlib.THREADS), *more, "--json"])


def line(bench, name):
    return next(r for r in bench["results"] if r["name"].startswith(name))


def figures(what, bench, peer):
    """Seconds of both for the same work, by what is compared."""
    r = peer["result"]
    if what in ("step", "step512", "tiny"):
        b = line(bench, "GRPO step")
        return {
            f"GRPO step ({what})": (b["best_s"], r["best"]["step_s"]),
            "  generation": (b["detail"]["generate_s"], r["best"]["generate_s"]),
            "  learning": (b["detail"]["learn_s"], r["best"]["learn_s"]),
            "  TRL undisturbed": (b["best_s"], r.get("fast_estimate", {}).get("step_s")),
        }
    if what in ("train", "recompute"):
        b = line(bench, "LoRA training")
        return {f"LoRA training ({what})": (b["best_s"], min(r["step_s"]))}
    if what == "rollout":
        b = line(bench, "rollout")
        return {"rollout, 8 x 8 samples": (b["best_s"], min(r["rollout_s"]))}
    one, many = line(bench, "decode, batch 1"), line(bench, "decode, batch 32")
    if what.startswith("gguf"):
        return {
            f"{what}, batch 1": (1 / one["tokens_per_s"], 1 / max(r["batch1_tok_s"])),
            f"{what}, batch 32": (1 / many["tokens_per_s"], 1 / max(r["batch32_tok_s"])),
        }
    return {
        "decode, batch 1": (1 / one["tokens_per_s"], 1 / r["batch1_greedy_tok_s"]),
        "decode, batch 32": (1 / many["tokens_per_s"], 1 / r["decode_tok_s_median_step"]),
        "decode, batch 32, fast step": (1 / many["detail"]["tok_s_fast_step"], 1 / r["decode_tok_s_fast_step"]),
    }


def noise(what, rounds):
    """Why the ratio of `what` may not be trusted; empty if it may."""
    doubts = []
    gemm = [g for b, _ in rounds for g in (b["ceilings_before"]["gemm_gflops"], b["ceilings_after"]["gemm_gflops"])]
    sgemm = [p["calibration"][t]["sgemm_gflops_best"] for _, p in rounds for t in ("before", "after")]
    for name, values in (("our gemm", gemm), ("torch sgemm", sgemm)):
        if max(values) > 1.15 * min(values):
            doubts.append(f"{name} between {min(values):.0f} and {max(values):.0f} GFLOP/s")
    busy = [r["other_cores"] or 0 for b, _ in rounds for r in b["results"]] + [p["noise"]["other_cores"] for _, p in rounds]
    if max(busy) > 0.2:
        doubts.append(f"others kept up to {max(busy):.1f} cores busy")
    return doubts


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--folgore", default=os.path.join(HERE, "../../target/release/folgore"))
    ap.add_argument("--only", default="step,step512,tiny,train,recompute,rollout,decode")
    ap.add_argument("--rounds", type=int, default=2)
    ap.add_argument("--out", help="file that every line of JSON is appended to")
    a = ap.parse_args()
    folgore = os.path.abspath(a.folgore)
    for what in (name for only in a.only.split(",") for name in GROUPS.get(only, [only])):
        rounds = []
        for _ in range(a.rounds):
            benchlib.wait_idle()
            bench = ours(folgore, what)
            benchlib.wait_idle()
            peer = run([sys.executable, *PEERS[what]])
            rounds.append((bench, peer))
            if a.out:
                with open(a.out, "a") as f:
                    f.writelines(json.dumps(row) + "\n" for row in (bench, peer))
        all_figures = [figures(what, b, p) for b, p in rounds]
        for name in all_figures[0]:
            pairs = [f[name] for f in all_figures if None not in f[name]]
            if not pairs:
                continue
            mine, theirs = min(m for m, _ in pairs), min(t for _, t in pairs)
            each = ", ".join(f"{t / m:.2f}" for m, t in pairs)
            print(f"{name:<30} folgore {mine:9.4f} s   peer {theirs:9.4f} s   ratio {theirs / mine:5.2f}   by round {each}")
        memory = [(max(r["peak_memory_mib"] or 0 for r in b["results"]), p["memory"]["peak_rss_mib"]) for b, p in rounds]
        print(f"{'  peak memory':<30} folgore {max(m for m, _ in memory):7.0f} MiB   peer {max(t for _, t in memory):7.0f} MiB")
        for doubt in noise(what, rounds):
            print(f"  doubtful: {doubt}")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
