"""A reward as TRL takes it: the whole response is a think block and an answer block, and the answer is right."""

import re

FORM = re.compile(r"<think>[^<]*</think><answer>(\d+)</answer>")


def exact(completions, answer, stop_reason, **columns):
    scores = []
    for completion, right, stop in zip(completions, answer, stop_reason):
        found = FORM.fullmatch(completion)
        cut_off = stop in ("length", "context")
        scores.append(1.0 if found and not cut_off and found.group(1) == str(right) else 0.0)
    return scores
