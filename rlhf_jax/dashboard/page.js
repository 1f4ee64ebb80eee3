"use strict";
// The page asks its own server every few seconds and draws what changed. All
// text of a run becomes a text node: nothing of it is ever read as HTML.

const EVERY_MS = 3000;
const SYMBOLS = {
  running: "▶ running", silent: "! no sign of life", stopped: "■ stopped",
  finished: "✓ finished", waiting: "· waiting",
};
const LEVELS = { warn: "Warning", note: "Note", refuse: "Refused", halt: "Halted" };
const HEADER = new Set(["step", "phase", "time", "prompt", "response", "before", "after"]);
const SVG = "http://www.w3.org/2000/svg";

let listed = { runs: [] };
let chosen = { run: "", stage: null };
let drawn = { runs: "", detail: "" };
let filter = "";
let isOpen = false;

const byId = (id) => document.getElementById(id);

function el(tag, attributes, ...children) {
  const isSvg = ["svg", "path", "line", "title"].includes(tag);
  const found = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) found.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) found.setAttribute(name, value);
  }
  found.append(...children.filter((child) => child !== null && child !== undefined));
  return found;
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return String(value).replace("-", "−");
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : value.toPrecision(4);
  return text.replace("-", "−");
}

// Points [[step, value or null]] -> an SVG that fills its box.
function plot(points, height, isWhole) {
  const seen = points.filter((point) => point[1] !== null);
  const svg = el("svg", { viewBox: `0 0 300 ${height}`, preserveAspectRatio: "none", role: "img", "aria-hidden": isWhole ? null : "true" });
  if (!seen.length) return svg;
  const low = Math.min(...seen.map((point) => point[1]));
  const high = Math.max(...seen.map((point) => point[1]));
  const first = points[0][0], last = points[points.length - 1][0];
  const x = (step) => last > first ? 2 + (296 * (step - first)) / (last - first) : 150;
  const y = (value) => high > low ? 4 + ((height - 8) * (high - value)) / (high - low) : height / 2;
  if (isWhole) {
    for (const at of [4, height / 2, height - 4]) svg.append(el("line", { x1: 0, x2: 300, y1: at, y2: at }));
  }
  let line = "", dots = "";
  points.forEach((point, i) => {
    if (point[1] === null) return;
    const place = `${x(point[0]).toFixed(1)} ${y(point[1]).toFixed(1)}`;
    const before = i > 0 && points[i - 1][1] !== null;
    const after = i + 1 < points.length && points[i + 1][1] !== null;
    line += `${before ? "L" : "M"}${place}`;
    if (!before && !after) dots += `M${place}h0.01`;
  });
  svg.append(el("path", { d: line }));
  if (dots) svg.append(el("path", { d: dots, class: "dots" }));
  return svg;
}

function chart(name, points) {
  const seen = points.filter((point) => point[1] !== null);
  if (!seen.length) return null;
  const last = seen[seen.length - 1];
  const values = seen.map((point) => point[1]);
  const shown = el("span", { class: "value" }, short(last[1]));
  const svg = plot(points, 110, true);
  svg.setAttribute("aria-label", `${name}: last ${short(last[1])} at step ${last[0]}`);
  const cursor = el("line", { class: "cursor", y1: 0, y2: 110, visibility: "hidden" });
  svg.append(cursor);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const first = points[0][0], end = points[points.length - 1][0];
    const step = first + ((event.clientX - box.left) / box.width) * (end - first);
    const near = seen.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
    const at = end > first ? 2 + (296 * (near[0] - first)) / (end - first) : 150;
    cursor.setAttribute("x1", at);
    cursor.setAttribute("x2", at);
    cursor.setAttribute("visibility", "visible");
    shown.textContent = `step ${near[0]}: ${short(near[1])}`;
  });
  svg.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    shown.textContent = short(last[1]);
  });
  return el("figure", { class: "chart", "data-metric": name },
    el("figcaption", {}, el("span", { class: "metric" }, name), shown), svg,
    el("div", { class: "ends" },
      el("span", {}, `step ${points[0][0]} to ${points[points.length - 1][0]}`),
      el("span", {}, `${short(Math.min(...values))} to ${short(Math.max(...values))}`)));
}

function fraction(stage) {
  if (stage.state === "finished") return 1;
  return stage.total ? Math.min(1, stage.step / stage.total) : 0;
}

function bar(share, label) {
  const inner = el("i", {});
  inner.style.width = `${(100 * share).toFixed(1)}%`;
  return el("div", { class: "bar", title: label }, inner);
}

