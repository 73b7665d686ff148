# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""Tab that makes a picture a file of the codec, and a file a picture."""

import gradio as gr
import texts
from components import Named, png_image
from jet_demo import WHOLE
from page import Page, Refresh


def add_files(page: Page) -> None:
    """Add the tab."""
    demo = page.demo

    def compress(picture, progress=gr.Progress()):  # noqa: B008
        if picture is None:
            return None, texts.FILE_HINT
        progress(0.1, desc="compressing")
        result = demo.compress(picture)
        return page.storage.add_result(result.data, "picture.jet"), texts.file_sizes(result)

    def decompress(file, progress=gr.Progress()):  # noqa: B008
        if file is None:
            return None, texts.DECOMPRESSION_HINT
        progress(0.1, desc="decompressing")
        image, measured = demo.decompress(file, texts.PACKED_FILE)
        return Named(image, "jet-decompressed.png"), texts.decompressed(measured)

    path, sizes = compress(demo.load(page.examples[0], WHOLE))
    gr.Markdown(texts.FILE_HELP)
    with gr.Row():
        with gr.Column(min_width=280):
            picture = page.image_input("Picture", optional=True, height=280, value=page.examples[0])
            page.example_images(picture)
        with gr.Column(min_width=280):
            table = gr.Markdown(sizes, min_height=280)
            download = gr.DownloadButton("Download picture.jet", value=path, variant="primary")
    gr.Markdown("## And back")
    with gr.Row():
        with gr.Column(min_width=280):
            file = page.file_input(texts.PACKED_FILE, optional=True, height=160, file_types=[".jet"])
        with gr.Column(min_width=280):
            restored = png_image("Decompressed picture", height=280)
            statement = gr.Markdown(texts.DECOMPRESSION_HINT)
    page.refreshes(
        Refresh(compress, [picture], [download, table], fit=WHOLE, options={"show_progress_on": [table]}),
        Refresh(decompress, [file], [restored, statement], options={"show_progress_on": [statement]}),
    )
