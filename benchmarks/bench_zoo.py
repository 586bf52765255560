"""Real ONNX models through the command line, judged on inputs that compress never saw.

    FASTOPT_ZOO=folder python -m benchmarks.bench_zoo [--target latency] [--seeds 5] [name ...]

The folder holds ``<name>.onnx``, ``<name>_a.npz`` (for compress) and the module ``zoo`` (there or
on PYTHONPATH), which knows each model's metric and scores a file on the other half of its inputs.
Without the folder there is nothing to do.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

# size and latency as shares of the original's: the best of onnxruntime, onnxsim and onnxslim whose
# agreement is .99 or more (for the latency, of the smallest file).
PEERS = {
    "magika": ".258, 1.39", "v4det": ".510, -", "v4rec": ".508, 1.0", "cls": ".321, 1.58",
    "minilm": ".253, .62", "minilm_int8": "none", "silero": ".308, 1.34", "oww_emb": ".270, 1.21",
    "oww_mel": ".254, .98", "alexa": ".142, 9.2", "mycroft": ".266, 1.30", "jarvis": ".257, 2.0",
    "ddet": ".255, 3.5", "tashkeel": ".285, 1.07", "sf_gbr": ".356, 1.2", "sf_knc": ".356, 1.2",
    "sf_knr": ".356, 1.2",
}  # fmt: skip
SCORES = 5


def compressed(folder: Path, name: str, target: str, seed: int, out: Path) -> dict[str, Any]:
    """One command as a user types it; its JSON, exit code and seconds."""
    command = [
        sys.executable, "-m", "fastopt", "compress", str(folder / f"{name}.onnx"),
        "--data", str(folder / f"{name}_a.npz"), "--metric", f"zoo:agree_{name}",
        "--max-drop", "1%", "--target", target, "--seed", str(seed), "-o", str(out), "--json",
    ]  # fmt: skip
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode not in (0, 3):
        return {"seconds": seconds, "exit": done.returncode, "error": done.stderr.strip()}
    return {"seconds": seconds, "exit": done.returncode, **json.loads(done.stdout)}


def row(zoo: Any, folder: Path, name: str, target: str, seeds: int) -> None:
    """Compress with some seeds, score each result, print one line."""
    agreement, size, latency, seconds, codes = [], [], [], [], []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(seeds):
            out = Path(temporary) / f"{name}{seed}.onnx"
            found = compressed(folder, name, target, seed, out)
            seconds.append(found["seconds"])
            codes.append(found["exit"])
            if "error" in found:
                print(f"{name:<12} exit {found['exit']}: {found['error']}", flush=True)
                return
            scores = [zoo.score(str(folder), name, str(out)) for _ in range(SCORES)]
            agreement.append(scores[0]["agreement"])
            size.append(scores[0]["size"])
            latency.append(median(s["latency"] for s in scores))
    rows = len(zoo.arrays(name)[3])
    print(
        f"{name:<12} {target:<8} {mean(size):.3f} {mean(latency):7.3f} {mean(agreement):10.4f}"
        f" {min(agreement):8.4f} {rows:6} {mean(seconds):8.1f}  {PEERS.get(name, '')}"
        f"  {sorted(set(codes))}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--target", choices=("size", "latency"), default="size")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    folder = os.environ.get("FASTOPT_ZOO")
    if not folder:
        print("FASTOPT_ZOO names no folder: skipped")
        return
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    zoo = importlib.import_module("zoo")
    head = "model        target   size latency  agreement   worst   rows  seconds  peer  exit"
    print(head, flush=True)
    for name in arguments.names or zoo.MODELS:
        row(zoo, Path(folder), name, arguments.target, arguments.seeds)


if __name__ == "__main__":
    main()
