"""The images that could not be read while a run goes on: listed, skipped, and how many training can bear."""

from collections.abc import Mapping, Sequence

from vimoe.distributed import all_gather, rank
from vimoe.errors import UserError
from vimoe.training.run_folder import RunFolder


class BrokenImages:
    """One line for each broken image of `train` and `val`, kept in the run's folder.

    Args:
        run: Where the list is written.
        images: Of the training set.
        most: What share of them may be broken.
    """

    def __init__(self, run: RunFolder, images: int, most: float) -> None:
        self.run, self.images, self.most = run, images, most
        self._lines: dict[str, set[str]] = {"train": set(), "val": set()}

    def add(self, split: str, line: str) -> None:
        """List a broken image. Raises UserError if too many training images are broken."""
        found = self._lines[split]
        if line in found:
            return
        found.add(line)
        self.run.write_skipped(set().union(*self._lines.values()), rank())
        if split == "train" and len(found) > self.most * self.images:
            raise UserError(
                f"{len(found)} of {self.images} training images are broken, more than max_broken {self.most:g} allows: "
                f"{line}"
            )

    def gathered(self) -> dict[str, list[str]]:
        """The lines of all processes, by split; all processes call this together."""
        found = all_gather(self._lines)
        return {split: sorted(set().union(*(each[split] for each in found))) for split in self._lines}

    def restore(self, lines: Mapping[str, Sequence[str]]) -> None:
        """Go on from what `gathered` gave."""
        self._lines = {split: set(lines[split]) for split in self._lines}
