"""Figures can be read in print: nothing clipped, no tiny letters, the legend in the order of the lines."""

import logging
import math
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import numpy
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from backsight import figures
from backsight.core import Detections
from backsight.figures import (
    Block,
    ErrorPoint,
    Panel,
    Part,
    curves,
    draw_detections,
    draw_frames,
    error_bars,
    fonts,
    grid,
    image_png,
    pages,
    panel_part,
    picture_part,
    picture_parts,
    style,
    to_pdf,
    to_png,
    to_svg,
)
from backsight.figures.house_style import DARK_PALETTE, HEIGHT, LETTERS, PALETTE
from known_chains import texts_of
from marks import quick

LONG = "a file with a very long name 000000397133.jpg"
STAGES = ("backbone", "encoder", "decoder", "prediction (one-hot)")


def pictures(num: int, size: tuple[int, int] = (48, 64)) -> list[torch.Tensor]:
    return list(torch.rand(num, 3, *size, generator=torch.Generator().manual_seed(0)))


def points(scale: float, stages: tuple[str, ...] = STAGES) -> list[ErrorPoint]:
    means = [scale * (place + 1) for place in range(len(stages))]
    return [
        ErrorPoint(stage, [0.9 * m, m, 1.1 * m], (m, 0.8 * m, 1.2 * m)) for stage, m in zip(stages, means, strict=True)
    ]


def losses() -> list[dict]:
    return [
        {"step": step, "entry": entry, "seed": seed, "loss": scale / (step + 1 + seed)}
        for entry, scale in (("backbone", 1.0), ("encoder", 9.0), ("decoder", 3.0))
        for seed in range(3)
        for step in range(0, 50, 5)
    ]


FIGURES = {
    "pages": lambda: pages(
        [
            picture_part(
                [pictures(5)] * 12, ["input", *STAGES], ["a file with a very long name 000000397133.jpg"] * 12
            ),
            panel_part(
                [Panel("MSE", {"detr": points(0.01), "vit": points(0.2)}, {"mean image": 0.03})], heading="Errors"
            ),
        ]
    ),
    "grid": lambda: [
        grid(
            [pictures(5), pictures(5, (64, 48))],
            ["input", *STAGES],
            [LONG, "b.jpg"],
            [[[("car 97 %", PALETTE[0]), ("dog 88 %", PALETTE[1])], *["MSE 0.0123"] * 4]] * 2,
        )
    ],
    "error_bars": lambda: [
        error_bars({"detr-resnet-50": points(0.01), "vit": points(0.002, STAGES[:2])}, {"mean image": 0.03})
    ],
    "error_bars_narrow": lambda: [
        error_bars({"mean, 95 % interval": points(1.0)}, {"mean image": 3.0}, size=(3.9, 2.5))
    ],
    "error_bars_many": lambda: [error_bars({"": points(1.0, tuple(f"encoder.{layer}" for layer in range(12)))})],
    "curves": lambda: [curves(losses())],
}


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("name", quick(FIGURES, "pages", "curves"))
def test_letters_are_legible_and_whole_and_files_have_the_pages(name: str):
    sheets = FIGURES[name]()
    for sheet in sheets:
        with style():
            sheet.draw_without_rendering()
        texts = texts_of(sheet)
        assert texts
        assert min(text.get_fontsize() for text in texts) >= LETTERS
        boxes = {text.get_text(): text.get_window_extent() for text in texts}
        assert [text for text, box in boxes.items() if not _inside(box, sheet.bbox)] == []
        assert sheet.get_figheight() <= HEIGHT
        assert Image.open(BytesIO(to_png(sheet, dpi=100))).size == tuple((sheet.get_size_inches() * 100).astype(int))
    file = to_pdf(sheets)
    assert file.startswith(b"%PDF")
    assert file.count(b"/Type /Page ") == len(sheets)
    assert b"<svg" in to_svg(sheets[0])


def _inside(box, page) -> bool:
    return box.x0 >= page.x0 - 1 and box.y0 >= page.y0 - 1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1


def test_the_same_figure_gives_the_same_file():
    one, other = FIGURES["pages"](), FIGURES["pages"]()
    assert [to_png(sheet, dpi=50) for sheet in one] == [to_png(sheet, dpi=50) for sheet in other]


