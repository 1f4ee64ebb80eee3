"use strict";
// The page of a person: one item after the other.

let task = null, turn = null, questions = null, submitId = "", isBusy = false;
let seenFrom = 0, seenBefore = 0; // milliseconds that the item was on screen

const PENDING = "pending";
const STATES = {
  done: "Nothing is left for you. Thank you.",
  paused: "The task is paused. This page goes on by itself.",
  refused: "Thank you for your answers. There are no further items for you.",
};

function seconds() {
  const open = document.hidden ? 0 : performance.now() - seenFrom;
  return Math.round((seenBefore + open) / 10) / 100;
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) seenBefore += performance.now() - seenFrom;
  else seenFrom = performance.now();
});

function showTurn(found) {
  turn = found;
  submitId = newId();
  element("item").dataset.turn = turn.state + " " + turn.assignment;
  seenFrom = performance.now(); seenBefore = 0;
  element("progress").textContent = task.name + ": " + turn.mine + " answered. All: " + turn.judgements + " of " + turn.wanted + ".";
  element("bar").max = Math.max(1, turn.wanted);
  element("bar").value = turn.judgements;
  if (turn.state !== "item") {
    questions = null;
    fill(element("item"), make("p", { class: "over" }, STATES[turn.state]));
    fill(element("questions"), tools());
    setTimeout(refresh, 4000);
    return;
  }
  fill(element("item"), ...itemNodes(turn));
  questions = new Questions(task, turn.answers.length, turn.previous, showRanks);
  fill(element("questions"), questions.node, reasonNode(), tools());
  showRanks(questions);
  window.scrollTo(0, 0);
}

function reasonNode() {
  if (task.reasons === "no") return null;
  const field = make("textarea", { id: "reason", rows: "1", maxlength: "4000", dir: "auto", "aria-keyshortcuts": "r" });
  field.value = questions.reason;
  field.addEventListener("input", () => { questions.reason = field.value; });
  return make("div", { class: "reason" }, make("label", { for: "reason" }, task.reasons === "required" ? "Why?" : "Why? (optional)", make("kbd", {}, "r")), field);
}

function tools() {
  const button = (id, text, key, act, isOff) => make("button", { id: id, type: "button", class: id, "aria-keyshortcuts": key, disabled: isOff, click: act }, text, make("kbd", {}, key === "Enter" ? "\u21b5" : key));
  const isItem = turn.state === "item";
  return make("div", { class: "tools" },
    isItem ? button("submit", "Submit", "Enter", submit) : null,
    isItem ? button("skip", "Skip", "s", skip) : null,
    button("undo", "Undo", "u", undo, !turn.last));
}

async function ask(path, body, waiting) {
  if (isBusy) return;
  isBusy = true;
  document.body.classList.add("busy");
  try {
    const found = await insist(path, body, waiting);
    if (task.guideline !== found.guideline) await load();
    say("");
    showTurn(found);
  } catch (error) {
    say(error.message, true);
    if (error.status === 400) await load(); // the task may be another one now
    if (error.status === 400 || error.status === 409) showTurn(await insist("/api/next", {}, "The server does not answer."));
  } finally {
    sessionStorage.removeItem(PENDING);
    isBusy = false;
    document.body.classList.remove("busy");
  }
}

function send(judgement) {
  const body = { assignment: turn.assignment, id: submitId, judgement: judgement };
  if (!isBusy) sessionStorage.setItem(PENDING, JSON.stringify(body)); // survives a reload
  return ask("/api/submit", body, "Not saved yet.");
}

function submit() {
  if (!questions || isBusy) return;
  const missing = questions.missing();
  if (missing !== undefined) {
    questions.mark(missing);
    say(missing === "strength?" ? "Say how much better." : missing ? "Answer: " + missing : questions.count === 2 || task.ask === "choice" ? "Choose an answer first." : "Rank at least two answers.", true);
    return;
  }
  if (task.reasons === "required" && !questions.reason.trim()) {
    say("Say in a sentence why.", true);
    element("reason").focus();
    return;
  }
  send(questions.told(seconds()));
}

