"""The command line: `python -m gradprom COMMAND`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

HELP = """GradProm: task-driven enhancement of medical images.

python -m gradprom demo [--out report] [--dims 2|3] [--seed 0]
    train on an MRI atlas with and without GradProm, compare, write a report
python -m gradprom data fetch mni152_2d --root DIR
    write the atlas as a training set (or mni152_3d)

Add --help to a command for more.
"""


class _Job:
    """Work to do once the whole command line has been understood.

    Fire calls a function before it finds that a flag is left over, so a mistyped flag would show
    after minutes of training. The functions below therefore only say what to do.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work


def demo(out: str = "report", dims: int = 2, seed: int = 0, bundle: str | None = None) -> _Job:
    """Train with and without GradProm on real MRI and show what it did, in numbers and pictures.

    Trains the bundle on MNI152 twice with the same steps, seed and data (rule gradprom, and no
    gate), compares both on held-out slices with classical filters, and writes OUT/index.html.
    Takes at most 6 minutes and 4 GB with --dims 2 on two cores; about 20 minutes with --dims 3.

    Args:
        out: folder for the report; new, empty, or made by an earlier demo.
        dims: 2 for slices, 3 for volumes.
        seed: of training and noise; a whole number.
        bundle: the bundle's folder, if it is not in ./bundles.
    """

    def work() -> None:
        from gradprom.apps import demo as app

        app.run(str(out), dims, seed, None if bundle is None else str(bundle))

    return _Job(work)


def fetch(name: str, root: str) -> _Job:
    """Write a training set that an installed package carries.

    Args:
        name: mni152_2d or mni152_3d.
        root: folder for images, labels and datalist.json.
    """

    def work() -> None:
        from gradprom.data import mni152
        from gradprom.errors import InputError

        dims = {"mni152_2d": 2, "mni152_3d": 3}.get(str(name))
        if dims is None:
            raise InputError(f"no data set is called {name!r}; give mni152_2d or mni152_3d.")
        print(f"Wrote {mni152.prepare(str(root), dims)}")

    return _Job(work)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0, or 1 after one sentence on what is wrong)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments:
        print(HELP)
        return 0
    import fire

    from gradprom.errors import InputError

    commands = {"demo": demo, "data": {"fetch": fetch}}
    job = fire.Fire(commands, arguments, name="gradprom", serialize=lambda _: None)
    if not isinstance(job, _Job):
        print(HELP)
        return 0
    try:
        job._work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