def test_pages_are_cut_between_rows_that_belong_together():
    tall = pictures(2, (400, 100))  # four inches high
    for together, counts in ((1, [2, 2, 1]), (2, [2, 2, 1])):
        sheets = pages([picture_part([tall] * 5, ["a", "b"], [""] * 5, together=together, heading="Tall")])
        assert [len(sheet.subfigs[-1].axes[0].images) for sheet in sheets] == [2 * count for count in counts]
        assert all("Tall" in [text.get_text() for text in texts_of(sheet)] for sheet in sheets)
    three = pages([Part(4.0, lambda place: place.subplots()) for _ in range(3)])
    assert [len(sheet.axes) for sheet in three] == [2, 1]
    assert pages([Part(20.0, lambda place: place.subplots())])[0].get_figheight() == HEIGHT


def test_pictures_have_one_width_and_keep_their_proportion():
    (axes,) = FIGURES["grid"]()[0].axes
    boxes = [image.get_extent() for image in axes.images]
    widths, heights = ([abs(box[i + 1] - box[i]) for box in boxes] for i in (0, 2))
    assert numpy.ptp(widths) < 1e-6
    assert [h / w for h, w in zip(heights, widths, strict=True)] == pytest.approx([0.75] * 5 + [4 / 3] * 5, rel=0.02)


def test_what_stands_beside_shallow_pictures_is_whole_on_two_lines():
    names = ["mean inverse", "draw 1", "BloodImage_00000.jpg"]
    for size, expected in (((48, 64), ["mean\ninverse", "draw 1", "Blood…0.jpg"]), ((64, 64), ["mean inverse"])):
        figure = grid([pictures(7, size)] * 3, list("abcdefg"), names)
        upright = [text.get_text() for text in figure.findobj(Text) if text.get_rotation() == 90]
        assert upright[: len(expected)] == expected


def test_pictures_may_have_holes_but_not_ragged_rows():
    (axes,) = grid([[pictures(1)[0], None]], ["input", "encoder"], [""]).axes
    assert len(axes.images) == 1
    with pytest.raises(ValueError, match="needs 2 pictures"):
        grid([pictures(3)], ["input", "encoder"], [""])
    with pytest.raises(ValueError, match="0 rows"):
        grid([], ["input"], [])


def test_blocks_stand_side_by_side_and_those_without_pictures_are_left_out():
    picture = torch.zeros(3, 4, 4)
    one, none = Block("one", ["a"], ["row"], [[picture]]), Block("none", ["a"], ["row"], [[None]])
    assert picture_parts([none]) == []
    (both,) = pages(picture_parts([one, none, replace(one, heading="two")]))
    assert {"one", "two"} < {text.get_text() for text in texts_of(both)}
    assert both.get_figheight() == pages(picture_parts([one]))[0].get_figheight()


def test_the_legend_is_in_the_order_of_the_lines():
    assert legend_of(FIGURES["error_bars"]()[0]) == ["detr-resnet-50", "mean image", "vit", "one seed"]
    assert legend_of(curves(losses())) == ["encoder", "decoder", "backbone"]


def test_errors_show_means_intervals_seeds_and_baseline():
    figure = error_bars({"model": points(0.01)}, {"mean image": 0.03})
    axes = figure.axes[0]
    line, _, (bars,) = axes.containers[0].lines
    assert line.get_ydata().tolist() == pytest.approx([0.01, 0.02, 0.03, 0.04])
    assert [segment[:, 1].tolist() for segment in bars.get_segments()] == [
        pytest.approx([0.8 * m, 1.2 * m]) for m in (0.01, 0.02, 0.03, 0.04)
    ]
    assert sorted(axes.collections[1].get_offsets()[:, 1]) == pytest.approx(
        sorted(seed for point in points(0.01) for seed in point.seeds)
    )
    baseline = axes.lines[-1]
    assert set(baseline.get_ydata()) == {0.03}
    assert baseline.get_linestyle() == "--"
    assert axes.get_ylim()[0] == 0.0


def test_an_error_without_an_interval_is_the_mean_of_its_seeds():
    assert ErrorPoint("encoder", [1.0, 2.0]).bounds == (1.5, 1.5, 1.5)


def test_a_single_value_has_no_bar():
    nothing, known = (ErrorPoint(stage, [0.4], (0.4, *ends)) for stage, ends in
                      (("encoder", (math.nan, math.nan)), ("decoder", (0.3, 0.6))))  # fmt: skip
    assert nothing.bounds == (0.4, 0.4, 0.4)
    figure = error_bars({"a": [nothing, known]})
    figure.draw_without_rendering()
    (bars,) = figure.axes[0].collections[:1]
    heights = [path.vertices[:, 1].tolist() for path in bars.get_paths() if len(path.vertices)]
    assert [each for each in heights if numpy.isfinite(each).all()] == [pytest.approx([0.3, 0.6])]


