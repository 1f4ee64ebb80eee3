"use strict";
// The admin's page: progress, agreement, people, and what they dispute.

let state = null, chosen = null, questions = null;
const percent = (part, whole) => whole ? Math.round(100 * part / whole) + "% of " + whole : "";
const number = (value, digits) => value === null ? "" : value.toFixed(digits);

function showState(found) {
  state = found;
  const progress = state.progress;
  document.title = state.title + ": admin";
  element("title").textContent = state.folder + ": " + state.title;
  element("progress").textContent = progress.judgements + " of " + progress.wanted + " judgements, " + progress.closed + " of " + progress.items + " items closed, " + progress.skipped + " skipped; overlap " + state.overlap + ", order " + state.order + ".";
  element("bar").max = Math.max(1, progress.wanted);
  element("bar").value = progress.judgements;
  element("pause").textContent = state.is_paused ? "Go on" : "Pause";
  fill(element("agreement"), ...state.agreement.numbers.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)]));
  fill(element("warnings"), ...state.agreement.warnings.map((text) => make("li", { dir: "auto" }, visible(text))));
  showPeople();
  element("disputed-count").textContent = state.disputed ? state.disputed + " items on which people disagree." : "None.";
}

const HEADS = ["name", "judged", "skipped", "gold right", "checks same", "first place wins", "median s", "state", "link"];

function showPeople() {
  const rows = state.people.map((person) => make("tr", {},
    make("th", { scope: "row" }, make("bdi", {}, visible(person.name))),
    ...[String(person.judgements), String(person.skipped), percent(person.gold_right, person.gold), percent(person.check_same, person.checks), number(person.first_share, 2), number(person.median_seconds, 1)].map((text) => make("td", {}, text)),
    make("td", {}, person.state === "new" ? "" : person.state + " ", make("button", { type: "button", click: () => act("pause", { annotator: person.name, is_paused: !person.is_paused }) }, person.is_paused ? "Go on" : "Pause")),
    make("td", {}, make("button", { type: "button", click: (event) => copyLink(person, event.target) }, "Copy link"))));
  fill(element("people"), make("thead", {}, make("tr", {}, ...HEADS.map((head) => make("th", { scope: "col" }, head)))), make("tbody", {}, ...rows));
}

async function copyLink(person, button) {
  const link = location.origin + "/#" + person.token;
  try {
    await navigator.clipboard.writeText(link);
    say("The link of " + visible(person.name) + " is copied.");
  } catch (error) { // no clipboard without https
    button.replaceWith(make("input", { readonly: true, value: link, "aria-label": "Link of " + visible(person.name) }));
  }
}

async function act(path, body) {
  try {
    const found = await insist("/api/admin/" + path, body, "The server does not answer.");
    say("");
    if (found.progress) showState(found);
    return found;
  } catch (error) {
    say(error.message, true);
    return null;
  }
}

function verdict(record) {
  if (record.acceptable && !record.acceptable.some(Boolean)) return "none is acceptable";
  if (record.choice !== undefined) return "answer " + (record.choice + 1);
  const order = record.ranks.map((rank, answer) => [rank, answer + 1]).filter(([rank]) => rank !== null).sort((a, b) => a[0] - b[0]);
  const text = order.map(([rank, answer], i) => (i === 0 ? "" : rank === order[i - 1][0] ? " = " : " > ") + answer).join("");
  return text + (record.strength ? ", " + record.strength : "");
}

async function loadDisputed(found) {
  const items = (found || await act("disputed", {}) || { items: [] }).items;
  fill(element("disputed"), ...items.map((item) => make("li", {}, make("button", { type: "button", click: () => decide(item) },
    make("span", { class: "name", dir: "auto" }, visible(typeof item.prompt === "string" ? item.prompt : item.prompt[item.prompt.length - 1].content).slice(0, 100) || "(empty prompt)"),
    make("span", { class: "muted" }, item.decision ? "decided: " + verdict(item.decision) : item.judgements.map(verdict).join(" | "))))));
}

function decide(item) {
  chosen = item;
  element("decide").hidden = false;
  fill(element("item"), ...itemNodes(item));
  fill(element("said"), make("thead", {}, make("tr", {}, ...["who", "said", "why"].map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...item.judgements.map((record) => make("tr", {}, make("th", { scope: "row" }, make("bdi", {}, visible(record.annotator))), make("td", {}, verdict(record)), make("td", { dir: "auto" }, visible(record.reason || ""))))));
  questions = new Questions(state, item.answers.length, null, showRanks);
  const field = make("textarea", { id: "reason", rows: "1", maxlength: "4000", dir: "auto" });
  field.addEventListener("input", () => { questions.reason = field.value; });
  fill(element("questions"), questions.node,
    make("div", { class: "reason" }, make("label", { for: "reason" }, "Why?"), field),
    make("div", { class: "tools" }, make("button", { type: "button", id: "submit", class: "submit", click: submitDecision }, "Decide")));
  element("decide").scrollIntoView();
  element("questions").focus({ preventScroll: true });
}

async function submitDecision() {
  if (questions.missing() !== undefined) { questions.mark(questions.missing()); say("Answer all questions first.", true); return; }
  const told = questions.told(null);
  const found = await act("adjudicate", { item: chosen.item, judgement: told });
  if (!found) return;
  element("decide").hidden = true;
  chosen = questions = null;
  await loadDisputed(found);
}

element("pause").addEventListener("click", () => act("pause", { is_paused: !state.is_paused }));
element("backup").addEventListener("click", async () => { const found = await act("backup", {}); if (found) say("Backed up: " + found.file); });
element("export").addEventListener("click", async () => {
  const text = await act("records", {});
  if (text === null) return;
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "application/x-ndjson" })), download: "judgements.jsonl" });
  document.body.append(link);
  link.click();
  link.remove();
});
element("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (await act("add", { annotator: element("name").value })) element("name").value = "";
});
document.addEventListener("keydown", (event) => {
  const isField = ["TEXTAREA", "INPUT", "BUTTON"].includes(event.target.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !questions || (isField && event.target.tagName !== "BUTTON")) return;
  if (event.key === "Enter" && !isField) { event.preventDefault(); submitDecision(); }
  else if (questions.key(event.key)) event.preventDefault();
});

async function start() {
  if (!token) { say("Open this page by the admin's whole link.", true); return; }
  if (!await act("state", {})) return;
  await loadDisputed();
  for (let before = state.disputed; ; before = state.disputed) {
    await pause(5);
    if (document.hidden || !await act("state", {})) continue;
    if (state.disputed !== before && !chosen) await loadDisputed();
  }
}

start();