function current(run) {
  const order = ["running", "silent", "stopped"];
  for (const state of order) {
    const found = run.stages.find((stage) => stage.state === state && stage.id !== null);
    if (found) return found;
  }
  const done = run.stages.filter((stage) => stage.id !== null);
  return done.length ? done[done.length - 1] : null;
}

function told(stage) {
  const parts = [];
  if (stage.name) parts.push(stage.name);
  if (stage.total) parts.push(`step ${stage.step} of ${stage.total}`);
  else if (stage.step) parts.push(`step ${stage.step}`);
  if (stage.pace_seconds !== null && stage.step) parts.push(`${duration(stage.pace_seconds)} a step`);
  if (stage.eta_seconds !== null && stage.eta_seconds !== undefined) parts.push(`${duration(stage.eta_seconds)} left`);
  return parts.join(" · ");
}

function drawRuns() {
  const cards = listed.runs.map((run) => {
    const now = current(run);
    const rang = run.stages.reduce((sum, stage) => sum + (stage.alarms || 0), 0);
    const card = el("button", { class: "run", type: "button", "aria-current": String(run.id === chosen.run), onclick: () => choose(run.id, null, true) },
      el("span", { class: "name" }, run.name),
      el("span", { class: `state ${run.state}` }, SYMBOLS[run.state]),
      el("span", { class: "stages wide" }, ...run.stages.map((stage) => bar(fraction(stage), `${stage.name}: ${SYMBOLS[stage.state]}`))));
    if (now) {
      card.append(el("span", { class: "numbers" }, told(now),
        now.headline ? ` · ${now.headline} ${short(now.value)}` : "",
        rang ? el("span", { class: "alarm-count" }, ` · ${rang} alarm${rang > 1 ? "s" : ""}`) : null));
      if (now.curve.length > 1) {
        const spark = plot(now.curve, 26, false);
        spark.setAttribute("class", "spark");
        card.append(spark);
      }
    }
    return card;
  });
  if (!cards.length) cards.push(el("p", { class: "empty" }, "Nothing here yet: a run shows up when it begins to write."));
  byId("runs").replaceChildren(...cards);
}

function shares(parts) {
  const total = parts.reduce((sum, part) => sum + part.seconds, 0);
  if (!(total > 0)) return null;
  const rows = [];
  for (const part of parts) {
    rows.push(el("span", {}, part.name), bar(part.seconds / total, part.name),
      el("span", { class: "number" }, duration(part.seconds)),
      el("span", { class: "number share" }, `${Math.round((100 * part.seconds) / total)} %`));
  }
  return el("div", { class: "shares" }, ...rows);
}

function sample(row) {
  const scores = Object.entries(row).filter(([name, value]) => !HEADER.has(name) && typeof value === "number");
  const texts = "before" in row
    ? [el("div", { class: "text" }, el("mark", {}, row.prompt || "")),
      el("div", { class: "side" }, "before"), el("div", { class: "text" }, row.before || ""),
      el("div", { class: "side" }, "after"), el("div", { class: "text" }, row.after || "")]
    : [el("div", { class: "text" }, el("mark", {}, row.prompt || ""), row.response || row.text || "")];
  const at = "step" in row ? [el("span", {}, `step ${short(row.step)}`)] : [];
  return el("div", { class: "sample" }, ...texts,
    el("div", { class: "scores" }, ...at, ...scores.map(([name, value]) => el("span", {}, `${name} `, el("b", {}, short(value))))));
}

function all(curves) {
  const charts = Object.entries(curves).map(([name, points]) => chart(name, points)).filter(Boolean);
  const apply = () => charts.forEach((one) => { one.hidden = !one.dataset.metric.includes(filter); });
  const box = el("input", { type: "search", placeholder: "filter by name", "aria-label": "Filter metrics by name",
    oninput: (event) => { filter = event.target.value.trim(); apply(); } });
  box.value = filter;
  apply();
  const found = el("details", { ontoggle: (event) => { isOpen = event.target.open; } },
    el("summary", {}, `All ${charts.length} metrics`), box, el("div", { class: "charts" }, ...charts));
  found.open = isOpen;
  return found;
}

// Whoever selects text to copy it is not disturbed.
const isSelecting = () => !document.getSelection().isCollapsed;