def test_curves_leave_out_what_a_log_scale_cannot_show():
    records = [
        {"step": step, "entry": "a", "seed": 0, "loss": loss}
        for step, loss in enumerate([1.0, 0.0, None, float("inf"), 0.5])
    ]
    (line,) = curves(records).axes[0].lines
    assert line.get_xdata().tolist() == [0, 4]
    assert curves([]).axes


def test_a_dark_figure_has_light_letters_and_its_own_colours():
    light, dark = (error_bars({"a": points(1.0)}, dark=dark).axes[0] for dark in (False, True))
    assert light.yaxis.label.get_color() < "#3" < "#c" < dark.yaxis.label.get_color()
    assert (light.lines[0].get_color(), dark.lines[0].get_color()) == (PALETTE[0], DARK_PALETTE[0])


def test_an_image_survives_its_png():
    image = torch.randint(256, (3, 5, 7), generator=torch.Generator().manual_seed(1)) / 255
    read = torch.from_numpy(numpy.array(Image.open(BytesIO(image_png(image)))))
    assert torch.equal(read.permute(2, 0, 1) / 255, image)
    assert numpy.array(Image.open(BytesIO(image_png(torch.full((3, 1, 1), 7.0))))).tolist() == [[[255] * 3]]


def test_detections_are_drawn_above_the_threshold_only():
    image = torch.full((3, 400, 500), 0.2)
    boxes = torch.tensor([[50.0, 100, 200, 300], [300, 100, 450, 300]])
    detections = Detections(boxes, torch.tensor([0.9, 0.3]), torch.tensor([0, 1]), {0: "cat"})
    drawn = draw_detections(image, detections, threshold=0.5)
    colour = torch.tensor([0x00, 0x72, 0xB2]) / 255
    assert drawn.shape == image.shape
    assert torch.allclose(drawn[:, 200, 50], colour)
    assert torch.equal(drawn[:, :, 260:], image[:, :, 260:])
    assert torch.equal(draw_detections(image, detections, threshold=0.95), image)


def test_a_small_image_is_enlarged_by_a_whole_number():
    image = pictures(1, (50, 60))[0]
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    drawn = draw_detections(image, empty)
    assert drawn.shape == (3, 400, 480)
    assert torch.allclose(drawn[:, ::8, ::8], image, atol=0.5 / 255 + 1e-6)


def test_frames_hide_nothing_but_their_lines():
    image = torch.full((3, 200, 200), 0.2)
    drawn = draw_frames(image, [(torch.tensor([50.0, 50, 150, 150]), PALETTE[1])])
    assert drawn.shape == image.shape
    assert torch.equal(drawn[:, 60:140, 60:140], image[:, 60:140, 60:140])
    assert not torch.equal(drawn[:, 100, 50], image[:, 100, 50])


def test_boxes_beyond_the_edge_and_crowded_names_stay_inside():
    boxes = torch.tensor([[-50.0, -20, 700, 900], [0, 0, 30, 20], [0, 0, 30, 20], [390, 390, 500, 500]])
    detections = Detections(boxes, torch.full((4,), 0.9), torch.arange(4), dict.fromkeys(range(4), "a long name" * 9))
    assert draw_detections(torch.zeros(3, 400, 400), detections).shape == (3, 400, 400)


def test_importing_loads_no_matplotlib():
    code = f"import sys, {figures.__name__}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- letters of any script


def test_a_font_is_taken_that_has_the_letters(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    letters = {"own": "cat", "other": "cat\u732b"}
    monkeypatch.setattr(fonts, "installed", lambda: {fonts.OWN: "own", "Noto Sans CJK SC": "other"})
    charmaps = {
        path: SimpleNamespace(get_charmap=lambda known=known: set(map(ord, known))) for path, known in letters.items()
    }
    monkeypatch.setattr("matplotlib.ft2font.FT2Font", charmaps.__getitem__)
    fonts._font_file.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [fonts.font_file(text) for text in ("cat", "a \u732b".replace(" ", ""))] == ["own", "other"]
        assert caplog.text == ""
        assert [fonts.font_file("\u0e41"), fonts.font_file("\u0e41")] == ["own", "own"]
    assert caplog.text.count("no font here has '\u0e41'") == 1
    fonts._font_file.cache_clear()


def test_matplotlib_s_own_comes_first() -> None:
    assert next(iter(fonts.installed())) == "DejaVu Sans"
    assert fonts.font_file("caf\u00e9 80 %").endswith("DejaVuSans.ttf")
