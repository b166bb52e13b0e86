"""How the board looks, said once: kinds of panels, colours that hold on dark and light, and Prometheus' queries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grafana_foundation_sdk.builders import common as build_common
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DashboardRangeMapOptions,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    RangeMap,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grafana_foundation_sdk.cog.builder import Builder

DATASOURCE = DataSourceRef(type_val="prometheus", uid="prometheus")
"""As deploy/grafana/provisioning names it."""

GREEN, RED, ORANGE, PURPLE, BLUE, GREY = "green", "red", "orange", "purple", "blue", "text"
"""Grafana's names: each theme has its own shade of them."""

DECISION_COLOURS = {"pass": GREEN, "fail": RED, "review": ORANGE, "none": PURPLE}


def plot(
    title: str, description: str, unit: str, *, wide: int, high: int, decimals: int | None = None, rows: bool = True
) -> timeseries.Panel:
    """Lines over time, from 0; the legend is a table of the newest values, the largest first, or a list below."""
    legend = build_common.VizLegendOptions().show_legend(show_legend=True)
    if rows:
        legend.display_mode(common.LegendDisplayMode.TABLE).placement(common.LegendPlacement.RIGHT)
        legend.calcs(["lastNotNull"]).sort_by("Last *").sort_desc(sort_desc=True)
    else:
        legend.display_mode(common.LegendDisplayMode.LIST).placement(common.LegendPlacement.BOTTOM)
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(wide)
        .height(high)
        .unit(unit)
        .min(0)
        .color_scheme(build.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC_BY_NAME))
        .line_width(2)
        .fill_opacity(0)
        .show_points(common.VisibilityMode.NEVER)
        .legend(legend)
        .tooltip(
            build_common.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
            .hide_zeros(hide_zeros=True)
        )
    )
    return panel if decimals is None else panel.decimals(decimals)


def bars(title: str, description: str, *, group: str, wide: int, high: int) -> timeseries.Panel:
    """What adds up, stacked within its group."""
    stacked = build_common.StackingConfig().mode(common.StackingMode.NORMAL).group(group)
    panel = plot(title, description, "none", wide=wide, high=high, decimals=1)
    return panel.draw_style(common.GraphDrawStyle.BARS).fill_opacity(60).stacking(stacked)


def number(
    title: str, description: str, unit: str, *, wide: int = 4, high: int = 4, decimals: int | None = 0
) -> stat.Panel:
    """A few large numbers, to be read from across the hall; without `decimals`, as Grafana rounds."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(wide)
        .height(high)
        .unit(unit)
        .no_value("no data")
        .graph_mode(common.BigValueGraphMode.NONE)
        .color_mode(common.BigValueColorMode.VALUE)
        .text_mode(common.BigValueTextMode.AUTO)
        .reduce_options(build_common.ReduceDataOptions().calcs(["lastNotNull"]).values(values=False))
    )
    return panel if decimals is None else panel.decimals(decimals)


def listing(title: str, description: str, empty: str, *, wide: int, high: int) -> table.Panel:
    """A table of what is so now; `empty` stands there when nothing is."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(DATASOURCE)
        .span(wide)
        .height(high)
        .no_value(empty)
        .show_header(show_header=True)
        .cell_height(common.TableCellHeight.SM)
    )


def over_time(expr: str, legend: str, ref_id: str = "A") -> prometheus.Dataquery:
    """A query for each moment of the plot."""
    return _query(expr, ref_id).range().legend_format(legend)


def now(expr: str, ref_id: str = "A", legend: str = "") -> prometheus.Dataquery:
    """A query for the newest moment alone."""
    return _query(expr, ref_id).instant().legend_format(legend)


def rows_now(expr: str, ref_id: str = "A") -> prometheus.Dataquery:
    """The same with a column for each label."""
    return _query(expr, ref_id).instant().format(PromQueryFormat.TABLE)


def _query(expr: str, ref_id: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().datasource(DATASOURCE).expr(" ".join(expr.split())).ref_id(ref_id)


def columns(names: Mapping[str, str], *, leave_out: Sequence[str] = ()) -> list[DataTransformerConfig]:
    """One row for each set of labels, with these columns in this order, under names for people."""
    return [
        DataTransformerConfig(id_val="merge", options={}),
        DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": dict.fromkeys(("Time", *leave_out), True),
                "indexByName": {name: place for place, name in enumerate(names)},
                "renameByName": dict(names),
            },
        ),
    ]


def limits(*steps: tuple[float, str], below: str = GREEN) -> build.ThresholdsConfig:
    """Colours from these values up; `below` under the first."""
    return (
        build.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(None, below), *(Threshold(value, colour) for value, colour in steps)])
    )


def one_colour(name: str) -> build.FieldColor:
    """A panel of one colour."""
    return build.FieldColor().mode(FieldColorModeId.FIXED).fixed_color(name)


def first(column: str, *, most: bool = False) -> list[Builder[common.TableSortByFieldState]]:
    """Rows by a column: the smallest, or the `most`, at the top."""
    return [build_common.TableSortByFieldState().display_name(column).desc(desc=most)]


def colour(name: str) -> DynamicConfigValue:
    """Always this colour."""
    return DynamicConfigValue("color", {"mode": FieldColorModeId.FIXED, "fixedColor": name})


def dashed() -> DynamicConfigValue:
    """A dashed line."""
    return DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 8]})


def unit(name: str, decimals: int) -> list[DynamicConfigValue]:
    """A column's unit."""
    return [DynamicConfigValue("unit", name), DynamicConfigValue("decimals", decimals)]


def shaded(*steps: tuple[float, str], below: str = GREY) -> list[DynamicConfigValue]:
    """A column whose text takes the colour of its value."""
    return [
        DynamicConfigValue("thresholds", limits(*steps, below=below).build()),
        DynamicConfigValue("custom.cellOptions", common.TableColorTextCellOptions()),
    ]


def words(said: Mapping[str, tuple[str, str]]) -> list[DynamicConfigValue]:
    """A column that says a word, in a colour, for each value."""
    options = {value: ValueMappingResult(text=text, color=name) for value, (text, name) in said.items()}
    return [
        DynamicConfigValue("mappings", [ValueMap(options)]),
        DynamicConfigValue("custom.cellOptions", common.TableColorTextCellOptions()),
    ]


def link(text: str, url: str, most: int) -> list[DynamicConfigValue]:
    """A column of numbers up to `most`, each shown as `text` and leading to `url`."""
    anything = DashboardRangeMapOptions(from_val=0, to=most, result=ValueMappingResult(text=text, color=BLUE))
    return [
        DynamicConfigValue("mappings", [RangeMap(anything)]),
        DynamicConfigValue("custom.cellOptions", common.TableColorTextCellOptions()),
        DynamicConfigValue("links", [{"title": text, "url": url, "targetBlank": False}]),
    ]


def board_link(title: str, url: str) -> build.DashboardLink:
    """A link at the head of a board."""
    return build.DashboardLink(title).type(DashboardLinkType.LINK).url(url).icon("doc").keep_time(keep_time=False)
