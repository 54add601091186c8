"""The page of tools/explore.py: what stands where, and which handler runs when."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gradio as gr
import matplotlib

from crossformer_mm.models import CrossFormer
from crossformer_mm.visualization.attention import RULES
from crossformer_mm.visualization.explorer import OWN_RULE, SCORE_THR, Explorer
from crossformer_mm.visualization.handlers import LARGEST, Handlers

# Gradio's own themes take their fonts from Google.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
BLOCKS = dict(title="Inside a CrossFormer", analytics_enabled=False, fill_width=True)
CSS = """
#picture img {cursor: crosshair}
.prose.said {white-space: pre-line} .bad {color: #b00020}
#side0:not(:last-child) .prose.said, #side1 .prose.said {min-height: 7.5em}
"""


class Shared(NamedTuple):
    """Components of what both sides show: a :class:`.Place`, and whether there are two sides."""

    image: gr.Dropdown
    pixel: gr.State
    stage: gr.Dropdown
    block: gr.Dropdown
    head: gr.Dropdown
    compare: gr.Checkbox


class Panel(NamedTuple):
    """Components of a :class:`.Side`, and of what it shows."""

    checkpoint: gr.Textbox
    rule: gr.Dropdown
    group_size: gr.Slider
    interval: gr.Slider
    drawn: gr.Image
    said: gr.HTML
    predicted: gr.Image
    failed: gr.HTML
    column: gr.Column


def build_page(
    explorer: Explorer, checkpoint: str, images: Sequence[Path], folder: Path
) -> gr.Blocks:
    """Build the page; files to download are written to a folder.

    Raises ValueError or OSError if the checkpoint cannot be used.
    """
    backbone, _ = explorer.build_backbone(checkpoint)
    handlers = Handlers(explorer, backbone, folder)
    with gr.Blocks(**BLOCKS) as page:
        with gr.Row():
            with gr.Column(scale=3, min_width=330):
                shared, upload, picture = _add_shared(backbone, images)
                make = gr.Button("Make files to download", size="sm", elem_id="make")
                files = gr.File(label="Pictures and numbers", visible=False, elem_id="files")
            with gr.Column(scale=8, min_width=640), gr.Row():
                panels = [_add_panel(number, checkpoint) for number in range(2)]
        _connect(page, handlers, shared, panels, upload, picture)
        inputs = [*shared, *panels[0][:4], *panels[1][:4]]
        make.click(handlers.make_files, inputs, files, api_visibility="private", preprocess=False)
    return page


def _add_shared(
    backbone: CrossFormer, images: Sequence[Path]
) -> tuple[Shared, gr.UploadButton, gr.Image]:
    names = [("/".join(image.parts[-2:]), str(image)) for image in images]
    first = names[0][1] if names else None
    image = gr.Dropdown(names, value=first, label="Image", elem_id="image")
    upload = gr.UploadButton("Open another image", size="sm", elem_id="upload")
    gr.Markdown("**Click a point** of the image, as the network gets it:")
    look = dict(format="png", interactive=False, show_label=False)
    picture = gr.Image(**look, buttons=[], elem_id="picture")
    with gr.Row():
        choose, last = partial(gr.Dropdown, min_width=60), backbone.out_indices[-1]
        stage = choose(list(range(last + 1)), value=min(2, last), label="Stage", elem_id="stage")
        block = choose(label="Block", elem_id="block", scale=2)
        head = choose(label="Head", elem_id="head")
    compare = gr.Checkbox(label="Compare with another checkpoint or rule", elem_id="compare")
    return Shared(image, gr.State(None), stage, block, head, compare), upload, picture


def _add_panel(number: int, checkpoint: str) -> Panel:
    with gr.Column(min_width=420, visible=number == 0, elem_id=f"side{number}") as column:
        with gr.Row():
            label = "Checkpoint file (Enter loads it)"
            one_line = dict(max_lines=1, min_width=300, elem_classes="checkpoint")
            file = gr.Textbox(checkpoint, label=label, **one_line)
            look = dict(label="Rule of the groups", min_width=200, elem_classes="rule")
            rule = gr.Dropdown([OWN_RULE, *RULES], value=OWN_RULE, **look)
        with gr.Row():
            slider = partial(gr.Slider, 1, LARGEST, step=1, interactive=False, min_width=150)
            group_size = slider(label="Group size", elem_classes="group_size")
            interval = slider(label="Interval", elem_classes="interval")
        said = gr.HTML(elem_classes="said")
        look = partial(gr.Image, show_label=False, interactive=False, buttons=["fullscreen"])
        drawn = look(format="png", elem_classes="drawn")
        gr.Markdown(f"Prediction (boxes: from a score of {SCORE_THR} on)")
        failed = gr.HTML(visible=False, elem_classes="failed")
        predicted = look(format="png", elem_classes="predicted")
    return Panel(file, rule, group_size, interval, drawn, said, predicted, failed, column)


def _connect(
    page: gr.Blocks,
    handlers: Handlers,
    shared: Shared,
    panels: Sequence[Panel],
    upload: gr.UploadButton,
    picture: gr.Image,
) -> None:
    """Say which handler runs when; one at a time, as a network takes all of the processor.

    Gradio's preprocessing would answer numbers out of a slider's range with a traceback.
    """
    one = dict(concurrency_id="one", concurrency_limit=1, api_visibility="private")
    opened, layers = [picture, shared.pixel], [shared.block, shared.head]
    image = [handlers.open_image, shared.image, opened]
    names = gr.State(shared.image.choices)
    uploaded = upload.upload(handlers.add_image, [upload, names], [names, shared.image], **one)
    loaded = page.load(handlers.list_layers, shared.stage, layers, **one)
    new_images = [event.then(*image, **one) for event in (loaded, uploaded)]
    new_images.append(shared.image.input(*image, **one))
    new_layers = [
        shared.stage.input(handlers.list_layers, shared.stage, layers, **one),
        picture.select(handlers.take_pixel, None, shared.pixel, trigger_mode="always_last", **one),
    ]
    for number, panel in enumerate(panels):
        show = dict(
            fn=partial(handlers.show, number),
            inputs=[*shared, *panel[:4]],
            outputs=[panel.group_size, panel.interval, panel.drawn, panel.said],
            **dict(show_progress_on=panel.drawn, preprocess=False, **one),
        )
        predict = dict(
            fn=partial(handlers.predict, number),
            inputs=[shared.image, shared.compare, panel.checkpoint],
            outputs=[panel.predicted, panel.failed],
            **dict(show_progress_on=panel.predicted, **one),
        )
        for event in new_layers:
            event.then(**show)
        new_weights = [panel.checkpoint.submit(**show)]
        if number == 1:
            compared = shared.compare.input(
                handlers.open_panel, shared.compare, panel.column, **one
            )
            new_weights.append(compared.then(**show))
        for event in [*(event.then(**show) for event in new_images), *new_weights]:
            event.then(**predict)
        changes = [shared.block, shared.head, panel.rule, panel.group_size, panel.interval]
        triggers = [component.input for component in changes]
        gr.on(triggers, trigger_mode="always_last", **show)


def launch(
    explorer: Explorer, checkpoint: str, images: Sequence[Path], folder: Path, port: int | None
) -> str:
    """Start to serve the page on this machine only, and return its address.

    Raises ValueError or OSError if the checkpoint or the port cannot be used.
    """
    matplotlib.use("agg")  # the only one that draws beside the main thread
    page = build_page(explorer, checkpoint, images, folder)
    options = dict(theme=THEME, css=CSS, footer_links=[], share=False, quiet=True, pwa=False)
    _, url, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        ssr_mode=False,
        prevent_thread_lock=True,
        **options,
    )
    return url