function skip() {
  if (questions && !isBusy) send({ skip: true, reason: questions.reason, seconds: seconds() });
}

function undo() {
  if (turn.last && !isBusy) ask("/api/undo", { id: turn.last }, "The server does not answer.");
}

function refresh() {
  if (!isBusy && turn.state !== "item") ask("/api/next", {}, "The server does not answer.");
}

function toggle(name) {
  const isOpen = element(name).hidden;
  for (const other of ["guidelines", "keys"]) {
    const shows = other === name && isOpen;
    element(other).hidden = !shows;
    element(other + "-button").setAttribute("aria-expanded", String(shows));
  }
  if (isOpen) element(name).focus({ preventScroll: true });
}

function keyList() {
  const two = [["1 or \u2190", "the first answer"], ["2 or \u2192", "the second answer"], ["t or 0", "equal"]];
  const many = [["1 \u2013 9", "the next best answer; again: not ranked"], ["t", "the next one ties with the one before"]];
  const all = [
    ...(turn && turn.answers && turn.answers.length > 2 ? many : two),
    ...(task.both_bad ? [["b", "none is acceptable"]] : []),
    ...(task.strengths.length ? [["1 \u2013 4", "how much better, where that is marked"]] : []),
    ["n", "the next question"], ["Backspace", "the question before"], ["Enter", "submit"], ["s", "skip"], ["u", "undo the last answer"],
    ["r", "write why; Esc leaves the field"], ["g", "guidelines"], ["?", "these keys"],
  ];
  return make("dl", {}, ...all.flatMap(([key, text]) => [make("dt", {}, key), make("dd", {}, text)]));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !task || !turn) return;
  const key = event.key;
  if (event.target.tagName === "TEXTAREA") {
    if (key === "Escape") event.target.blur();
    return;
  }
  if (key === "Escape") {
    for (const name of ["guidelines", "keys"]) if (!element(name).hidden) toggle(name);
    return;
  }
  const isButton = event.target.tagName === "BUTTON";
  const acts = { s: skip, u: undo, g: () => toggle("guidelines"), "?": () => { fill(element("keys"), make("h2", {}, "Keys"), keyList()); toggle("keys"); } };
  if (key === "Enter") {
    const isChosen = isButton && event.target.getAttribute("aria-pressed") === "true";
    if (event.repeat || (isButton && !isChosen)) return; // a button acts itself
    event.preventDefault();
    submit();
  } else if (event.repeat || isBusy) {
    return;
  } else if (key === "r" && element("reason")) {
    event.preventDefault();
    element("reason").focus();
  } else if (acts[key]) {
    event.preventDefault();
    acts[key]();
  } else if (questions && questions.key(key)) {
    event.preventDefault();
  }
});

element("guidelines-button").addEventListener("click", () => toggle("guidelines"));
element("keys-button").addEventListener("click", () => { fill(element("keys"), make("h2", {}, "Keys"), keyList()); toggle("keys"); });

async function load() {
  const before = task;
  task = await insist("/api/task", {}, "The server does not answer.");
  document.title = task.title;
  element("title").textContent = task.title;
  element("guidelines-button").hidden = !task.guidelines;
  fill(element("guidelines"), make("h2", {}, "Guidelines"), ...guidelineNodes(task.guidelines));
  const key = "guideline " + task.name;
  if (task.guideline && localStorage.getItem(key) !== task.guideline) {
    if (element("guidelines").hidden) toggle("guidelines"); // new to this person
    localStorage.setItem(key, task.guideline);
    if (before) say("The guidelines changed.");
  }
}

async function start() {
  if (!token) { say("Open this page by the whole link that you were given.", true); return; }
  try {
    await load();
  } catch (error) { say(error.message, true); return; }
  const pending = sessionStorage.getItem(PENDING);
  if (pending) await ask("/api/submit", JSON.parse(pending), "Not saved yet.");
  if (!turn) await ask("/api/next", {}, "The server does not answer.");
}

start();
