"""``python tests/soak.py``: runs that are killed again and again end as if nothing had happened.

Every way to train is run twice: once left alone; once with SIGKILLs at random moments of start-up,
training, saving, validation and the end, each time resumed when all of its processes have ended. By
hand, because it takes minutes a way. The exit status is 1 if a weight or a logged number differs,
if a process is left behind, or if a start ends otherwise than it should.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
from recipe import ROOT, environment, flags, write_images
from safetensors.torch import load_file
from test_images import truncated
from test_resume import EVERYTHING, TIMED, TRAIN, TWO
from tqdm import tqdm

from man_zoo.console import table

# A data set that is read by processes of its own, one image of it damaged.
STREAMED = ("--skip-bad-images", "--in-memory", "off", "--workers", "1", "--log-interval", "2")
# How processes are launched, and the flags of how they share the work.
MODES = {
    "one process": ((), ()),
    "data-parallel": (TWO, ()),
    "block-parallel": (TWO, ("--block-parallel", "2")),
    "sharded": (TWO, ("--fsdp",)),
}
EPOCHS_A_KILL = 3
MARK = "MAN_ZOO_SOAK"  # in the environment of all that a run starts: its folder
IN_START_UP = 0.2  # the share of kills before a start trains
AT_THE_END = 0.2  # of the others, the share after the last epoch
LIMIT = 60  # seconds until what was not killed has to have ended
PATIENCE = 600  # seconds, far above what is needed: not to wait for ever


class Wrong(Exception):
    """A start that did not do what it should."""


@dataclass
class Pace:
    """Seconds that a start takes before it trains, for an epoch, and after the last."""

    start_up: float = 0.0
    epoch: float = 0.0
    end: float = 0.0


class Run:
    """A training run that can be started again and again, in a folder of its own."""

    def __init__(self, mode: str, epochs: int, data: Path, folder: Path) -> None:
        self.launch, more = MODES[mode]
        folder.mkdir(parents=True)
        self.epochs, self.mark = epochs, str(folder)
        self.words = flags(data, folder, *EVERYTHING, *STREAMED, "--epochs", str(epochs), *more)
        self.folder, self.output = folder / "run", folder / "output.txt"
        self.temporary = folder / "tmp"  # torchrun's, who cannot tidy up when killed
        self.temporary.mkdir()

    def start(self) -> None:
        words = ("--resume", str(self.folder)) if self.folder.exists() else self.words
        self.started = time.time()
        with self.output.open("ab") as output:
            self.process = psutil.Popen(
                [sys.executable, *self.launch, TRAIN, *words],
                env=environment() | {MARK: self.mark, "TMPDIR": str(self.temporary)},
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    def epochs_done(self) -> int:
        """Epochs that this start finds or has logged; none before it writes its log anew."""
        log = self.folder / "log.jsonl"
        if not log.exists() or log.stat().st_mtime < self.started:
            return -1
        return len(log.read_text().splitlines())

    def wait_for(self, epochs: int) -> bool:
        """Until this start has so many epochs; whether it has not ended before."""
        wait(lambda: self.process.poll() is not None or self.epochs_done() >= epochs)
        return self.process.poll() is None

    def finish(self) -> None:
        """To its end, which has to be a good one."""
        wait(lambda: self.process.poll() is not None)
        if self.process.returncode:
            end = self.output.read_text()[-2000:]
            raise Wrong(f"a start ended with status {self.process.returncode}: {end}")

    def victims(self) -> list[psutil.Process]:
        """The launcher and what it has launched by now, or the one process that trains."""
        return [self.process, *(self.process.children() if self.launch else [])]

    def processes(self) -> list[psutil.Process]:
        """All that live of this run, whoever their parents are by now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def wait_till_gone(self) -> tuple[float, int]:
        """Seconds until no process of this run lives; and how many had to be killed for it."""
        begun = time.monotonic()
        while (left := self.processes()) and time.monotonic() < begun + LIMIT:
            time.sleep(0.1)
        seconds = time.monotonic() - begun
        self.end()
        return seconds, len(left)

    def end(self) -> None:
        while found := self.processes():
            for process in found:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(found)


