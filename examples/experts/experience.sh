#!/usr/bin/env bash
# What the policy's own successes are worth (ExGRPO), and traces and successes in episodes that search. For each arm and seed: held-out
# accuracy, greedy and sampled, and how many members of groups (64 a step) were not sampled. Half a minute an arm.
#
#   examples/experts/experience.sh FOLGORE [SEED ...]        # FOLGORE: the executable; seeds 0 to 4 without any
set -euo pipefail
folgore="$1"
shift
[ $# -gt 0 ] || set -- 0 1 2 3 4
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT

# An arm's name, a preset and settings.
train() {
    local name="$1"
    shift
    "$folgore" train "$@" run.output_dir="$out" run.name="$name" eval.eval_steps=0 >"$out/$name.log" 2>&1 || { cat "$out/$name.log"; exit 1; }
    local given
    given="$({ grep -oE '"(experience|traces)/members":[0-9.]+' "$out/$name/metrics.jsonl" || true; } | awk -F: '{ sum += $2 } END { print sum + 0 }')"
    echo "$name: $(sed -n 's/^eval after *//p' "$out/$name.log"), $given of its members were not sampled"
}

for seed in "$@"; do
    sums=(arithmetic data.max_rows=128 optim.learning_rate=1e-3 optim.max_steps=40 run.seed="$seed")
    own=(replay.experience.enabled=true)
    train "sums-grpo-$seed" "${sums[@]}"
    train "sums-exgrpo-$seed" "${sums[@]}" "${own[@]}"
    train "sums-retirement-$seed" "${sums[@]}" "${own[@]}" replay.experience.ratio=0
    search=(demo data.max_rows=160 optim.max_steps=20 run.seed="$seed")
    train "search-grpo-$seed" "${search[@]}"
    train "search-luffy-$seed" "${search[@]}" traces.per_group=1
    train "search-exgrpo-$seed" "${search[@]}" "${own[@]}"
    train "search-hybrid-$seed" "${search[@]}" "${own[@]}" traces.per_group=1
done
