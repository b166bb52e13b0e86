"""What a training was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from engine.featurizer import DEFAULT_BACKBONE, OWN_TAPS, FeaturizerSpec
from engine.locations import shown
from engine.specs import Region
from trainer.escapes import Bound
from trainer.feature_store import LIMIT_GIB
from trainer.label_csv import DEFAULT_COLUMNS
from trainer.operating_point import Costs
from trainer.selection import Request
from trainer.tiling import cut

if TYPE_CHECKING:
    from pathlib import Path

    from engine.bundle import Bundle
    from trainer.label_csv import Columns
    from trainer.spark_settings import SparkSettings

_OF_THIS_MACHINE = ("features", "features_limit_gib", "bundle_cache")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What `framegate train` was asked for.

    Attributes:
        columns: what the columns of the CSV file are called.
        group_pattern: regular expression on the images' paths, see `trainer.group_pattern`.
        size_px: (width, height) of the network's input; None chooses among a few by cross-validation.
        tile_px: (width, height) of the tiles to cut the input into; without a size the images' own is taken, as near as
            whole tiles come to it. None does not cut.
        backbone: a name in `engine.featurizer.ARCHITECTURES`; None is the default one.
        taps: blocks to look at; None chooses where to cut the network.
        featurizer_of: bundle whose featurizer to use unchanged, input size and region with it; only the head is new.
        jpeg: `scaled` or `whole`, see `ImageSpec`; None: as `featurizer_of` has it, or else `scaled`.
        defect_rate: the line's share of defects; None keeps the training set's own.
        bound: on what share of defects may pass; it outranks the costs.
        held_out: new folder for the images that were held out, with what they are; for replays and acceptance runs.
        source: path or URL of a zip or a folder of images; None: where those of the bundle to refine were.
        refine: bundle whose training set is taken again, with its featurizer; `reviews` are the labels that join it.
        features: folder that features are kept in, and looked up in; None: one that is deleted in the end.
        features_limit_gib: of that folder; what was used longest ago is deleted first, what is in use never.
        bundle_cache: folder that bundles to refine, or to take a featurizer of, are fetched into from URLs.
        report: whether the bundle gets its acceptance report.
        spark: the cluster that featurizes; None featurizes here.
    """

    source: str | None
    out: Path
    name: str | None = None
    version: str = "1"
    fail_class: str | None = None
    groups: Path | None = None
    columns: Columns = DEFAULT_COLUMNS
    group_pattern: str | None = None
    size_px: tuple[int, int] | None = None
    tile_px: tuple[int, int] | None = None
    backbone: str | None = None
    taps: tuple[int, ...] | None = None
    featurizer_of: str | None = None
    region: Region = field(default_factory=Region)
    jpeg: str | None = None
    seed: int = 0
    defect_rate: float | None = None
    costs: Costs = field(default_factory=Costs)
    bound: Bound = field(default_factory=Bound)
    held_out: Path | None = None
    refine: str | None = None
    reviews: Path | None = None
    features: Path | None = None
    features_limit_gib: float = LIMIT_GIB
    bundle_cache: Path | None = None
    report: bool = True
    spark: SparkSettings | None = None

    def told(self) -> dict[str, str]:
        """The options that were given, for the report; the source and where the bundle lies are told by themselves.

        Where features are kept on this machine changes nothing in the model.
        """
        defaults = TrainSettings(self.source, self.out)
        own = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in _OF_THIS_MACHINE}
        given = {name: value for name, value in own.items() if value != getattr(defaults, name)}
        return {f"--{name.replace('_', '-')}": shown(str(value)) for name, value in given.items()}

    def request(self, given: Bundle | None) -> Request:
        """What is left to choose; `given` is the bundle whose featurizer is used."""
        if given is not None:
            featurizer = FeaturizerSpec.from_json(given.featurizer)
            whole = FeaturizerSpec.from_json(given.about["featurized_with"]) if self.refine else featurizer
            return Request(self.seed, given.image.region, given.image, featurizer, is_pinned=True, whole=whole)
        taps = OWN_TAPS if self.taps is None else self.taps
        featurizer = FeaturizerSpec(self.backbone or DEFAULT_BACKBONE, taps)
        jpeg = self.jpeg or "scaled"
        image = replace(cut(self.size_px, self.tile_px, self.region), jpeg=jpeg) if self.size_px else None
        return Request(self.seed, self.region, image, featurizer, self.taps is not None, self.tile_px, jpeg)
