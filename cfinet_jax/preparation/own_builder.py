"""Write checked annotations as a TFDS data set whose records refer to image files, or hold pictures made for it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from cfinet_jax.errors import UserError
from cfinet_jax.input.origin import state
from cfinet_jax.input.pictures import common_range
from cfinet_jax.input.records import columns, features, seal
from cfinet_jax.preparation.coco_annotations import Split, read_splits, summary
from cfinet_jax.preparation.journal import Journal, state_of
from cfinet_jax.preparation.oddities import compare_splits
from cfinet_jax.runtime.paths import matching

SHARD = 400  # records per file; TFDS holds the records of one file in memory, up to 100 MiB of pictures


class Builder(tfds.core.ShardBasedBuilder):
    """Builder of records with boxes and image paths, and of `account.json` about all that was skipped or changed.

    Records stay in order: training shuffles them anyway, and to shuffle them here TFDS would store them twice.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        *,
        read: Callable[[Journal], Mapping[str, Split]],
        origin: Mapping[str, str],
        name: str,
        boxes: str = "horizontal",
        **arguments,
    ):
        """Create the builder.

        Args:
          read: reads every split.
          origin: `source` and `annotations`, stored with the data set to recognise it again.
          name: the name of the data set.
          boxes: "horizontal" or "oriented".
          **arguments: arguments of every TFDS builder.

        Raises:
          UserError: a data set cannot have this name.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise UserError(f"'{name}' cannot name a data set: use small letters, digits and underscores")
        self.name = name
        self.read = read
        self.origin = dict(origin)
        self.boxes = boxes
        super().__init__(**arguments)
        self.unfinished = epath.Path(self.data_dir).parents[1] / f"{name}.unfinished"

    def download_and_prepare(self, **arguments: Any) -> None:
        """Prepare the data set, then delete the journal and the leftovers of killed builds."""
        super().download_and_prepare(**arguments)
        for leftover in (self.unfinished, *matching(epath.Path(self.data_dir).parent, "incomplete.*")):
            leftover.rmtree(missing_ok=True)

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=features(self.boxes), metadata=tfds.core.MetadataDict())

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator]]]:
        splits, record = self._read_recorded()
        categories = next(iter(splits.values())).categories
        named = {"classes": list(categories.values()), "category_ids": list(categories), "boxes": self.boxes}
        self.info.metadata.update(self.origin, **record, **named)
        accounts = {split: content.account for split, content in splits.items()}
        self.info.metadata["seal"] = seal(self.info.metadata, accounts)
        (epath.Path(self.data_dir) / "account.json").write_text(json.dumps(accounts, indent=2))
        for split, account in accounts.items():
            print(
                f"{split}: {account['images_kept']} of {account['images']} images and {account['annotations_kept']} of "
                f"{account['annotations']} annotations kept; {summary(account['problems'])}"
            )
        return {split: shards(content, self.boxes) for split, content in splits.items()}

    def _read_recorded(self) -> tuple[Mapping[str, Split], dict[str, Any]]:
        """Read every split; return also metadata: the files that describe them, their state and the grey range."""
        try:
            with Journal(self.unfinished) as journal:
                splits = self.read(journal)
                first = next((split for split in splits if split != "test"), "test")
                splits = read_splits(splits, partial(check_same_categories, first, splits[first].categories))
                compare_splits(splits, journal.seen)
            files = sorted({str(file) for content in splits.values() for file in content.files})
            # The journal may also know pictures that are no longer used.
            kept = {each["path"] for content in splits.values() if not content.pictures for each in content.records}
            made = [journal.made.get(state_of(epath.Path(path))) for path in kept]
            greys = [each["greys"] for each in made if isinstance(each, dict)]
            return splits, {"files": files, "state": state(files), "grey_range": common_range(greys, len(kept))}
        except OSError as error:  # here, since `prepare` takes every other OSError for a failure to write
            reason = " ".join(str(error.strerror or error).split())
            raise UserError(f"{error.filename or 'the source'} cannot be read ({reason}): make it readable") from error


def shards(content: Split, boxes: str) -> list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]:
    """Return a function for every file of a split that yields its records with their keys."""
    count = len(content.records)
    parts = (range(start, min(start + SHARD, count)) for start in range(0, count, SHARD))
    return [partial(keyed, content, part, boxes) for part in parts]


def keyed(content: Split, indices: range, boxes: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield records as they are written, with their pictures if the data set is to hold them."""
    for index in indices:
        record = content.records[index]
        own = {"image": content.pictures(index), "path": ""} if content.pictures else {}
        yield record["image_id"], record | own | {"objects": columns(record["objects"], boxes)}


def check_same_categories(first: str, categories: dict[int, str], split: str, content: Split) -> Split:
    """Return the content of a split; refuse it if its categories differ from those of the first split."""
    ours, theirs = categories.items(), content.categories.items()
    only = {first: sorted(ours - theirs), split: sorted(theirs - ours)}
    listed = "; ".join(f"only in '{name}': {str(dict(some))[1:-1]}" for name, some in only.items() if some)
    if listed:
        raise UserError(f"splits '{first}' and '{split}' name different categories ({listed}): make them agree")
    return content