def wait(done: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > limit:
            raise Wrong(f"a start has not come further for {PATIENCE} seconds")
        time.sleep(0.01)


def leave_alone(run: Run) -> Pace:
    """Run it once, to its end."""
    run.start()
    times = [time.monotonic()]
    for epochs in (0, run.epochs):
        run.wait_for(epochs)
        times.append(time.monotonic())
    run.finish()
    times.append(time.monotonic())
    start_up, training, end = (b - a for a, b in pairwise(times))
    return Pace(start_up, training / run.epochs, end)


@dataclass
class Kill:
    """What came of one.

    Args:
        who: The process that was killed.
        when: Epochs that were done.
        seconds: Until all others had ended.
        left: Others that had not.
    """

    who: str
    when: str
    seconds: float
    left: int

    def __str__(self) -> str:
        return f"{self.who} killed {self.when}: the others ended in {self.seconds:.1f} s"


def kill(run: Run, pace: Pace, moment: float, chance: random.Random) -> Kill | None:
    """Start a run and kill one of its processes.

    Args:
        run: What to start.
        pace: How fast it is.
        moment: Epochs to be done by then, and the part of the next, or of what follows the last.
        chance: For the process, and for kills in start-up.

    Returns:
        None if the run was faster, and has ended well.
    """
    run.start()
    if chance.random() < IN_START_UP:
        time.sleep(chance.uniform(0.2, 1) * pace.start_up)
    elif run.wait_for(int(moment)):
        time.sleep(moment % 1 * (pace.epoch if moment < run.epochs else pace.end))
    victims = run.victims()
    victim = chance.choice(victims)
    if run.process.poll() is not None:
        run.finish()
        return None
    done = run.epochs_done()
    victim.kill()
    seconds, left = run.wait_till_gone()
    first = "launcher" if run.launch else "process"
    who = f"process {victims.index(victim)}" if victim is not run.process else first
    when = "in start-up" if done < 0 else f"after {done} epochs"
    return Kill(who, when, seconds, left)


def moments(epochs: int, kills: int, chance: random.Random) -> list[float]:
    """When to kill, in order, as :func:`kill` takes it."""
    return sorted(
        epochs + chance.random() if chance.random() < AT_THE_END else chance.uniform(0, epochs)
        for _ in range(kills)
    )


def soak(mode: str, kills: int, chance: random.Random, data: Path, folder: Path) -> list[object]:
    """Both runs of a way to train; its row of the table, in which all is well if it ends so."""
    epochs, name = EPOCHS_A_KILL * kills, mode.replace(" ", "-")
    alone = Run(mode, epochs, data, folder / f"{name}-alone")
    killed = Run(mode, epochs, data, folder / f"{name}-killed")
    done: list[Kill] = []
    try:
        pace = leave_alone(alone)
        with tqdm(total=kills, desc=mode, unit="kill") as bar:
            for moment in moments(epochs, kills, chance):
                while (one := kill(killed, pace, moment, chance)) is None:
                    moment = chance.uniform(0, moment)  # it was faster
                bar.write(f"{mode}: {one}")
                bar.update()
                done.append(one)
        killed.start()
        killed.finish()
        _, left = killed.wait_till_gone()
        verdict = difference(alone.folder, killed.folder)
    except Wrong as wrong:
        print(f"{mode}: {wrong}", file=sys.stderr)
        verdict, left = "did not end", 0
    finally:
        alone.end()
        killed.end()
    back = killed.output.read_text().count("; going on from ")
    worst = max((one.seconds for one in done), default=0)
    return [mode, len(done), back, f"{worst:.1f}", sum(one.left for one in done) + left, verdict]


def difference(alone: Path, killed: Path) -> str:
    """What is not the same in two runs, or ``equal``."""
    last = sorted((alone / "checkpoints").glob("epoch-*"))[-1]
    for path in (*last.glob("*.safetensors"), *alone.glob("export*/*.safetensors")):
        file = path.relative_to(alone)
        if tensors(path) != tensors(killed / file):
            return f"{file} differs"
    if untimed(alone) != untimed(killed):
        return "log.jsonl differs"
    if hidden := [*killed.rglob(".*")]:
        return f"{hidden[0].name} is left"
    return "equal"


def tensors(file: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def untimed(run: Path) -> list[dict[str, object]]:
    """The lines of a log without what is a measure of time or memory."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [
        {key: line[key] for key in line.keys() - TIMED if not key.startswith("peak_mib")}
        for line in lines
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10, help="of each way to train")
    parser.add_argument("--seed", type=int, default=0, help="of when and whom to kill")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES], metavar="MODE")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # to end what it started first
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    data = write_images(folder / "data", train=48)
    truncated(data / "train" / "class0" / "3.png")
    chance = random.Random(args.seed)
    rows = [
        soak(mode, args.kills, chance, data, folder / mode.replace(" ", "-")) for mode in args.modes
    ]
    header = ["mode", "kills", "went back", "worst seconds to end", "left behind", "weights, log"]
    print(table(header, rows))
    if all(row[4] == 0 and row[5] == "equal" for row in rows):
        shutil.rmtree(folder)
        return 0
    print(f"The runs and what they said are in {folder}.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