function drawDetail(run, stage, detail) {
  const parts = [el("h2", {}, run.name), el("p", { class: "muted" }, run.title, run.is_trial ? " · a short trial" : "")];
  if (run.command) parts.push(el("p", { class: "command" }, run.command));
  const tabs = run.stages.filter((one) => one.id !== null);
  if (tabs.length > 1) {
    parts.push(el("div", { class: "tabs", role: "tablist" }, ...tabs.map((one) => el("button", {
      type: "button", role: "tab", "aria-selected": String(one.id === stage.id), onclick: () => choose(run.id, one.id, false),
    }, one.name || "run"))));
  }
  if (detail) {
    parts.push(el("div", { class: "status" }, el("p", {}, SYMBOLS[detail.state], " ", el("span", { class: "muted" }, told({ ...detail, name: "" }))), bar(fraction(detail), "done")));
    if (detail.alarms.length) {
      parts.push(el("ul", { class: "alarms" }, ...detail.alarms.map((one) => el("li", { class: one.level },
        el("b", {}, `${LEVELS[one.level] || one.level}${one.step === null ? "" : `, step ${one.step}`}`), one.text))));
    }
    const first = detail.headlines.concat(["rollout/kl_k1_sum", "rollout/entropy", "rollout/length_mean", "eval/gold", "sft/validation_loss", "optimizer/learning_rate"])
      .filter((name, i, names) => name in detail.curves && names.indexOf(name) === i);
    const charts = first.map((name) => chart(name, detail.curves[name])).filter(Boolean);
    if (charts.length) parts.push(el("h3", {}, "Curves"), el("div", { class: "charts" }, ...charts));
    const spent = shares(detail.shares);
    if (spent) parts.push(el("h3", {}, "Where the time of the steps goes"), spent);
    if (detail.samples.length) parts.push(el("h3", {}, "Newest samples"), el("div", { class: "samples" }, ...detail.samples.map(sample)));
    if (detail.pairs.length) parts.push(el("h3", {}, "Before and after"), el("div", { class: "samples" }, ...detail.pairs.map(sample)));
    if (Object.keys(detail.curves).length) parts.push(all(detail.curves));
  }
  const stages = shares(run.shares);
  if (stages) parts.push(el("h3", {}, "Where the time of the run went"), stages);
  const box = byId("detail");
  const focused = document.activeElement && document.activeElement.type === "search";
  box.replaceChildren(...parts.filter(Boolean));
  if (focused) box.querySelector("input").focus();
}

function choose(run, stage, scrolls) {
  chosen = { run, stage };
  const hash = stage === null ? [run] : [run, stage];
  history.replaceState(null, "", `#${hash.map(encodeURIComponent).join("&")}`);
  drawn = { runs: "", detail: "" };
  refresh().then(() => {
    if (scrolls && window.innerWidth <= 900) byId("detail").scrollIntoView({ behavior: "smooth" });
  });
}

function read(hash) {
  const [run, stage] = hash.slice(1).split("&").map(decodeURIComponent);
  return { run: run || "", stage: stage === undefined ? null : stage };
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  return answer.json();
}

async function refresh() {
  const live = byId("live");
  try {
    listed = await ask("/api/runs");
    live.classList.remove("lost");
    const count = listed.runs.filter((run) => run.state === "running").length;
    live.textContent = `${count} running, ${listed.runs.length} in all · ${new Date(1000 * listed.time).toLocaleTimeString()}`;
    byId("root").textContent = listed.root;
    document.title = `${count ? `▶ ${count} · ` : ""}${listed.root}`;
    byId("remarks").replaceChildren(...listed.remarks.map((text) => el("li", {}, text)));
    let run = listed.runs.find((one) => one.id === chosen.run);
    if (!run) run = listed.runs.find((one) => one.state === "running") || listed.runs[0];
    if (run) chosen.run = run.id;
    const text = JSON.stringify([listed.runs, chosen.run]);
    if (text !== drawn.runs) { drawn.runs = text; drawRuns(); }
    if (!run) return;
    const stage = run.stages.find((one) => one.id !== null && one.id === chosen.stage) || current(run);
    const detail = stage ? await ask(`/api/stage?id=${encodeURIComponent(stage.id)}`) : null;
    const shown = JSON.stringify([run, detail]);
    if (shown !== drawn.detail && !isSelecting()) { drawn.detail = shown; drawDetail(run, stage, detail); }
  } catch (error) {
    live.textContent = `no answer (${error.message}): is the command still running?`;
    live.classList.add("lost");
  }
}

chosen = read(location.hash);
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, EVERY_MS);
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
