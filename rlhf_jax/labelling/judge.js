"use strict";
// What the page of people and that of the admin share: asking the server, and
// one item with its questions. Texts of models become text nodes, nothing else.

const SHOWN = 20000; // characters of a text before a button shows the rest

function make(tag, options, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(options || {})) {
    if (name === "class") node.className = value;
    else if (name === "click") node.addEventListener("click", value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function fill(node, ...children) { node.replaceChildren(...children.filter((child) => child !== null)); }
function element(id) { return document.getElementById(id); }

// The token comes behind the # of the link, which no browser sends anywhere.
const token = (() => {
  const given = location.hash.slice(1);
  const key = "token " + location.pathname;
  if (given) {
    sessionStorage.setItem(key, given);
    history.replaceState(null, "", location.pathname);
  }
  return given || sessionStorage.getItem(key) || "";
})();

class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function post(path, body) {
  const reply = await fetch(path, {
    method: "POST",
    headers: { "Authorization": "Bearer " + token, "Content-Type": "application/json" },
    body: JSON.stringify(body || {}),
  });
  if (reply.headers.get("Content-Type").startsWith("application/x-ndjson")) return reply.text();
  const found = await reply.json();
  if (!reply.ok) throw new Refused(found.error, reply.status);
  return found;
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

// Asks until there is an answer: a server that was killed comes back.
async function insist(path, body, waiting) {
  for (let wait = 0.5; ; wait = Math.min(5, 2 * wait)) {
    try {
      return await post(path, body);
    } catch (error) {
      if (error instanceof Refused && error.status < 500) throw error;
      say(waiting + " Trying again.", true);
      await pause(wait);
    }
  }
}

function say(text, isWrong) {
  element("status").textContent = text;
  element("status").classList.toggle("wrong", Boolean(isWrong));
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Control characters and those that turn the direction of a line are named.
function visible(text) {
  return text.replace(/\r\n?/g, "\n").replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g,
    (c) => "[U+" + c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0") + "]");
}

function passage(text, language) {
  const whole = visible(text);
  const node = make("p", { class: "text", dir: "auto", lang: language || null }, whole.slice(0, SHOWN));
  if (whole.length <= SHOWN) return node;
  const rest = whole.length - SHOWN;
  const more = make("button", { type: "button", click: () => { node.textContent = whole; more.remove(); } },
    "Show the other " + rest.toLocaleString("en") + " characters");
  return make("div", {}, node, more);
}

// A text, or a dialogue: a list of {role, content}.
function said(value, language) {
  if (typeof value === "string") return passage(value, language);
  return make("div", { class: "dialogue" }, ...value.map((turn) =>
    make("div", { class: "turn" + (turn.role === "user" ? " user" : "") },
      make("span", { class: "role" }, visible(turn.role)), passage(turn.content, language))));
}

// A drawing as an image: it may move, and nothing in it runs or is loaded.
function pictureNodes(item, place) {
  const picture = (item.pictures || [])[place];
  return picture ? [make("img", { class: "picture", src: picture, alt: "Drawing of answer " + (place + 1) })] : [];
}

function itemNodes(item) {
  const answers = item.answers.map((answer, place) =>
    make("article", { class: "answer", "aria-labelledby": "answer-" + place },
      make("h3", { id: "answer-" + place }, "Answer " + (place + 1), make("span", { class: "rank", id: "rank-" + place })),
      make("div", { class: "body", tabindex: "0", role: "region", "aria-labelledby": "answer-" + place }, ...pictureNodes(item, place), said(answer, item.language))));
  return [
    make("section", { class: "prompt", "aria-labelledby": "prompt-title" },
      make("h2", { id: "prompt-title" }, "Prompt"), make("div", { class: "body", tabindex: "0", role: "region", "aria-labelledby": "prompt-title" }, said(item.prompt, item.language))),
    make("div", { class: "answers" + (answers.length > 2 ? " many" : "") }, ...answers),
  ];
}

// The questions about one item. A key answers the question that is marked, and
// the next one is marked; Enter submits.
class Questions {
  constructor(task, count, previous, change) {
    this.task = task; this.count = count; this.change = change;
    this.allBad = Boolean(previous && previous.all_bad);
    this.reason = (previous && previous.reason) || "";
    this.strength = (previous && previous.strength) || null;
    this.names = [""].concat(task.dimensions);
    // Of each question: groups of places, the best first; a group is a tie.
    this.order = new Map(this.names.map((name) => [name, []]));
    this.tieNext = false;
    if (previous && !previous.skip) this.restore(previous);
    this.active = 0;
    this.node = make("div", { class: "judge" + (task.dimensions.length || task.strengths.length ? " tall" : "") });
    this.draw();
  }

  restore(previous) {
    if (typeof previous.choice === "number") this.order.set("", [[previous.choice]]);
    for (const name of this.names) {
      const ranks = name ? previous.dimensions[name] : previous.ranks;
      if (!ranks) continue;
      const groups = [];
      ranks.forEach((rank, place) => { if (rank !== null) (groups[rank] = groups[rank] || []).push(place); });
      this.order.set(name, groups);
    }
    if (this.allBad && this.task.ask === "choice") this.order.set("", []);
  }

  // Questions that are asked now: the strength only where one is better.
  asked() {
    const found = [];
    for (const name of this.names) {
      found.push(name);
      if (name === "" && this.wantsStrength()) found.push("strength?");
    }
    return found;
  }

  wantsStrength() {
    return this.task.strengths.length > 0 && this.count === 2 && !this.allBad && this.order.get("").length === 2;
  }

  isAnswered(question) {
    if (question === "strength?") return this.strength !== null;
    if (question === "" && this.allBad) return true;
    const groups = this.order.get(question);
    if (this.task.ask === "choice") return groups.length > 0;
    return groups.flat().length >= 2;
  }

  missing() { return this.asked().find((question) => !this.isAnswered(question)); }

  ranks(name) {
    const found = Array(this.count).fill(null);
    this.order.get(name).forEach((group, rank) => group.forEach((place) => { found[place] = rank; }));
    return found;
  }

  told(seconds) {
    const told = { seconds: seconds, reason: this.reason };
    if (this.allBad) told.all_bad = true;
    if (this.task.ask === "choice") {
      told.choice = this.allBad ? null : this.order.get("")[0][0];
      return told;
    }
    told.ranks = this.allBad ? Array(this.count).fill(0) : this.ranks("");
    told.dimensions = Object.fromEntries(this.task.dimensions.map((name) => [name, this.ranks(name)]));
    if (this.wantsStrength()) told.strength = this.strength;
    return told;
  }

  mark(question) { this.active = Math.max(0, this.asked().indexOf(question)); this.draw(); }

  advance() {
    const asked = this.asked();
    const next = asked.findIndex((question, at) => at > this.active && !this.isAnswered(question));
    if (next >= 0) this.active = next;
    this.draw();
  }

  // Two answers: one is better, or neither. More: the next one of an order.
  place(name, place) {
    if (name === "") this.allBad = false;
    const groups = this.order.get(name);
    if (this.task.ask === "choice") {
      this.order.set(name, [[place]]);
    } else if (this.count === 2) {
      this.order.set(name, [[place], [1 - place]]);
    } else if (groups.flat().includes(place)) {
      this.order.set(name, groups.map((group) => group.filter((other) => other !== place)).filter((group) => group.length));
    } else if (this.tieNext && groups.length) {
      groups[groups.length - 1].push(place);
      this.tieNext = false;
    } else {
      groups.push([place]);
    }
    if (this.count === 2 || this.order.get(name).flat().length === this.count || this.task.ask === "choice") this.advance();
    else this.draw();
  }

  tie(name) {
    if (this.task.ask === "choice" || (!this.task.ties && name === "")) return;
    if (name === "") this.allBad = false;
    if (this.count === 2) { this.order.set(name, [[0, 1]]); this.advance(); }
    else { this.tieNext = !this.tieNext; this.draw(); }
  }

  bad() {
    if (!this.task.both_bad) return;
    this.allBad = true; this.strength = null; this.active = 0;
    this.order.set("", this.task.ask === "choice" ? [] : [Array.from({ length: this.count }, (_, place) => place)]);
    this.advance();
  }

  // Says whether a key was one of an answer.
  key(key) {
    const question = this.asked()[this.active];
    const number = Number(key) - 1;
    if (key === "b") { this.bad(); return true; }
    if (key === "Backspace" || key === "n") {
      this.active = Math.max(0, Math.min(this.asked().length - 1, this.active + (key === "n" ? 1 : -1)));
      this.draw();
      return true;
    }
    if (question === "strength?") {
      if (key === "ArrowLeft" || key === "ArrowRight") { this.active = 0; this.place("", key === "ArrowLeft" ? 0 : 1); return true; }
      if (!(number >= 0 && number < this.task.strengths.length)) return false;
      this.strength = this.task.strengths[number];
      this.advance();
      return true;
    }
    if (key === "t" || key === "0" || key === "=") { this.tie(question); return true; }
    if (this.count === 2 && key === "ArrowLeft") { this.place(question, 0); return true; }
    if (this.count === 2 && key === "ArrowRight") { this.place(question, 1); return true; }
    if (number >= 0 && number < this.count) { this.place(question, number); return true; }
    return false;
  }

  button(text, key, isOn, act) {
    return make("button", { type: "button", class: "choice", "aria-pressed": String(isOn), "aria-keyshortcuts": key, click: act },
      text, key ? make("kbd", {}, key) : null);
  }

  question(name, at) {
    const isOrder = this.count > 2 && this.task.ask === "ranks";
    const whole = this.task.question || (isOrder ? "Rank the answers, the best first" : this.task.title);
    const title = name === "" ? whole : name === "strength?" ? "How much better?" : name;
    return make("fieldset", { class: at === this.active ? "active" : "", "data-question": name },
      make("legend", {}, title), make("div", { class: "choices" }, ...this.choices(name, at)));
  }

  choices(name, at) {
    const act = (what) => () => { this.active = at; what(); };
    if (name === "strength?") {
      return this.task.strengths.map((word, i) => this.button(word, String(i + 1), this.strength === word, act(() => { this.strength = word; this.advance(); })));
    }
    const groups = this.order.get(name);
    const rank = (place) => groups.findIndex((group) => group.includes(place));
    const isPair = this.count === 2 && this.task.ask === "ranks";
    const found = [];
    for (let place = 0; place < this.count; place++) {
      const isOn = isPair ? groups.length === 2 && rank(place) === 0 : rank(place) >= 0 && !(name === "" && this.allBad);
      const label = isPair || this.task.ask === "choice" ? "Answer " + (place + 1) : "Answer " + (place + 1) + (isOn ? ", rank " + (rank(place) + 1) : "");
      found.push(this.button(label, String(place + 1), isOn, act(() => this.place(name, place))));
    }
    if (this.task.ask === "ranks" && (this.task.ties || name)) {
      const isOn = isPair ? groups.length === 1 && !(name === "" && this.allBad) : this.tieNext && at === this.active;
      const tie = this.button(isPair ? "Equal" : "Tie with the next", "t", isOn, act(() => this.tie(name)));
      if (isPair) found.splice(1, 0, tie); else found.push(tie);
    }
    if (name === "" && this.task.both_bad) {
      found.push(this.button(this.count === 2 ? "Both bad" : "All bad", "b", this.allBad, () => this.bad()));
    }
    return found;
  }

  draw() {
    const focused = document.activeElement && this.node.contains(document.activeElement) ? document.activeElement.getAttribute("data-at") : null;
    const asked = this.asked();
    fill(this.node, ...asked.map((name, at) => this.question(name, at)));
    this.node.querySelectorAll("button").forEach((button, i) => button.setAttribute("data-at", String(i)));
    if (focused !== null) {
      const again = this.node.querySelector('[data-at="' + focused + '"]');
      if (again) again.focus({ preventScroll: true });
    }
    if (this.change) this.change(this);
  }
}

// Ranks of the marked question beside the names of the answers.
function showRanks(questions) {
  const question = questions.asked()[questions.active];
  const name = question === "strength?" ? "" : question;
  const ranks = questions.ranks(name);
  const isChoice = questions.task.ask === "choice", isPair = questions.count === 2;
  const isTie = isPair && !isChoice && questions.order.get(name).length < 2;
  const isNothing = isTie || (name === "" && questions.allBad);
  ranks.forEach((rank, place) => {
    const badge = element("rank-" + place);
    if (!badge) return;
    const isRanked = rank !== null && !isNothing;
    const word = isChoice || isPair ? (rank === 0 ? "better" : "") : "rank " + (rank + 1);
    badge.textContent = isRanked ? word : "";
    badge.closest(".answer").classList.toggle("best", isRanked && rank === 0);
  });
}

// Headings, lists, **bold** and paragraphs of guidelines; the rest is text.
function guidelineNodes(text) {
  const nodes = [];
  const inline = (tag, line) => make(tag, { dir: "auto" }, ...visible(line).split(/\*\*(.+?)\*\*/).map((part, i) => i % 2 ? make("strong", {}, part) : part));
  let open = null; // a paragraph or a list that goes on in the next line
  for (const line of text.split("\n")) {
    const heading = line.match(/^#{1,4}\s+(.*)/), entry = line.match(/^\s*[-*]\s+(.*)/);
    if (heading) {
      nodes.push(inline("h3", heading[1]));
      open = null;
    } else if (entry) {
      if (!open || open.tagName !== "UL") nodes.push(open = make("ul"));
      open.append(inline("li", entry[1]));
    } else if (!line.trim()) {
      open = null;
    } else {
      const last = open && open.tagName === "UL" ? open.lastChild : open;
      if (last) last.append(" ", ...inline("p", line.trim()).childNodes);
      else nodes.push(open = inline("p", line.trim()));
    }
  }
  return nodes;
}
