"""What params.yaml says of a dataset of the user's own."""

from pydantic import field_validator, model_validator

from mmrl_core.config import Fraction, LocalPath, Section, Seed


class ColumnsSection(Section):
    """What a table calls its columns; null: by one of the names that table.py knows."""

    path: str | None = None
    label: str | None = None
    split: str | None = None


class OwnSection(Section):
    """A dataset of the user's own: exactly one of `images`, `table`, `shards` says where it lies.

    Relative paths start at the working directory, and ~ is the home folder.
    """

    images: LocalPath | None = None  # a folder of class folders; also what the paths of `table` are relative to
    table: LocalPath | None = None  # CSV or Parquet: path, label and, if wanted, split; or a folder with metadata.csv
    columns: ColumnsSection = ColumnsSection()  # what the table calls them
    shards: LocalPath | None = None  # a folder of WebDataset .tar files, or a pattern of such files
    copy_images: bool = False  # true: the pool holds copies of the shards' images, so that `dvc push` has them all
    classes: LocalPath | None = None  # a CSV with the columns class and name: readable names
    template: str = "a photo of a {}."
    base_classes: list[str] | None = None  # names; the others are novel
    val_share: Fraction = 0.2  # of a class's images, where the data names no split
    test_share: Fraction = 0.3
    split_seed: Seed = 0
    flips: bool = True  # false: a mirrored image is another thing, as with text, digits, left and right

    @field_validator("template")
    @classmethod
    def _names_the_class(cls, template: str) -> str:
        if "{}" not in template:
            raise ValueError("it needs {} where the class name goes")
        return template

    @model_validator(mode="after")
    def _one_place(self) -> "OwnSection":
        if (self.shards and (self.images or self.table)) or not (self.shards or self.images or self.table):
            raise ValueError("name images (a folder), table (CSV or Parquet) or shards (tar files)")
        if self.columns != ColumnsSection() and not self.table:
            raise ValueError("columns names those of a table; name the table as well, or leave columns out")
        if self.copy_images and not self.shards:
            raise ValueError("copy_images is of shards; images in folders and tables are always copied")
        if not 0 < self.test_share < 1 or self.val_share + self.test_share >= 1:
            raise ValueError("val_share and test_share must leave something to train on, and test_share be above 0")
        return self
