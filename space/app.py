# Copyright 2026 The jet_hf authors. Licensed under the Apache License, Version 2.0.
"""
Demo of Jet: scores, samples, edits and interpolations of latents, files, and a game.

    python space/app.py
    MODEL_ID=org/jet-imagenet-64 python space/app.py
"""

import zero_gpu  # noqa: F401


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
from endpoints import Service
from fairness import CallLimits
from fastapi.exceptions import RequestValidationError
from gradio_internals import GuardedBlocks, forget_files, forget_unread
from guard import RequestGuard, RequestLimits, explain_validation_error
from jet_demo import JetDemo, Sampler
from page import Page, add_api
from starlette.middleware import Middleware
from storage import Quota, Storage
from tab_file import add_files
from tab_game import add_game
from tab_latents import add_interpolation, add_reconstruction
from tab_sample import add_sampling
from tab_score import add_scoring
from texts import introduction, slug
from uploads import MAX_FILE_SIZE


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
    "Odd one out": add_game,
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
        with gr.Tabs():
            for name, add_tab in TABS.items():
                if name == "File" and demo.codec is None:
                    continue
                with gr.Tab(name, id=slug(name)):
                    add_tab(page)
        with gr.Row(visible=False):
            add_api(page)
    storage.keep_present_files()
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


def launch(app: GuardedBlocks, **options):
    """Start the server. `options` are keyword arguments of `gr.Blocks.launch`."""
    font = ["system-ui", "sans-serif"]  # system fonts, so that browsers contact no other server
    theme = gr.themes.Soft(primary_hue="orange", font=font, font_mono=["ui-monospace", "monospace"])
    guard = Middleware(RequestGuard, blocks=app, storage=app.storage, calls=app.calls, limits=REQUESTS)
    return app.queue(**QUEUE).launch(
        css=CSS,
        head=f"<script>{JS}</script>",
        theme=theme,
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


def main() -> None:
    """Serve the model that the variable MODEL_ID names, until a signal ends the process."""
    # An exit deletes the server's files. The default reaction to the signal does not.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        demo = JetDemo(os.environ.get("MODEL_ID") or SPACE / "model")
    except (OSError, ValueError) as error:
        sys.exit(f"error: MODEL_ID: {' '.join(str(error).split())}")
    launch(build_app(demo, [Sampler(SPACE / "digits")]))


if __name__ == "__main__":
    main()
