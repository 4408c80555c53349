"""A reward that compares: of the completions of one question, the best get 1 and the others 0; where all are alike, 0.5."""

from exact import FORM, exact


def merit(completion, right):
    return 2 * right + (FORM.fullmatch(completion) is not None)


def best(completions, answer, stop_reason, **columns):
    merits = [merit(*each) for each in zip(completions, exact(completions, answer, stop_reason))]
    if min(merits) == max(merits):
        return [0.5] * len(merits)
    return [float(merit == max(merits)) for merit in merits]
