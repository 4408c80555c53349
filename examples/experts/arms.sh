#!/usr/bin/env bash
# What an expert's traces are worth, on sums that the policy embedded:carries cannot do: GRPO alone, LUFFY, LUFFY where seven of ten
# traces are wrong, and imitation of the same traces, right, wrong, or wrong with those left out that the reward refuses. Seconds an arm.
#
#   examples/experts/arms.sh FOLGORE [SEED ...]        # FOLGORE: the executable; seeds 0 to 4 without any
set -euo pipefail
folgore="$1"
shift
[ $# -gt 0 ] || set -- 0 1 2 3 4
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT

train() {
    local name="$1"
    shift
    "$folgore" train carries run.output_dir="$out" run.name="$name" eval.eval_steps=0 "$@" >"$out/$name.log" 2>&1 || { cat "$out/$name.log"; exit 1; }
    grep "held-out accuracy" "$out/$name.log" | sed "s/^/$name: /"
}

imitate() {
    local name="$1"
    shift
    "$folgore" sft carries run.output_dir="$out" run.name="$name" sft.batch_size=16 optim.num_train_epochs=5 \
        optim.learning_rate=1e-3 "$@" >"$out/$name.log" 2>&1 || { cat "$out/$name.log"; exit 1; }
    "$folgore" eval carries --adapter "$out/$name/best" 2>/dev/null | grep -i "greedy\|sampled" | sed "s/^/$name: /"
}

for seed in "$@"; do
    train "grpo-$seed" run.seed="$seed" traces.per_group=0
    train "luffy-$seed" run.seed="$seed"
    train "luffy-wrong-$seed" run.seed="$seed" data.arithmetic.wrong=0.7
    imitate "sft-$seed" run.seed="$seed"
    imitate "sft-wrong-$seed" run.seed="$seed" data.arithmetic.wrong=0.7
    # as many updates as the others have, over the three of ten that are left
    imitate "sft-judged-$seed" run.seed="$seed" data.arithmetic.wrong=0.7 sft.min_reward=1 optim.num_train_epochs=null optim.max_steps=80
done
