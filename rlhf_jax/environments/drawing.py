"""A segment as people see it: one SVG, a film above and its frames below.

The film repeats by itself, without a script, so it moves where a page shows it
as an image; whoever asked for less motion sees its first frame. Nothing is
loaded, and nothing but numbers comes from a segment.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_jax.environments.environment import Environment

WIDTH = 360  # of the whole, pixels
FRAMES, COLUMNS = 8, 4  # below the film, at most
LEAST_SECONDS = 2.0  # that a film takes: a shorter segment plays slowly
PAUSE_SECONDS = 0.8  # at its end
GAP = 6  # between frames, pixels
STYLE = (
  ".paper{fill:#fff;stroke:#d5d8dd}.ground{stroke:#9aa1ab;fill:none}"
  ".body{fill:#3a4250}.pole{stroke:#b4552d;fill:none;stroke-linecap:round}"
  ".push{fill:#2d6fb4}.force{stroke:#2d6fb4;fill:none}"
  "text{font:10px system-ui,sans-serif;fill:#5c6470}.still{display:none}"
  "@media(prefers-reduced-motion:reduce){.film{display:none}"
  ".still{display:inline}}"
)


def frames_of(steps: int) -> list[int]:
  """Returns the steps whose frames stand below the film: evenly, ends too.

  Args:
    steps: of the segment, >= 1.
  """
  if steps <= FRAMES:
    return list(range(steps))
  return [round(i * (steps - 1) / (FRAMES - 1)) for i in range(FRAMES)]


def segment(
  environment: Environment,
  states: Sequence[Sequence[float]],
  actions: Sequence[Sequence[float]],
) -> str:
  """Returns a segment as an SVG document.

  Args:
    environment: that draws a state.
    states: [T, S], before each step.
    actions: [T, A], as the environment took them.
  """
  left, top, wide, high = environment.box
  line = 0.012 * wide
  style = (
    f"{STYLE}.ground,.paper{{stroke-width:{line / 2:.3f}}}"
    f".pole{{stroke-width:{3 * line:.3f}}}.force{{stroke-width:{3 * line:.3f}}}"
  )
  drawn = "".join(
    f'<g id="f{i}"><rect x="{left}" y="{top}" width="{wide}" height="{high}" '
    f'class="paper"/>{environment.draw(list(state), list(action))}</g>'
    for i, (state, action) in enumerate(zip(states, actions, strict=True))
  )
  box = f'viewBox="{left} {top} {wide} {high}"'
  small = (WIDTH - (COLUMNS - 1) * GAP) / COLUMNS
  tall = small * high / wide
  large = WIDTH * 0.7
  below = large * high / wide + GAP
  parts = [
    f'<svg x="{(WIDTH - large) / 2:.0f}" width="{large:.0f}" '
    f'height="{large * high / wide:.1f}" {box}><use href="#f0" class="still"/>'
    f'<g class="film">{_film(environment, len(states))}</g></svg>'
  ]
  for place, i in enumerate(frames_of(len(states))):
    x = (place % COLUMNS) * (small + GAP)
    y = below + (place // COLUMNS) * (tall + 14)
    parts.append(
      f'<svg x="{x:.1f}" y="{y:.1f}" width="{small:.1f}" height="{tall:.1f}" '
      f'{box}><use href="#f{i}"/></svg><text x="{x + 2:.1f}" '
      f'y="{y + tall + 10:.1f}">{i * environment.seconds:.2f} s</text>'
    )
  rows = -(-len(frames_of(len(states))) // COLUMNS)
  height = below + rows * (tall + 14) + 2
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
    f'height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}">'
    f"<style>{style}</style><defs>{drawn}</defs>{''.join(parts)}</svg>"
  )


def _film(environment: Environment, steps: int) -> str:
  """Returns every frame, each seen in its own part of the time."""
  playing = max(LEAST_SECONDS, steps * environment.seconds)
  whole = playing + PAUSE_SECONDS
  found = []
  for i in range(steps):
    begin, end = (x * playing / steps / whole for x in (i, i + 1))
    values, times = ["hidden", "visible"], [0.0, begin]
    if i == 0:
      values, times = ["visible"], [0.0]
    if i + 1 < steps:  # the last one stays, for the pause
      values, times = [*values, "hidden"], [*times, end]
    found.append(
      f'<use href="#f{i}" visibility="hidden"><animate '
      f'attributeName="visibility" values="{";".join(values)}" '
      f'keyTimes="{";".join(f"{t:.4f}" for t in times)}" dur="{whole:.2f}s" '
      'calcMode="discrete" repeatCount="indefinite"/></use>'
    )
  return "".join(found)
