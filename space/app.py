# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Demo of Jet: scores, samples, edits and interpolations of latents, files, odd pictures, and a game.

    python space/app.py
    MODEL_ID=org/jet-imagenet-64 python space/app.py
"""

import zero_gpu


# isort: split
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path


os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# By default, Gradio computes statistics of the last 10,000 calls after each call.
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
if "SPACE_ID" in os.environ:
    # The Hub's proxies, and nobody else, are trusted to name the visitor's address in X-Forwarded-For.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,127.0.0.1")

import gradio as gr
from api import add_api
from endpoints import Service
from fairness import CallLimits
from fastapi.exceptions import RequestValidationError
from gradio_internals import GuardedBlocks, forget_files, forget_unread, remember_configurations
from guard import RequestGuard, RequestLimits, explain_validation_error
from jet_demo import JetDemo, Sampler
from openapi import describe
from page import Page
from starlette.middleware import Middleware
from storage import Quota, Storage
from tab_file import add_files
from tab_latents import add_interpolation, add_reconstruction
from tab_odd import add_odd
from tab_sample import add_sampling
from tab_score import add_scoring
from texts import introduction, slug
from uploads import MAX_FILE_SIZE

from jet_hf.hub import load_config


SPACE = Path(__file__).parent
EXAMPLES = sorted((SPACE / "examples").glob("*.png"))
CSS, JS = ((SPACE / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
# Interval between sweeps of the files, and the age at which files are deleted, in seconds.
DELETE_CACHE = (15, 3600)
QUOTA = Quota()
CALLS = CallLimits()
REQUESTS = RequestLimits()
# Gradio's own queue passes on every call. The fair queues are in `endpoints.py`.
QUEUE = {"default_concurrency_limit": None, "max_size": 1000, "api_open": False}
MAX_THREADS = 256
TABS = {
    "Score": add_scoring,
    "Sample": add_sampling,
    "Reconstruct and edit": add_reconstruction,
    "Interpolate": add_interpolation,
    "File": add_files,
    "Odd one out": add_odd,
}
# Gradio keeps the state of the most recent sessions. The demo has none, and each call of a program is a session.
SESSIONS = 100


def build_app(demo: JetDemo, samplers: Sequence[Sampler] = ()) -> GuardedBlocks:
    """
    Create the page and the API.

    Args:
        demo: The model.
        samplers: Further models that draw samples, before `demo` itself.
    """
    storage, service = Storage(DELETE_CACHE[1], QUOTA), Service(demo, CALLS)
    # Gradio reads the location of its files from this variable.
    os.environ["GRADIO_TEMP_DIR"] = str(storage.folder)
    examples = storage.add_permanent(EXAMPLES, "examples")
    gr.set_static_paths([str(storage.folder / "examples")])
    models = {model.title: model for model in (*samplers, demo)}
    with GuardedBlocks(title="Jet", analytics_enabled=False) as app:
        page = Page(app, service, storage, examples, models)
        gr.Markdown(introduction(demo))
        with gr.Tabs(overflow_behavior="wrap"):
            for name, add_tab in TABS.items():
                if name == "File" and demo.codec is None:
                    continue
                with gr.Tab(name, id=slug(name)):
                    add_tab(page)
        with gr.Row(visible=False):
            add_api(page)
    storage.keep_present_files()
    remember_configurations(app)
    app.storage, app.calls = storage, service.calls
    return app


def sweeping(app: GuardedBlocks):
    """Return a lifespan of the server that regularly deletes files and results that nobody needs."""

    async def sweep() -> None:
        unread: set[str] = set()
        while True:
            await asyncio.sleep(DELETE_CACHE[0])
            await asyncio.to_thread(app.storage.sweep, lambda paths: forget_files(app, paths))
            unread = forget_unread(app, app.calls.wanted_readers(), unread)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        task = asyncio.create_task(sweep())
        yield
        task.cancel()

    return lifespan


def theme() -> gr.themes.Base:
    """Return the colors and fonts of the page, with a contrast of text of at least 4.5 in both color schemes."""
    font = ["system-ui", "sans-serif"]  # system fonts, so that browsers contact no other server
    both = {
        "checkbox_label_background_fill_selected": "*primary_700",
        "button_primary_background_fill": "*primary_700",
        "button_primary_background_fill_hover": "*primary_800",
    }
    text = ("block_label_text_color", "block_title_text_color", "link_text_color")
    light = dict.fromkeys(text, "*primary_800") | {"body_text_color_subdued": "*neutral_600"}
    dark = dict.fromkeys(text, "*primary_200") | {"body_text_color_subdued": "*neutral_300"}
    dark |= {"block_label_background_fill": "*neutral_700", "block_title_background_fill": "*neutral_700"}
    colors = both | light | {f"{name}_dark": value for name, value in (both | dark).items()}
    return gr.themes.Soft(primary_hue="orange", font=font, font_mono=["ui-monospace", "monospace"]).set(**colors)


def launch(app: GuardedBlocks, **options):
    """Start the server. `options` are keyword arguments of `gr.Blocks.launch`."""
    guard = Middleware(
        RequestGuard,
        blocks=app,
        storage=app.storage,
        calls=app.calls,
        limits=REQUESTS,
        description=describe(app),
    )
    return app.queue(**QUEUE).launch(
        css=CSS,
        head=f"<script>{JS}</script>",
        theme=theme(),
        max_file_size=MAX_FILE_SIZE,
        max_threads=MAX_THREADS,
        app_kwargs={
            "middleware": [guard],
            "exception_handlers": {RequestValidationError: explain_validation_error},
            "lifespan": sweeping(app),
        },
        state_session_capacity=SESSIONS,
        show_error=True,
        run_history=False,
        footer_links=["api", "settings"],
        ssr_mode=False,
        **options,
    )


def load_models(model_id: str | None, device: str | None = None) -> tuple[JetDemo, list[Sampler]]:
    """
    Return the model of all tabs, and further models that draw samples.

    A model of noisy images has no bits per dimension: it only draws samples, beside the shipped models.
    """
    samplers = [Sampler(SPACE / "digits", device)]
    if model_id and load_config(model_id, "MODEL_ID").noise_std is not None:
        return JetDemo(SPACE / "model", device), [Sampler(model_id, device), *samplers]
    return JetDemo(model_id or SPACE / "model", device), samplers


def main() -> None:
    """Serve the model that the variable MODEL_ID names, until a signal ends the process."""
    # An exit deletes the server's files. The default reaction to the signal does not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Where each call borrows a GPU, there is none yet for the first view.
    device = "cpu" if zero_gpu.MUST_BORROW else None
    try:
        demo, samplers = load_models(os.environ.get("MODEL_ID"), device)
    except (OSError, ValueError) as error:
        sys.exit(f"error: MODEL_ID: {' '.join(str(error).split())}")
    app = build_app(demo, samplers)
    if zero_gpu.MUST_BORROW:
        for sampler in (*samplers, demo):
            sampler.use_device("cuda")
    launch(app)


if __name__ == "__main__":
    main()
