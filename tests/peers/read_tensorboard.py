"""Reads a run's event files with TensorBoard's own reader and compares them with metrics.jsonl.

    pip install tensorboard
    python3 tests/peers/read_tensorboard.py runs/run-1
"""

import json
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util


def shown(folder: Path) -> dict:
    reader = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
    reader.Reload()
    tags = reader.Tags()
    series = {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["tensors"]:  # newer readers hand scalars on as tensors
        series[tag] = [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in reader.Tensors(tag)]
    return series


def expected(run: Path) -> dict:
    series: dict = {}
    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for tag, value in line.items():
            if tag != "step" and isinstance(value, (int, float)):
                series.setdefault(tag, []).append((line["step"], value))
    return series


def main() -> None:
    run = Path(sys.argv[1])
    found, wanted = shown(run / "tb"), expected(run)
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for tag, points in wanted.items():
        assert [s for s, _ in found[tag]] == [s for s, _ in points], (tag, found[tag], points)
        for (step, got), (_, want) in zip(found[tag], points):
            assert abs(got - want) <= 1e-6 * max(1.0, abs(want)), (tag, step, got, want)
    print(f"{len(wanted)} series, {sum(map(len, wanted.values()))} values: equal")


if __name__ == "__main__":
    main()
