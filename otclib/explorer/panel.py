"""The explorer's widgets in a notebook."""

from __future__ import annotations

import functools
import gc
import html
import time
from collections.abc import Callable
from typing import Any

from otclib.explorer import picture
from otclib.explorer.view import EXACT, MARGINALS, NOWHERE, REGS, Source, View
from otclib.figures import style


def _undisturbed(act: Callable) -> Callable:
    """Return ``act`` without garbage collection, because a pass over all that torch has loaded takes half a second."""

    @functools.wraps(act)
    def quietly(*arguments: Any) -> Any:
        collecting = gc.isenabled()
        gc.disable()
        try:
            return act(*arguments)
        finally:
            if collecting:
                gc.enable()

    return quietly


class Panel:
    """The widgets around ``picture.transport_view``. ``milliseconds`` is the time that the last picture took."""

    def __init__(self, explorer: Source, dpi: int = 88):
        import ipywidgets as w
        from ipyevents import Event

        self.explorer, self.dpi, self.milliseconds = explorer, dpi, 0.0
        look, wide = {"description_width": "92px"}, w.Layout(width="98%")

        def slider(name: str, options: list, value: Any) -> w.SelectionSlider:
            return w.SelectionSlider(
                description=name, options=options, value=value, continuous_update=True, style=look, layout=wide
            )

        choices = explorer.choices()
        runs = list(explorer.checkpoints)
        self.pair = w.Dropdown(description="pair", options=choices, style=look, layout=wide)
        self.caption = w.Combobox(description="caption", continuous_update=False, style=look, layout=wide)
        self.run = w.Dropdown(description="model", options=runs, style=look, layout=wide)
        epochs = list(explorer.checkpoints[runs[0]])
        self.epoch = slider("after epoch", epochs, epochs[-1])
        self.reg = slider("reg", [(f"{reg:g}", reg) for reg in REGS], 0.1)
        self.unbalanced = slider("marginal", [("exact", EXACT)] + [(f"rho {m:g}", m) for m in MARGINALS], EXACT)
        self.word = w.ToggleButtons(description="word", style={**look, "button_width": "auto"})
        self.place = slider("place", [("none", NOWHERE)], NOWHERE)
        self.message = w.HTML()
        self.picture = w.Image(format="png", layout=w.Layout(max_width="100%", object_fit="contain"))
        self.nearest = w.HTML(layout=w.Layout(min_width="280px"))
        left = w.VBox([self.pair, self.caption, self.run], layout=w.Layout(width="50%"))
        right = w.VBox([self.epoch, self.reg, self.unbalanced, self.place], layout=w.Layout(width="50%"))
        below = w.HBox([self.picture, self.nearest], layout=w.Layout(flex_flow="row wrap"))
        self.box = w.VBox([w.HBox([left, right]), self.word, self.message, below])
        self._mouse = Event(source=self.picture, watched_events=["click"])
        self._mouse.on_dom_event(self._click)
        self._quiet = False
        for widget, act in (
            (self.pair, self._choose_pair),
            (self.run, self._choose_run),
            (self.caption, self._read),
            (self.epoch, self._read),
            (self.reg, self._read),
            (self.unbalanced, self._read),
            (self.word, self._draw),
            (self.place, self._draw),
        ):
            widget.observe(self._unless_quiet(act), "value")
        self._choose_pair()

    def _unless_quiet(self, act: Callable[[], None]) -> Callable[[object], None]:
        def heard(_: object) -> None:
            if not self._quiet:
                act()

        return heard

    def _set(self, widget: Any, **values: Any) -> None:
        """Change a widget without calling its observers."""
        quiet, self._quiet = self._quiet, True
        for name, value in values.items():
            setattr(widget, name, value)
        self._quiet = quiet

    def _choose_pair(self) -> None:
        pair, captions = self.pair.value, self.explorer.captions
        others = [captions[(pair + k) % len(captions)] for k in (1, 2, 3)]
        captions = list(dict.fromkeys(self.explorer.own_captions(pair) + others))
        self._set(self.caption, options=captions, value=captions[0])
        self._read()

    def _choose_run(self) -> None:
        epochs = list(self.explorer.checkpoints[self.run.value])
        kept = self.epoch.value if self.epoch.value in epochs else epochs[-1]
        self._set(self.epoch, options=epochs, value=kept)
        self._read()

    @_undisturbed
    def _read(self) -> None:
        """Compute the view that the widgets ask for, and draw it; or say why not, and leave the picture."""
        start = time.perf_counter()
        try:
            view = self.explorer.view(
                self.pair.value,
                self.caption.value,
                run=self.run.value,
                epoch=self.epoch.value,
                reg=self.reg.value,
                unbalanced=None if self.unbalanced.value == EXACT else self.unbalanced.value,
            )
        except ValueError as error:
            self.message.value = f"<span role='alert' style='color:{style.POISON}'>{html.escape(str(error))}</span>"
            return
        self.message.value = ""
        words = [(word, k) for k, word in enumerate(view.words)]
        if tuple(words) != self.word.options:
            self._set(self.word, options=words, value=view.sharpest)
        places = [("none", NOWHERE)] + [
            (f"row {k // view.grid[1] + 1}, column {k % view.grid[1] + 1}", k) for k in range(len(view.plan))
        ]
        if tuple(places) != self.place.options:
            self._set(self.place, options=places, value=NOWHERE)
        self.view = view
        self._draw(start)
        self.nearest.value = _listed(view)  # last, so that the picture does not wait for it

    @_undisturbed
    def _draw(self, start: float | None = None) -> None:
        start = time.perf_counter() if start is None else start
        place = None if self.place.value == NOWHERE else self.place.value
        self.figure = picture.transport_view(self.view, self.word.value, place, competitors=False)
        self.picture.value = picture.png(self.figure, self.dpi)
        self.milliseconds = 1000 * (time.perf_counter() - start)

    def _click(self, event: dict) -> None:
        """Choose the word and the place under the mouse; a second click on the chosen place releases it."""
        x, y = event["relativeX"] / event["boundingRectWidth"], event["relativeY"] / event["boundingRectHeight"]
        word, place = picture.pointed_at(self.figure, self.view, x, y)
        if word is not None:
            self._set(self.word, value=word)
        if place is not None:
            self._set(self.place, value=NOWHERE if word is None and place == self.place.value else place)
        self._draw()


def _listed(view: View) -> str:
    """Return the captions that compete, as HTML."""
    out = []
    for name, (rank, nearest) in view.ranking.items():
        out.append(f"<b style='color:{style.CLEAN}'>nearest of {view.pool:,} captions by {name}</b><table>")
        for caption, distance in nearest:
            text = html.escape(caption)
            text = f"<b>{text}</b>" if caption == view.caption else text
            out.append(f"<tr><td>{distance:.3f}</td><td style='text-align:left'>{text}</td></tr>")
        out.append(f"</table>this caption is number {rank:,}<br><br>")
    return "".join(out)
